"""Accuracy on distorted test images, and on handwriting that is not MNIST's, of several networks of each recipe.

    pip install scikit-learn
    python -m benchmarks.accuracy final baseline --seeds 5 --keep      # trains the networks, in results/networks
    python -m benchmarks.robustness                                    # writes results/robustness.json
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.functional as TF
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from tqdm import tqdm

import utils
from handwriting import prepare_digit
from model import IMAGE_SHAPE
from utils import atomic_write, describe_environment, get_device, load_mnist, load_run, memory_format_for, normalise

RESULTS = Path(__file__).with_name("results") / "robustness.json"
NETWORKS = RESULTS.with_name("networks")


def affine(images: Tensor, angle: float = 0, shift: tuple[int, int] = (0, 0), scale: float = 1) -> Tensor:
    """Rotate by degrees, shift by pixels and scale, about the middle; the border is background."""
    return TF.affine(images, angle, list(shift), scale, [0.0], InterpolationMode.BILINEAR)


def add_noise(images: Tensor, sd: float) -> Tensor:
    """Add Gaussian noise, always the same, and cut the result off at black and white."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images.device)
    return (images + sd * noise).clamp(0, 1)


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
# Moderate and strong ones, which every run of `benchmarks.accuracy` records for a quarter of its images.
SAMPLE = [("shift (pixels)", 5), ("rotation (degrees)", 30), ("scale (factor)", 0.6),
          ("noise (standard deviation)", 0.3), ("noise (standard deviation)", 0.5),
          ("blur (standard deviation in pixels)", 2), ("contrast (factor)", 0.3), ("contrast (factor)", 0.2)]


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The accuracy in percent on float images (N, 1, 28, 28) in [0, 1]."""
    images = normalise(images).to(memory_format=memory_format_for(images.device))
    return utils.evaluate(model, zip(images.split(200), labels.split(200), strict=True))[1]


def measure(models: list[nn.Module], images: Tensor, labels: Tensor, cases: Iterable[tuple[str, float]]
            ) -> list[list[float]]:
    """Each model's accuracy in percent with each distortion of the given strength; uint8 images, on their device."""
    images, results = images.float() / 255, [[] for _ in models]
    for name, strength in cases:
        variants = DISTORTIONS[name][1](images, strength)
        for model, result in zip(models, results, strict=True):
            result.append(round(sum(accuracy(model, variant, labels) for variant in variants) / len(variants), 4))
    return results


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
    images = [prepare_digit(page).digit for page in pages]
    return torch.from_numpy(np.stack(images)).view(-1, *IMAGE_SHAPE), torch.from_numpy(data.target)


def read_results() -> dict:
    """The results on record."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    files = sorted(path for recipe in ("baseline", "final") for path in NETWORKS.glob(f"{recipe}-[0-9]*.pt"))
    if not files:
        sys.exit(f"there is no network in {NETWORKS}: 'python -m benchmarks.accuracy final baseline --seeds 5 --keep'")
    device, (other, digits) = get_device(), other_handwriting()
    images, labels = (tensor.to(device) for tensor in load_mnist(train=False))
    cases = [(name, strength) for name, (strengths, _) in DISTORTIONS.items() for strength in strengths]
    models = [load_run(path)[0].to(device, memory_format=memory_format_for(device)) for path in files]
    networks = {}
    for path, model, distorted in zip(files, models, measure(models, images, labels, tqdm(cases, file=sys.stdout)),
                                      strict=True):
        recipe, seed = path.stem.rsplit("-", 1)
        networks.setdefault(recipe, {})[seed] = {
            "distortions": distorted, "load_digits": round(accuracy(model, other.to(device), digits.to(device)), 4)}
    results = {"cases": cases, "networks": networks, "environment": describe_environment(device)}
    atomic_write(RESULTS, lambda temporary: temporary.write_text(json.dumps(results) + "\n", encoding="utf-8"))
    for number, (name, strength) in enumerate(cases):
        means = [np.mean([run["distortions"][number] for run in runs.values()]) for runs in networks.values()]
        print(f"{name:36}{strength:6}", *(f"{recipe} {mean:.2f} %  " for recipe, mean in zip(networks, means,
                                                                                          strict=True)))
    for recipe, runs in networks.items():
        print(f"load_digits, {recipe}: {np.mean([run['load_digits'] for run in runs.values()]):.2f} %")


if __name__ == "__main__":
    main()
