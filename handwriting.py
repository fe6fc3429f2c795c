"""Read handwritten digits in photographs, scans and drawings with a network that knows MNIST only.

`prepare_digits` finds ink, removes lines and frames, classifies each part, joins what is broken, splits what touches.
"""

import base64
import io
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from itertools import combinations
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy import ndimage
from scipy.signal import find_peaks
from scipy.spatial import cKDTree
from skimage.measure import label, perimeter_crofton, regionprops
from skimage.segmentation import clear_border
from torch import Tensor, nn

from mnist import normalise
from utils import ROOT, load_run, predict

# a path, a `data:` URL, a file's bytes, an open file, a PIL image, or an array or tensor of one, of any usual range
Picture = Image.Image | np.ndarray | Tensor | str | os.PathLike | bytes | BinaryIO
Box = tuple[float, float, float, float]  # left, top, right, bottom, in shares of the image's width and height

# What several functions ask, chosen on real pictures and on drawn ones, as are the numbers in the functions.
INK = 0.15  # of the paper's light, at least, ink lacks at its strongest (marks of paper 0.1), and of that, elsewhere
GRAIN = 5  # times as strong as the grain of paper or wood is ink, at least
DUST = 0.025  # of the picture's longer side: smaller is dust, thicker is no line; as a share of a mark, next to nothing
PART, MOST = 0.4, 0.8  # much of another size, and nearly all; an answer of which the network is sure has MOST


def open_image(picture: Picture) -> Image.Image:
    """Whatever holds an image, as an upright PIL image; ValueError or OSError says what is wrong with it."""
    if isinstance(picture, str) and picture.startswith("data:"):
        picture = base64.b64decode(picture.partition(",")[2])
    if isinstance(picture, (bytes, bytearray, memoryview)):
        picture = io.BytesIO(picture)
    if isinstance(picture, (str, os.PathLike)) or hasattr(picture, "read"):
        try:
            picture = Image.open(picture)
            picture.draft(None, (750, 750))  # of 12 megapixels, a JPEG is then decoded at 1008×756, which saves time
            picture.load()
        except (Image.UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, EOFError, TypeError) as error:
            raise ValueError(f"not an image that Pillow can open, such as JPEG or PNG: {error}") from error
    image = picture if isinstance(picture, Image.Image) else array_image(picture)
    if not min(image.size):
        raise ValueError("the image has no pixels")
    with suppress(SyntaxError):  # of damaged EXIF data
        image = ImageOps.exif_transpose(image)
    return array_image(np.asarray(image)) if image.mode[0] in "IF" else image  # these have more than 8 bits


def array_image(array: np.ndarray | Tensor) -> Image.Image:
    """An array or tensor, also with sides of 1, as an image; unless it has 8 bits, its largest value is white."""
    if isinstance(array, Tensor):
        array = array.detach().cpu().float().numpy()
    pixels = np.squeeze(array)
    if pixels.ndim == 3 and len(pixels) == 3 and pixels.shape[2] > 4:
        pixels = pixels.transpose(1, 2, 0)
    is_image = pixels.ndim in (2, 3) and pixels.shape[2:] <= (4,)
    if pixels.dtype.kind not in "buif" or not is_image or not np.isfinite(pixels).all():
        raise ValueError(f"a {type(array).__name__} of shape {pixels.shape} is not one image: give a path, a PIL image "
                         "or finite values of shape (H, W), (H, W, 1 to 4) or (1 or 3, H, W)")
    if pixels.dtype != np.uint8:
        pixels = pixels.astype(np.float32) - min(0, pixels.min())
        pixels = (pixels * (255 / max(pixels.max(), 1e-6))).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels))


def load_colours(picture: Picture) -> np.ndarray:
    """An image as float32 (3, H, W) in [0, 1]; a digit of 3 % of a photo's side still has 30 of its 1,000 pixels.

    Behind what is transparent lies white, or black where what is visible is bright.
    """
    image = open_image(picture)
    scale = np.clip(max(image.size), 280, 1000) / max(image.size)
    size = [max(1, round(length * scale)) for length in image.size]
    smooth = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BILINEAR
    image = image.convert("RGBA").resize(size, smooth, reducing_gap=2)
    *colours, opacity = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255
    colours = np.stack(colours) * opacity
    return colours + (colours.mean() < 0.5 * opacity.mean()) * (1 - opacity)


