"""What several networks of each recipe make of distorted digits, of other handwriting, and of what is no digit.

    pip install scikit-learn
    python -m benchmarks.accuracy final baseline "without other looks" --seeds 5 --keep  # into results/networks
    python -m benchmarks.robustness --mnist-c FOLDER               # writes results/robustness.json

MNIST-C (Mu and Gilmer, "MNIST-C: a robustness benchmark for computer vision", arXiv 1906.02337, 2019) has 15
corruptions of MNIST's test images, each in a folder of its own with test_images.npy and test_labels.npy.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torchvision.transforms.functional as TF
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy.interpolate import interp1d
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from tqdm import tqdm

from mnist import load_mnist, normalise
from utils import describe_environment, get_device, load_run, predict

RESULTS = Path(__file__).with_name("results") / "robustness.json"
NETWORKS = RESULTS.with_name("networks")
SURE = 0.8  # the probability from which an answer counts as sure
KNOWN = 6.7  # 97.5 % of held-out training digits have a larger logit than this: "least_logit" in accuracy.jsonl


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


def mnist_form(page: np.ndarray) -> Tensor:
    """Bring what is bright on a page (H, W) to MNIST's form (1, 28, 28), as LeCun, Cortes and Burges describe it.

    The box of the ink becomes 20 pixels high or wide; its centre of mass comes to the middle of the image, or half a
    pixel beyond, where it lies in MNIST. The records depend on how halves are rounded, so this is not the `centre`
    of handwriting.py.
    """
    image = Image.fromarray(np.uint8(255 * (page / page.max())))
    image = image.crop(image.point(lambda value: 255 * (value > 25)).getbbox())
    image = ImageOps.contain(image, (20, 20), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.float32)
    pixels = pixels / pixels.max()
    height, width = pixels.shape
    y, x = np.indices(pixels.shape) + 0.5
    top = min(max(round(14.5 - np.average(y, weights=pixels)), 0), 28 - height)
    left = min(max(round(14.5 - np.average(x, weights=pixels)), 0), 28 - width)
    return torch.from_numpy(np.pad(pixels, [(top, 28 - height - top), (left, 28 - width - left)]))[None]


def other_handwriting() -> tuple[Tensor, Tensor]:
    """The digits of scikit-learn's `load_digits`, 1,797 scans reduced to 8×8 pixels, in the form of MNIST's images.

    E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI Machine Learning Repository, 1998.
    """
    from sklearn.datasets import load_digits  # not needed for training
    data = load_digits()
    return torch.stack([mnist_form(page) for page in data.images]), torch.from_numpy(data.target)


LETTERS = "ACEFHJKMNPRTUVWXYZcdefhkmnprtuvwxyz%&@#?$+=<>*"  # without those that may be a digit, such as O, l, S or q
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSansMono",
         "STIXGeneral", "STIXGeneralItalic", "cmr10", "cmtt10")


def letters() -> list[np.ndarray]:
    """Pages with one printed letter or sign each, in the fonts that come with Matplotlib."""
    pages = []
    for name in FONTS:
        font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf"), 80)
        for letter in LETTERS:
            page = Image.new("L", (200, 200))
            ImageDraw.Draw(page).text((60, 40), letter, fill=255, font=font)
            pages.append(np.asarray(page))
    return pages


def scribbles(count: int) -> list[np.ndarray]:
    """Pages with a line each that is a walk with random turns, smoothed, and crosses itself several times."""
    random, pages = np.random.default_rng(0), []
    for _ in range(count):
        corners = random.uniform(0, 1, (9, 2))
        path = interp1d(np.arange(9), corners, "cubic", axis=0)(np.linspace(0, 8, 300))
        path = 20 + 160 * (path - path.min(axis=0)) / np.ptp(path, axis=0).max()
        page = Image.new("L", (200, 200))
        ImageDraw.Draw(page).line([tuple(point) for point in path], fill=255, width=14, joint="curve")
        pages.append(np.asarray(page))
    return pages


def two_digits(images: Tensor, labels: Tensor) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Pages with two of the images (N, 1, 28, 28) in [0, 1] side by side, and over each other; up to 500 of each."""
    digits = images[labels != 1, 0].cpu().numpy()  # a 1 may pass for a stroke of the other digit
    labels = labels[labels != 1].cpu().numpy()
    half = min(500, len(digits) // 2)
    first, second = digits[:half], digits[half:2 * half]
    differ = labels[:half] != labels[half:2 * half]
    side_by_side = np.concatenate([first[:, :, 4:24], second[:, :, 4:24]], axis=2)
    return list(side_by_side), list(np.maximum(first, second)[differ])


def non_digits(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Images (N, 1, 28, 28) in [0, 1] of what is no single digit, in MNIST's form; two digits are two of `images`."""
    side_by_side, over_each_other = two_digits(images, labels)
    pages = {"printed letters and signs": letters(), "scribbles": scribbles(500),
             "two digits side by side": side_by_side, "two digits over each other": over_each_other}
    return {name: torch.stack([mnist_form(page) for page in group]) for name, group in pages.items()}


def classify(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The digit, its probability and its logit, for each of the float images (N, 1, 28, 28) in [0, 1]."""
    logits = predict(model, [(normalise(part), torch.zeros(len(part))) for part in images.split(200)])[0].cpu()
    largest, predicted = logits.max(1)
    return predicted, logits.softmax(1).amax(1), largest


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The accuracy in percent on float images (N, 1, 28, 28) in [0, 1]."""
    return round(100 * (classify(model, images)[0] == labels.cpu()).float().mean().item(), 4)


def distorted_accuracy(model: nn.Module, images: Tensor, labels: Tensor, name: str, strength: float) -> float:
    """The accuracy in percent on float images with a distortion, the mean of its variants."""
    return statistics.mean(accuracy(model, variant, labels) for variant in DISTORTIONS[name][1](images, strength))


def measure_sure(model: nn.Module, images: Tensor, labels: Tensor, others: dict[str, Tensor],
                 least_logit: float = -math.inf) -> dict[str, float]:
    """Percent of float images of digits that are answered rightly and surely, and of non-digits answered surely.

    An answer is sure if its probability is above `SURE` and its logit no less than `least_logit`.
    """
    shares = {}
    for name, group in {"digits, rightly": images, **others}.items():
        predicted, confidence, logit = classify(model, group)
        sure = (confidence > SURE) & (logit >= least_logit)
        if name == "digits, rightly":
            sure &= predicted == labels.cpu()
        shares[name] = round(100 * sure.float().mean().item(), 4)
    return shares


def measure_sample(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
    """What each run of `benchmarks.accuracy` records: a few distortions of a quarter of its images, and sureness."""
    images = images.float() / 255
    distorted = {f"{name} {strength}": distorted_accuracy(model, images[::4], labels[::4], name, strength)
                 for name, strength in SAMPLE}
    return {"distorted": distorted, "sure": measure_sure(model, images, labels, non_digits(images, labels))}


def read_mnist_c(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """The images and labels of each corruption in a folder of MNIST-C's layout."""
    corruptions = {}
    for path in sorted(folder.glob("*/test_images.npy")):
        images = torch.from_numpy(np.load(path)).view(-1, 1, 28, 28).float() / 255
        corruptions[path.parent.name] = images, torch.from_numpy(np.load(path.with_name("test_labels.npy"))).long()
    if not corruptions:
        sys.exit(f"there is no folder with test_images.npy in {folder}: give the folder of MNIST-C")
    return corruptions


def mean_by_corruption(networks: list[dict]) -> dict[str, float]:
    """The mean accuracy of several networks, as the results hold them, on each corruption of MNIST-C."""
    names = [name for name in networks[0]["mnist_c"] if name != "identity"]
    return {name: statistics.mean(network["mnist_c"][name] for network in networks) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist-c", type=Path, required=True, metavar="FOLDER", help="the folder of MNIST-C")
    corruptions = read_mnist_c(parser.parse_args().mnist_c)
    device = get_device()
    images, labels = load_mnist(train=False)
    images = images.to(device).float() / 255
    others = non_digits(images, labels)
    other_writers = other_handwriting()
    cases = [(name, strength) for name, (strengths, _) in DISTORTIONS.items() for strength in strengths]
    networks = {}
    for path in tqdm(sorted(NETWORKS.glob("*.pt")), desc="networks", file=sys.stdout):
        recipe, seed = path.stem.rsplit("-", 1)
        model = load_run(path)[0].to(device, memory_format=torch.channels_last)
        networks.setdefault(recipe, {})[seed] = {
            "distortions": [distorted_accuracy(model, images, labels, *case) for case in cases],
            "load_digits": accuracy(model, *other_writers),
            "mnist_c": {name: accuracy(model, *data) for name, data in corruptions.items()},
            "sure": measure_sure(model, images, labels, others),
            "sure and known": measure_sure(model, images, labels, others, KNOWN)}
    results = {"cases": cases, "networks": networks,
               "non_digits": {name: len(group) for name, group in others.items()},
               "mnist_c_images": {name: len(data[1]) for name, data in corruptions.items()},
               "environment": describe_environment(device)}
    RESULTS.write_text(json.dumps(results) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
