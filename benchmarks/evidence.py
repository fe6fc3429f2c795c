"""What a run is worth as evidence: where and by which code it was made, and whether it meets the assignment."""

import copy
import hashlib
import json
import platform
import sys
from collections import Counter, namedtuple
from dataclasses import asdict
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from checkpoint import write_whole  # noqa: E402
from handwriting import predict_digit, prepare_digit  # noqa: E402
from model import IMAGE_SHAPE, Net, count_parameters  # noqa: E402
from utils import CPU_FEATURES, MAX_EPOCHS, MAX_PARAMETERS, TARGET, Config, has_bfloat16  # noqa: E402


def environment(device: torch.device) -> dict[str, str]:
    """What a result depends on besides code and seed: the device, its precision and the versions."""
    cpu = f"{CPU_FEATURES.get('cpu_name', platform.machine())}, threads: {torch.get_num_threads()}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    precision = f"{'bfloat16' if has_bfloat16(device) else 'float32'} in training, float32 in evaluation"
    return {"device": f"{device.type.upper()} ({name})", "precision": precision, "python": platform.python_version(),
            "torch": str(torch.__version__), "torchvision": str(torchvision.__version__)}


def fingerprint() -> str:
    """Twelve hexadecimal digits that change with the modules named here or the code in the notebook.

    The notebook's first code cell, with the repository's name, does not count, so that a fork may change it.
    """
    cells = json.loads((ROOT / "S6_MNIST.ipynb").read_text(encoding="utf-8"))["cells"]
    modules = "model.py", "muon.py", "utils.py", "checkpoint.py", "handwriting.py"
    sources = [(ROOT / name).read_text(encoding="utf-8") for name in modules]
    sources += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"][1:]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()[:12]


LayerRow = namedtuple("LayerRow", "layer output kernel stride jump receptive_field parameters")


def layer_table(model: nn.Module) -> list[LayerRow]:
    """List the layers of a model that is one chain, in the order in which an image passes them.

    The jump is the distance, in image pixels, between two neighbouring outputs of a layer. Its receptive field, the
    side of the square that one output sees, exceeds the previous one by (kernel - 1) · the previous jump: Araujo et
    al., "Computing receptive fields of convolutional neural networks", Distill, 2019. What runs is a copy of the model.
    """
    rows, probe = [], copy.deepcopy(model).cpu().eval()

    def add_row(layer: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> None:
        kernel, stride = (size[0] if isinstance(size, tuple) else size
                          for size in (getattr(layer, "kernel_size", 1), getattr(layer, "stride", 1)))
        jump, field = (rows[-1].jump, rows[-1].receptive_field) if rows else (1, 1)
        rows.append(LayerRow(type(layer).__name__, tuple(output.shape[1:]), kernel, stride, jump * stride,
                             field + (kernel - 1) * jump, count_parameters(layer)))

    for layer in probe.modules():
        if not list(layer.children()):
            layer.register_forward_hook(add_row)
    probe(torch.zeros(1, *IMAGE_SHAPE))
    return rows


def requirements(model: Net, history: list[dict]) -> list[tuple[str, str, str, bool]]:
    """The assignment's requirements: each with what is asked for, what was measured, and whether that is enough."""
    table = layer_table(model)
    kinds = Counter(row.layer for row in table)
    pooled = sum(row.layer == "AvgPool2d" and row.output[1:] == (1, 1) for row in table)
    dropout = max((layer.p for layer in model.modules() if isinstance(layer, nn.Dropout2d)), default=0)
    parameters, epochs, accuracy = count_parameters(model), len(history), history[-1]["val_accuracy"] if history else 0
    return [
        ("validation accuracy, last epoch", f"at least {TARGET} %", f"{accuracy:.2f} %", accuracy >= TARGET),
        ("parameters", f"fewer than {MAX_PARAMETERS:,}", f"{parameters:,}", parameters < MAX_PARAMETERS),
        ("epochs", f"fewer than {MAX_EPOCHS}", f"{epochs}", 0 < epochs < MAX_EPOCHS),
        ("BatchNorm", "used", f"{kinds['BatchNorm2d']} layers", kinds["BatchNorm2d"] > 0),
        ("Dropout", "used", f"{kinds['Dropout2d']} layers, p = {dropout}", dropout > 0),
        ("global average pooling", "used", f"{pooled} layer", pooled > 0),
    ]


def calibration(sure: Tensor, right: Tensor, bins: int = 15) -> tuple[list[tuple[float, float, int]], float]:
    """Whether answers are right as often as their probabilities `sure` (N,) say; `right` (N,) is boolean.

    Returns the mean probability, the share of right answers and the number of images in each bin of equal width that
    has any, and the expected calibration error in points: the mean difference of the two, weighted by the images.
    Guo et al., "On calibration of modern neural networks", 2017.
    """
    rows, error = [], 0.0
    for low in range(bins):
        inside = (sure > low / bins) & (sure <= (low + 1) / bins)
        if inside.any():
            said, was, count = sure[inside].mean().item(), right[inside].float().mean().item(), int(inside.sum())
            rows.append((said, was, count))
            error += 100 * abs(said - was) * count / len(sure)
    return rows, error


def accuracy_of_rest(sure: Tensor, right: Tensor) -> Tensor:
    """The accuracy in percent without the k images of lowest probability, for k from 0 to N - 1."""
    ordered = right[sure.argsort(descending=True)].double()
    return (100 * ordered.cumsum(0) / torch.arange(1, len(ordered) + 1)).flip(0)


def feature_maps(model: Net, image: Tensor) -> dict[str, Tensor]:
    """What each part of the network answers to one normalised image (1, 28, 28): maps (C, H, W), on the CPU."""
    names = ["block 1", "block 2", "block 3", "transition", "block 4", "block 5", "block 6", "block 7", "digits"]
    parts = [*model.eval().stage1, model.transition, *model.stage2, model.head[0]]
    maps, value = {}, image[None].to(next(model.parameters()).device)
    with torch.no_grad():
        for name, part in zip(names, parts, strict=True):
            value = part(value)
            maps[name] = value[0].cpu()
    return maps


def nearest(images: Tensor, digits: Tensor, train_images: Tensor, train_labels: Tensor) -> Tensor:
    """For each image (N, 1, 28, 28), the training image of the given digit (N,) whose pixels differ least from it."""
    distances = torch.cdist(images.flatten(1).float(), train_images.flatten(1).float())
    distances[digits[:, None] != train_labels] = torch.inf
    return train_images[distances.argmin(1)]


def read_pages(pages: dict, model: nn.Module) -> dict[str, tuple[dict, int, Tensor]]:
    """Read each named image with `predict_digit`, print the answer, and return it with the steps of its preparation.

    What cannot be read is said, and left out.
    """
    results = {}
    for name, page in pages.items():
        try:
            results[name] = prepare_digit(page), *predict_digit(page, model)
            print(f"{name}: read as {results[name][1]}")
        except (ValueError, OSError) as error:
            print(f"{name} cannot be read: {error}")
    return results


def save_run(path: str | Path, model: nn.Module, config: Config, history: list[dict]) -> None:
    """Save the weights with the recipe, the history, the device, the versions and the code that made them."""
    device = next(model.parameters()).device
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    run = {"state_dict": weights, "config": asdict(config), "history": history, "environment": environment(device),
           "code": fingerprint()}
    write_whole(path, lambda part: torch.save(run, part))