def resize(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """An image (H, W) at another shape, smoothly."""
    smooth = Image.Resampling.BICUBIC if shape[0] > image.shape[0] else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image.astype(np.float32)).resize(shape[::-1], smooth))


def shrink(image: np.ndarray, longer: int) -> np.ndarray:
    """An image (H, W) whose longer side has about `longer` pixels."""
    return resize(image, tuple(max(1, round(length * longer / max(image.shape))) for length in image.shape))


def find_paper(channel: np.ndarray, window: int) -> np.ndarray:
    """The light of the paper at each pixel of a channel (H, W): what is darker and narrower than a window is filled.

    This is morphological closing, at 128 pixels. It follows the edges of shadows, sheets and tables, which are wider.
    """
    light = np.pad(ndimage.median_filter(shrink(channel, 128), 3), window, mode="edge")
    paper = ndimage.grey_closing(light, window)[window:-window, window:-window]
    return resize(ndimage.minimum_filter(paper, 5), channel.shape)  # edges are no ink


def missing_light(colours: np.ndarray) -> np.ndarray:
    """The share of the paper's light that is missing at each pixel (H, W) of an image (3, H, W)."""
    window = 33  # of 128 pixels: wider than a stroke, narrower than a sheet
    grey = shrink(colours.mean(axis=0), 128)
    detail = grey - ndimage.uniform_filter(grey, window)
    if (detail.clip(0) ** 3).sum() > 2 * ((-detail).clip(0) ** 3).sum():  # a little strong ink counts
        colours = 1 - colours  # so that light ink is dark
    paper = np.stack([find_paper(channel, window) for channel in colours])
    if (paper - colours > INK * paper).any(axis=0).mean() > 0.1:  # a bold drawing: its light is taken as even
        paper = np.median(colours, axis=(1, 2), keepdims=True)
    share = ((paper - colours) / paper.clip(0.2)).max(axis=0)
    return ndimage.gaussian_filter(share.clip(0, 1), 1)


