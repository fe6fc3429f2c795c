"""Reading digits that are not MNIST's: photographs, scans and drawings."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from model import IMAGE_SHAPE
from utils import ROOT, load_run, normalise

MAX_SIDE = 9_000  # pixels: larger images are refused rather than filling the memory
INK = 0.3  # share of the strongest contrast from which a pixel counts as ink; below lie paper, shadows and noise


def prepare_digit(image: Image.Image | np.ndarray | str | Path) -> dict[str, np.ndarray]:
    """Bring a photograph or drawing of one digit, on a plain background, to the form of MNIST's images.

    `image` is a PIL image, an array (H, W) or (H, W, 3 or 4) with values up to 1, 255 or 65,535, or a file; dark on
    light or light on dark. Returns the steps (H, W), in [0, 1]: the grey image; its ink, bright; the ink cut out; and,
    as LeCun, Cortes and Burges describe MNIST (yann.lecun.com/exdb/mnist), its longer side scaled to 20 pixels, and its
    centre of mass in the middle of 28×28 (14.5 pixels from the edge, as measured in MNIST itself). ValueError says what
    makes an image unreadable, OSError that a file is none.
    """
    if isinstance(image, (str, Path)):
        try:
            image = Image.open(image)
        except Image.DecompressionBombError as error:
            raise ValueError(f"{image} has too many pixels ({error}): shrink it to sides up to {MAX_SIDE:,}") from error
    if not isinstance(image, Image.Image) or image.mode[0] in "IF":  # modes of more than 8 bits
        pixels = np.squeeze(np.asarray(image)).astype(float)
        colours = pixels.shape[2:] in ((), (3,), (4,))
        if pixels.size == 0 or pixels.ndim not in (2, 3) or not colours or not np.isfinite(pixels).all():
            raise ValueError(f"an array of shape {pixels.shape} is no image, which is (H, W) or (H, W, 3 or 4), finite")
        top = next((top for top in (1, 255) if pixels.max() <= top), 65_535)
        image = Image.fromarray((pixels / top * 255).clip(0, 255).astype(np.uint8))
    if not 0 < min(image.size) <= max(image.size) <= MAX_SIDE:
        raise ValueError(f"the image has {image.width}×{image.height} pixels; each side may have 1 to {MAX_SIDE:,}")
    image = ImageOps.exif_transpose(image).convert("RGBA")
    image.thumbnail((1000, 1000))
    page = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    grey = np.asarray(page.convert("L"), dtype=np.float32) / 255
    ink = grey - np.median(grey)  # most of the image is background
    ink = ink if ink.max() >= -ink.min() else -ink
    if ink.max() < 0.1:
        raise ValueError(f"the image is uniform: its strongest contrast is {ink.max():.0%}, and ink needs 10 %")
    ink = (ink / ink.max()).clip(0)
    rows, columns = (np.flatnonzero((ink > INK).any(axis)) for axis in (1, 0))
    cut = ink[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
    height, width = (max(1, round(20 * side / max(cut.shape))) for side in cut.shape)
    small = np.asarray(Image.fromarray(cut).resize((width, height), Image.Resampling.BILINEAR))
    small = small / small.max()
    mass = small.sum()
    y_centre, x_centre = small.sum(1) @ np.arange(0.5, height) / mass, small.sum(0) @ np.arange(0.5, width) / mass
    top, left = np.clip(round(14.5 - y_centre), 0, 28 - height), np.clip(round(14.5 - x_centre), 0, 28 - width)
    whole = np.zeros((28, 28), dtype=np.float32)
    whole[top:top + height, left:left + width] = small
    return {"grey": grey, "ink": ink, "cut": cut, "as in MNIST": whole}


def predict_digit(image: Image.Image | np.ndarray | str | Path, model: nn.Module | None = None) -> tuple[int, Tensor]:
    """Read one digit, with the stored network unless another is given: the digit and the ten probabilities.

    What `image` may be, and which images raise ValueError, is said in `prepare_digit`.
    """
    pixels = torch.from_numpy(prepare_digit(image)["as in MNIST"]).view(1, *IMAGE_SHAPE)
    model = load_run(ROOT / "S6_MNIST.pt")[0] if model is None else model.eval()
    with torch.no_grad():
        probabilities = model(normalise(pixels).to(next(model.parameters()).device)).softmax(1)[0].cpu()
    return int(probabilities.argmax()), probabilities
