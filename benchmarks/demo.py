"""Write the weights of S6_MNIST.pt and sample digits into the page docs/index.html: python -m benchmarks.demo."""

import base64
import io
import json
import re

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import handwriting
from utils import ROOT, Config, Loader, load_mnist, normalise, predict

PAGE = ROOT / "docs" / "index.html"
BLOCK = re.compile(r'(?<=<script id="data" type="application/json">).*?(?=</script>)', re.DOTALL)
CONSTANTS = ("SIDES WINDOW LEVELS FAINT SMALLEST SPECK BESIDE NEAR SHARE RAMP REACH LARGE THICKEST LENGTH TANGLED "
             "WEIGHT LEAN KNOWN ONE_SIDED SYMMETRIC FADE")
MISREAD = 5  # samples that the network gets wrong, beside one of each digit that it gets right


def encode(content: bytes) -> str:
    return base64.b64encode(content).decode()


def page_weights(model: nn.Module) -> bytes:
    """All weights (float32) in the order of the layers, each BatchNorm being a scale and a shift of every channel.

    They are rounded to 16 binary digits, and the lowest of their four bytes, which then is 0, is left out.
    """
    parts = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            parts += [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
        elif isinstance(layer, nn.BatchNorm2d):
            scale = layer.weight / (layer.running_var + layer.eps) ** 0.5
            parts += [scale, layer.bias - layer.running_mean * scale]
    weights = torch.cat([part.detach().flatten() for part in parts]).numpy().astype("<f4")
    return (weights.view("<u4") + 0x80).astype("<u4").view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()


def choose_samples(model: nn.Module) -> list[tuple[Tensor, int, int]]:
    """Test images (28, 28) with label and answer: the first right one of each digit, and the surest wrong ones."""
    images, labels = load_mnist(train=False)
    logits, _ = predict(model, Loader(images, labels, Config(), torch.device("cpu"), train=False))
    confidence, predicted = logits.softmax(1).max(1)
    correct = [int(((labels == digit) & (predicted == digit)).nonzero()[0]) for digit in range(10)]
    misread = (predicted != labels).nonzero()[:, 0]
    wrong = misread[confidence[misread].argsort(descending=True)[:MISREAD]]
    return [(images[i, 0], int(labels[i]), int(predicted[i])) for i in correct + wrong.tolist()]


def page_data() -> dict:
    """What the page needs from Python, as its data block holds it."""
    model = handwriting.stored_network()
    samples = []
    for image, label, answer in choose_samples(model):
        Image.fromarray(image.numpy()).save(file := io.BytesIO(), "PNG", optimize=True)
        samples.append({"label": label, "answer": answer, "png": encode(file.getvalue())})
    constants = {name: getattr(handwriting, name) for name in CONSTANTS.split()}
    constants["BLACK"], constants["WHITE"] = normalise(torch.tensor([0.0, 1.0])).tolist()
    return {"constants": constants, "samples": samples, "weights": encode(page_weights(model))}


if __name__ == "__main__":
    page, data = PAGE.read_text(encoding="utf-8"), json.dumps(page_data())
    PAGE.write_text(BLOCK.sub(lambda _: data, page), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {PAGE.stat().st_size:,} bytes")