def find_ink(share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masks (H, W) of what is stronger than the paper's grain, and of the ink: than a part of the strongest nearby.

    So pencil is read beside a felt pen, and the faint end of a stroke.
    """
    window = max(share.shape) // 10
    paper = share < 0.1
    grain = ndimage.uniform_filter(share * paper, window) / ndimage.uniform_filter(paper * 1.0, window).clip(0.01)
    strength = share / ndimage.maximum_filter(share, window // 10 * 2 + 1).clip(1e-3)
    visible = share > np.maximum(0.05, GRAIN * grain)
    return visible, visible & (strength > INK)


def thickness(line) -> float:
    """The usual thickness of a horizontal line, a region."""
    return np.median(line.image.sum(axis=0))


def find_lines(mask: np.ndarray, span: float, thickest: float, length: float) -> list:
    """The thin, nearly horizontal lines in a mask (H, W), made of runs of `length` pixels, as regions."""
    thick = ndimage.maximum_filter(mask, (3, 1))  # so that a line may lean a little
    lines = regionprops(label(ndimage.grey_opening(thick, (1, int(length) | 1)) & mask))
    return [line for line in lines if line.image.shape[1] >= span and thickness(line) <= thickest
            and line.image.shape[0] <= thickness(line) + 0.1 * line.image.shape[1]]


def erase(mask: np.ndarray, lines: list) -> np.ndarray:
    """A mask (H, W) without these horizontal lines, but with the strokes that cross them."""
    tall = int(2 * max(map(thickness, lines), default=0) + 2) | 1
    strokes = ndimage.grey_opening(mask, (tall, 1), mode="constant")
    drawn = np.zeros_like(mask)
    for line in lines:
        drawn[line.slice] |= line.image
    return mask & (strokes | ~ndimage.binary_dilation(drawn, np.ones((3, 1))))


def remove_lines(visible: np.ndarray, ink: np.ndarray) -> np.ndarray:
    """The ink (H, W) without the lines that begin at an edge of the image, and go on in all that is visible (H, W)."""
    side = max(ink.shape)
    for _ in range(2):  # horizontal, then vertical lines
        lines = find_lines(visible, 0.1 * side, DUST * side, 0.1 * side)
        lines = [line for line in lines if min(line.bbox[1], ink.shape[1] - line.bbox[3]) < 3]
        ink, visible = erase(ink, lines).T, visible.T
    return ink


def stroke_width(mask: np.ndarray) -> float:
    """The mean width, in pixels, of the strokes in a mask: twice their area over the length of their outline."""
    return 2 * mask.sum() / perimeter_crofton(mask, directions=2)


def surrounds(frame, mark) -> bool:
    """Whether a region has pixels to the left and to the right of a smaller one, and in its columns."""
    top, left, bottom, right = np.subtract(mark.bbox, frame.bbox[:2] * 2).clip(0)
    beside = frame.image[(5 * top + 3 * bottom) // 8:(3 * top + 5 * bottom) // 8]  # the rows at its centre
    is_around = beside[:, :left].any() and beside[:, right:].any() and frame.image[:, left:right].any()
    return is_around and PART * min(frame.image.shape) < max(mark.image.shape) < max(frame.image.shape)


def find_regions(mask: np.ndarray, gap: int) -> list:
    """The parts of a mask (H, W) that are larger than dust, the largest first; 2 · `gap` pixels do not divide them."""
    regions = regionprops(label(ndimage.binary_dilation(mask, iterations=gap)) * mask)
    regions = [region for region in regions if max(region.image.shape) > DUST * max(mask.shape)]
    return sorted(regions, key=lambda region: -max(region.image.shape))[:150]  # a carpet has no end of them


def remove_frames(ink: np.ndarray) -> np.ndarray:
    """The ink (H, W) without the boxes, circles, combs and tables around marks.

    A box, a comb or a table has a straight line across and two or more down, and what touches these lines stays.
    """
    regions = find_regions(ink, gap=1)
    ink = ink.copy()
    for frame in regions:
        height, width = frame.image.shape
        across = find_lines(frame.image, MOST * width, DUST * max(ink.shape), width / 8)
        tall = height * (PART if len(across) == 1 else MOST)  # the teeth of a comb are short
        down = find_lines(frame.image.T, tall, DUST * max(ink.shape), tall / 6)
        if across and len(down) > 1:
            ink[frame.slice] &= ~frame.image | erase(erase(frame.image, across).T, down).T
        elif any(surrounds(frame, region) for region in regions):
            ink[frame.slice] &= ~frame.image
    return ink


def find_parts(ink: np.ndarray, share: np.ndarray) -> list:
    """The connected parts of the ink (H, W) that may be digits, as regions; at the image's edge only if alone, cut off.

    Marks of paper are fainter, those of wood not much stronger than what is around, printed rules thinner, and edges of
    shadows less sharp (0.06 of their depth a pixel; small digits 0.08).
    """
    parts = find_regions(clear_border(ink, 2), gap=3)
    parts = parts or [part for part in find_regions(ink, gap=3) if part.area > DUST * ink.size]
    around = shrink(share * ~ndimage.binary_dilation(ink, iterations=4), 64)
    faint = np.maximum(INK, GRAIN * resize(ndimage.percentile_filter(around, 75, 17), ink.shape))
    slope = ndimage.gaussian_gradient_magnitude(share, 1)
    parts = [part for part in parts
             if (strong := share[part.slice][part.image].max()) > np.median(faint[part.slice][part.image])
             and np.percentile(slope[part.slice][part.image], 90) > 0.065 * strong]
    return [part for part in parts if part.axis_minor_length > DUST * part.axis_major_length] or parts


def centre(ink: np.ndarray) -> np.ndarray:
    """The box of a digit's ink (H, W) in MNIST's form (28, 28): 20 pixels high or wide, around its centre of mass.

    So LeCun, Cortes and Burges describe it; on average MNIST's own lie at pixel 14.
    """
    small = shrink(ink[ndimage.find_objects(ink > 0.5, max_label=1)[0]], 20).clip(0, 1)
    corner = np.floor(14.5 - np.array(ndimage.center_of_mass(small)))
    top, left = corner.clip(0, 28 - np.array(small.shape)).astype(int)
    image = np.zeros((28, 28), np.float32)
    image[top:top + small.shape[0], left:left + small.shape[1]] = small
    return image


def to_mnist(ink: np.ndarray) -> np.ndarray:
    """MNIST's form (28, 28) of the ink (H, W) of a digit, both in [0, 1], with strokes of MNIST's usual width.

    At 80 pixels the outline is moved until strokes are 2.3 to 3.4 of 20 pixels wide: the usual widths in MNIST.
    """
    ink = ndimage.maximum_filter(ink, max(1, max(ink.shape) // 80))  # so that thin lines are not lost
    solid = np.pad(shrink(ink, 80) > 0.5, 16)
    width = stroke_width(solid)
    outward = (np.clip(width, 2.3 * 4, 3.4 * 4) - width) / 2
    distance = ndimage.distance_transform_edt(solid) - ndimage.distance_transform_edt(~solid)
    return centre((distance + outward + 0.5).clip(0, 1))


class Mark(NamedTuple):
    """What may be a digit."""

    pixels: np.ndarray  # (n, 2)
    box: tuple[int, int, int, int]  # left, top, right, bottom
    ink: np.ndarray  # within the box; 1 along the middle of a stroke
    digit: np.ndarray  # (28, 28)
    probabilities: Tensor  # (10,)
    sure: float  # the largest of these
    size: int  # pixels of its longer side


@cache
def stored_network() -> nn.Module:
    """The network in S6_MNIST.pt."""
    return load_run(ROOT / "S6_MNIST.pt")[0]


def classify(digit: np.ndarray, model: nn.Module) -> Tensor:
    """The network's ten probabilities for a digit (28, 28) in [0, 1]."""
    logits, _ = predict(model, [(normalise(torch.from_numpy(digit).view(1, 1, 28, 28)), torch.zeros(1))])
    return logits[0].softmax(0).cpu()


def read_mark(share: np.ndarray, model: nn.Module, pixels: np.ndarray) -> Mark:
    """Classify these pixels (n, 2) of a picture with this missing light (H, W)."""
    top, left = pixels.min(axis=0).tolist()
    bottom, right = (pixels.max(axis=0) + 1).tolist()
    mask = np.zeros((bottom - top, right - left), bool)
    mask[pixels[:, 0] - top, pixels[:, 1] - left] = True
    ink = (share[top:bottom, left:right] * ndimage.binary_dilation(mask)).astype(np.float32)
    ink /= ndimage.maximum_filter(ink, int(2 * stroke_width(mask)) + 1).clip(1e-3)
    digit = to_mnist(ink)
    probabilities = classify(digit, model)
    sure = probabilities.max().item()
    return Mark(pixels, (left, top, right, bottom), ink, digit, probabilities, sure, max(ink.shape))


def join_broken(marks: list[Mark], read: Callable) -> list[Mark]:
    """Join marks that are near each other, not both as high as the whole, if the network is surer of it."""
    marks = sorted(marks, key=lambda mark: -mark.size)
    for first, second in combinations(marks, 2):
        pixels = np.concatenate([first.pixels, second.pixels])
        height, width = np.ptp(pixels, axis=0) + 1
        is_shape = width < height / MOST
        is_part = min(len(first.ink), len(second.ink)) < MOST * height
        if is_shape and is_part and cKDTree(first.pixels).query(second.pixels)[0].min() < 0.2 * max(height, width):
            both = read(pixels)
            if both.sure > max(first.sure, second.sure):
                return join_broken([both, *(mark for mark in marks if mark is not first and mark is not second)], read)
    return marks


def split_touching(mark: Mark, read: Callable) -> list[Mark]:
    """Cut a wide mark where there is little ink, upright or aslant, if the network is surer that it is two digits."""
    height, width = mark.ink.shape
    if width < MOST * height:
        return [mark]
    ways = [[mark]]
    for slant in (-PART, 0, PART):  # columns to the right for each row
        columns = np.round(mark.pixels[:, 1] + slant * mark.pixels[:, 0]).astype(int)
        columns -= columns.min()
        ink = ndimage.uniform_filter1d(np.bincount(columns).astype(float), 3)
        cuts, _ = find_peaks(-ink, height=-PART * height, distance=max(1, height // 8))
        if width < height / MOST:  # one stroke holds two digits, more than one the halves of a digit
            cuts = [cut for cut in cuts if np.all(np.diff(np.sort(mark.pixels[columns == cut, 0])) == 1)]
        for cut in cuts:
            sides = [mark.pixels[columns < cut], mark.pixels[columns >= cut]]
            heights, widths = np.transpose([np.ptp(side, axis=0) + 1 for side in sides])
            if np.all(heights > np.maximum(PART * height, MOST * widths)):
                ways.append([read(side) for side in sides])
    best = max(ways, key=lambda pieces: np.prod([piece.sure for piece in pieces]))
    return [part for piece in best for part in split_touching(piece, read)] if len(best) > 1 else best


def reading_order(marks: list[Mark]) -> list[Mark]:
    """Rows from top to bottom, in each from left to right; a row may lean: each mark is beside the one before it."""
    rows: list[list[Mark]] = []
    for mark in sorted(marks, key=lambda mark: mark.box):
        for row in rows:
            (_, top, _, bottom), (_, last_top, _, last_bottom) = mark.box, row[-1].box
            if min(bottom, last_bottom) - max(top, last_top) > PART * min(bottom - top, last_bottom - last_top):
                row.append(mark)
                break
        else:
            rows.append([mark])
    return [mark for row in sorted(rows, key=lambda row: np.mean([mark.box[1] for mark in row])) for mark in row]


def prepare_digits(image: Picture, model: nn.Module | None = None) -> tuple[dict[str, np.ndarray], list[Mark]]:
    """The steps that all marks of an image share, and the marks in reading order; see `prepare_digit`.

    ValueError says what is wrong with the image, or that it has no marks; OSError that a file is missing or damaged.
    """
    colours = load_colours(image)
    share = missing_light(colours)
    ink = remove_frames(remove_lines(*find_ink(share)))
    read = partial(read_mark, share, model or stored_network())
    marks = join_broken([read(part.coords) for part in find_parts(ink, share)], read)
    marks = [piece for mark in marks for piece in split_touching(mark, read)]
    usual = max([mark.size * mark.sure for mark in marks], default=0)  # of the largest, if sure
    marks = [mark for mark in marks if mark.size > PART * usual and len(mark.ink) > PART * mark.ink.shape[1]]
    if not marks:
        raise ValueError("no digit: nothing of a digit's size and shape is darker or brighter than the paper")
    return {"grey": colours.mean(axis=0), "missing light": share, "ink": ink.astype(np.float32)}, reading_order(marks)


def the_digit(marks: list[Mark]) -> Mark:
    """The one mark, or the only one of which the network is sure, if none is much larger; ValueError says how many."""
    sure = [mark for mark in marks if mark.sure > MOST or len(marks) == 1]
    if len(sure) != 1 or sure[0].size < MOST * max(mark.size for mark in marks):
        raise ValueError(f"{len(marks)} digits: cut out one of them, or call predict_digits, which classifies each")
    return sure[0]


def prepare_digit(image: Picture, model: nn.Module | None = None) -> dict[str, np.ndarray]:
    """The steps from an image to MNIST's form of the digit in it, float32 (H, W) in [0, 1].

    They are the image in grey, the share of the paper's light that is missing, where that is ink, without lines, the
    ink in the digit's box, and the digit (28, 28). The errors are those of `predict_digit`.
    """
    steps, marks = prepare_digits(image, model)
    mark = the_digit(marks)
    return steps | {"mark": mark.ink, "digit": mark.digit}


def predict_digit(image: Picture, model: nn.Module | None = None) -> tuple[int, Tensor]:
    """Classify the one digit in an image, with the stored network or another: the digit and its ten probabilities.

    ValueError says what is wrong with the image or seen in it instead; OSError that a file is missing or damaged.
    """
    _, marks = prepare_digits(image, model)
    probabilities = the_digit(marks).probabilities
    return int(probabilities.argmax()), probabilities


def predict_digits(image: Picture, model: nn.Module | None = None) -> list[tuple[int, Tensor, Box]]:
    """Classify all that may be digits, in reading order: the digit, its ten probabilities, and its box.

    What cannot be read should have a low probability. Left out is what is much smaller than the largest sure digit, or
    touches the image's edge, and all beyond 150 marks. The errors are those of `prepare_digits`.
    """
    steps, marks = prepare_digits(image, model)
    size = steps["grey"].shape[::-1] * 2
    return [(int(mark.probabilities.argmax()), mark.probabilities, tuple(np.divide(mark.box, size).tolist()))
            for mark in marks]
