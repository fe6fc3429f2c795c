"""Write the weights of S6_MNIST.pt and sample digits into the page docs/index.html: python -m benchmarks.demo."""

import base64
import json
import re

import torch
from torch import Tensor, nn

from mnist import Loader, load_mnist, normalise
from utils import ROOT, load_run, predict

PAGE = ROOT / "docs" / "index.html"
BLOCK = re.compile(r'(?<=<script id="data" type="application/json">).*?(?=</script>)')


def encode(values: Tensor) -> str:
    return base64.b64encode(values.numpy().tobytes()).decode()


def encode_weights(tensor: Tensor) -> dict:
    """A large convolution's weights as 16-bit multiples of a step; what is small, and first or last, in 32 bits."""
    bits, limit, dtype = (16, 2**15 - 1, torch.int16) if tensor.numel() > 1000 else (32, 2**24, torch.int32)
    step = float(f"{tensor.abs().max() / limit:.6g}")
    return {"step": step, "bits": bits, "multiples": encode((tensor.detach() / step).round().to(dtype))}


def page_weights(model: nn.Module) -> list[dict]:
    """The tensors in the order of the layers; BatchNorm is a scale and a shift of each channel."""
    tensors = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            tensors += [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
        elif isinstance(layer, nn.BatchNorm2d):
            scale = layer.weight / (layer.running_var + layer.eps) ** 0.5
            tensors += [scale, layer.bias - layer.running_mean * scale]
    return [encode_weights(tensor) for tensor in tensors]


def page_samples(model: nn.Module) -> list[dict]:
    """Test images with label and answer: the first right one of each digit, and the five surest wrong ones."""
    images, labels = load_mnist(train=False)
    logits, _ = predict(model, Loader(images, labels, 200))
    confidence, answers = logits.softmax(1).max(1)
    right = [int(((labels == digit) & (answers == digit)).nonzero()[0]) for digit in range(10)]
    wrong = (confidence * (answers != labels)).argsort(descending=True)[:5]
    return [{"label": int(labels[i]), "answer": int(answers[i]), "pixels": encode(images[i])}
            for i in right + wrong.tolist()]


def write_page(path=PAGE) -> None:
    """Write the page with the network of S6_MNIST.pt to a file, a pathlib.Path."""
    model, _ = load_run(ROOT / "S6_MNIST.pt")
    black, white = normalise(torch.tensor([0.0, 1.0])).tolist()
    data = {"black": black, "white": white, "weights": page_weights(model), "samples": page_samples(model)}
    path.write_text(BLOCK.sub(json.dumps(data), PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write_page()
    print(f"{PAGE.relative_to(ROOT)}: {PAGE.stat().st_size:,} bytes")
