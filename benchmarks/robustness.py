"""Read distorted test images, and handwriting that is not MNIST, with the stored network and the original recipe's.

    pip install scikit-learn
    python benchmarks/robustness.py

The original recipe's network is trained first, unless results/original.pt holds it; stopped, the same command goes on
from the last epoch. The results take the place of the last ones in results/robustness.json.
"""

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.functional as TF
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.accuracy import build, config_of, settings_of  # noqa: E402
from benchmarks.evidence import environment, save_run  # noqa: E402
from checkpoint import write_whole  # noqa: E402
from handwriting import prepare_digit  # noqa: E402
from model import IMAGE_SHAPE  # noqa: E402
from utils import Loader, fit, get_device, load_mnist, load_run, normalise, set_seed  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "robustness.json"
ORIGINAL = RESULTS.with_name("original.pt")


def affine(images: Tensor, angle: float = 0, shift: tuple[int, int] = (0, 0), scale: float = 1) -> Tensor:
    """Rotate by degrees, shift by pixels and scale, about the middle; the border is background."""
    return TF.affine(images, angle, list(shift), scale, [0.0], InterpolationMode.BILINEAR)


def add_noise(images: Tensor, sd: float) -> Tensor:
    """Add Gaussian noise, always the same, and cut the result off at black and white."""
    generator = torch.Generator().manual_seed(0)
    return (images + sd * torch.randn(images.shape, generator=generator)).clamp(0, 1)


# Each distortion: its strengths, and the variants of one strength, whose accuracies are averaged; images are in [0, 1].
DISTORTIONS: dict[str, tuple[tuple[float, ...], Callable[[Tensor, float], list[Tensor]]]] = {
    "shift (pixels)": (
        (0, 1, 2, 3, 4, 5, 6),
        lambda x, n: [affine(x, shift=way) for way in ((n, 0), (-n, 0), (0, n), (0, -n))]),
    "rotation (degrees)": (
        (0, 5, 10, 15, 20, 25, 30, 45), lambda x, angle: [affine(x, angle=angle), affine(x, angle=-angle)]),
    "scale (factor)": (
        (0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4), lambda x, factor: [affine(x, scale=factor)]),
    "noise (standard deviation)": ((0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6), lambda x, sd: [add_noise(x, sd)]),
    "blur (standard deviation in pixels)": (
        (0, 0.5, 1, 1.5, 2, 2.5, 3),
        lambda x, sd: [TF.gaussian_blur(x, [2 * math.ceil(3 * sd) + 1] * 2, [sd, sd]) if sd else x]),
    "contrast (factor)": (
        (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2), lambda x, factor: [TF.adjust_contrast(x, factor)]),
}


def digest(model: nn.Module) -> str:
    """Twelve hexadecimal digits that tell one set of weights from another."""
    values = (value.detach().cpu().contiguous().numpy().tobytes() for value in model.state_dict().values())
    return hashlib.sha256(b"".join(values)).hexdigest()[:12]


def train_original(device: torch.device) -> None:
    """Train the network by the original recipe and store the run, as the notebook stores that of the chosen recipe."""
    settings = settings_of("original")
    config = config_of(settings)
    loaders = [Loader(*load_mnist(train), config, device, train) for train in (True, False)]
    set_seed(config.seed)
    model = build(settings).to(device)
    history = fit(model, *loaders, checkpoint=ORIGINAL.with_suffix(".checkpoint"))
    if len(history) < config.epochs:
        sys.exit("stopped; the same command goes on from the last epoch")
    save_run(ORIGINAL, model, config, history)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The accuracy in percent on float images in [0, 1]."""
    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        logits = [model(part.to(device)).cpu() for part in normalise(images).split(200)]
    return 100 * (torch.cat(logits).argmax(1) == labels).float().mean().item()


def other_handwriting() -> tuple[Tensor, Tensor]:
    """The digits of scikit-learn's `load_digits`, 1,797 scans reduced to 8×8 pixels, in the form of MNIST's images.

    E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI Machine Learning Repository, 1998.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        sys.exit("the other handwriting comes with scikit-learn: 'pip install scikit-learn', then run this again")
    data = load_digits()
    pages = np.pad(data.images / data.images.max(), [(0, 0), (8, 8), (8, 8)])  # digits touch the edge of their scan
    images = [prepare_digit(page)["as in MNIST"] for page in pages]
    return torch.from_numpy(np.stack(images)).view(-1, *IMAGE_SHAPE), torch.from_numpy(data.target)


def examples(results: dict, image: Tensor) -> dict[str, tuple[str, Tensor]]:
    """One image (1, 28, 28), in [0, 1], with each distortion at the strength at which most are misread."""
    found = {}
    for name, result in results["distortions"].items():
        _, strength = min(zip(result["chosen"], result["strengths"], strict=True))
        found[name] = f"{strength:g}", DISTORTIONS[name][1](image[None], strength)[0][0]
    return found


def measure(models: dict[str, nn.Module]) -> dict:
    """The accuracy in percent of each network at each strength of each distortion, and on the other handwriting."""
    images, labels = load_mnist(train=False)
    images = images.float() / 255
    distorted = {name: {"strengths": list(strengths), **{network: [] for network in models}}
                 for name, (strengths, _) in DISTORTIONS.items()}
    jobs = [(name, strength) for name, (strengths, _) in DISTORTIONS.items() for strength in strengths]
    for name, strength in tqdm(jobs, desc="distortions", file=sys.stdout, leave=False):
        variants = DISTORTIONS[name][1](images, strength)
        for network, model in models.items():
            results = [accuracy(model, variant, labels) for variant in variants]
            distorted[name][network].append(round(sum(results) / len(results), 4))
    other = other_handwriting()
    return {"distortions": distorted,
            "load_digits": {network: round(accuracy(model, *other), 4) for network, model in models.items()}}


def read_results() -> dict:
    """The results on record."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    device = get_device()
    other_handwriting()  # if something is missing, say so before the training
    if not ORIGINAL.exists():
        train_original(device)
    files = {"chosen": ROOT / "S6_MNIST.pt", "original": ORIGINAL}
    models = {name: load_run(path)[0].to(device) for name, path in files.items()}
    results = {**measure(models), "weights": {name: digest(model) for name, model in models.items()},
               "environment": environment(device)}
    write_whole(RESULTS, lambda part: part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8"))
    for name, result in results["distortions"].items():
        print(name)
        for strength, *percent in zip(result["strengths"], *(result[network] for network in models), strict=True):
            print(f"{strength:8}", *(f"{network} {p:.2f} %  " for network, p in zip(models, percent, strict=True)))
    print("load_digits", *(f"{network} {p:.2f} %  " for network, p in results["load_digits"].items()))


if __name__ == "__main__":
    main()
