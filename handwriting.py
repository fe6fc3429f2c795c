"""Read handwritten digits in photographs, scans and drawings with a network that knows MNIST only.

The steps stand in `prepare_digits`: find the ink, take lines and frames away, let the network classify each part, join
what is broken, split what touches, and keep the marks of a digit's size.
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
from skimage.filters import apply_hysteresis_threshold, rank, threshold_otsu
from skimage.measure import label, perimeter_crofton, regionprops
from skimage.morphology import convex_hull_image, disk
from skimage.segmentation import clear_border
from torch import Tensor, nn

from mnist import normalise
from model import IMAGE_SHAPE
from utils import ROOT, load_run, predict

# a path, a `data:` URL, a file's bytes, an open file, a PIL image, or an array or tensor (H, W), (H, W, 1 to 4) or
# (1 or 3, H, W), also with further sides of 1, of any usual range
Picture = Image.Image | np.ndarray | Tensor | str | os.PathLike | bytes | BinaryIO
Box = tuple[float, float, float, float]  # left, top, right, bottom, in shares of the image's width and height


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
        except (Image.UnidentifiedImageError, SyntaxError, EOFError, TypeError) as error:
            raise ValueError(f"not an image that Pillow can open, such as JPEG or PNG: {error}") from error
    image = picture if isinstance(picture, Image.Image) else array_image(picture)
    if not min(image.size):
        raise ValueError("the image has no pixels")
    with suppress(SyntaxError):  # of damaged EXIF data
        image = ImageOps.exif_transpose(image)
    return array_image(np.asarray(image)) if image.mode[0] in "IF" else image  # these have more than 8 bits


def array_image(array: np.ndarray | Tensor) -> Image.Image:
    """An array or tensor as an image; unless it has 8 bits, white is its largest value."""
    if isinstance(array, Tensor):
        array = array.detach().cpu().float().numpy()
    pixels = np.squeeze(array)
    if pixels.ndim == 3 and len(pixels) == 3 and pixels.shape[2] > 4:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.dtype.kind not in "buif" or pixels.ndim not in (2, 3) or pixels.shape[2:] > (4,):
        raise ValueError(f"a {type(array).__name__} of shape {pixels.shape} is not one image: give a path, PIL image, "
                         "or an array or tensor of shape (H, W), (H, W, 1 to 4) or (1 or 3, H, W)")
    if not np.isfinite(pixels).all():
        raise ValueError("the image has values that are not finite")
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
    behind = float(colours.mean() < 0.5 * opacity.mean())
    return colours + behind * (1 - opacity)


def resize(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """An image (H, W) at another shape, smoothly."""
    smooth = Image.Resampling.BICUBIC if shape[0] > image.shape[0] else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image.astype(np.float32)).resize(shape[::-1], smooth))


def shrink(image: np.ndarray, longer: int) -> np.ndarray:
    """An image (H, W) whose longer side has about `longer` pixels."""
    return resize(image, tuple(max(1, round(length * longer / max(image.shape))) for length in image.shape))


def cover_table(colours: np.ndarray) -> np.ndarray:
    """Give what is around a light sheet in the picture (3, H, W), the table and a thumb, the sheet's colour.

    The sheet is the convex middle of the brighter half, without what is narrower than half of it.
    """
    small = shrink(colours.mean(axis=0), 128)
    bright = small >= threshold_otsu(small)
    inside = ndimage.distance_transform_edt(ndimage.binary_fill_holes(bright))
    near = ndimage.distance_transform_edt(inside <= inside.max() / 2) < 0.7 * inside.max()
    area = convex_hull_image(bright & near)
    if not 0.12 < area.mean() < 1 or bright[area].mean() < 0.85:
        return colours
    edge = area & ndimage.binary_dilation(~area, iterations=4)
    around = ~area & ndimage.binary_dilation(area, iterations=4)
    at_border = np.concatenate([area[0], area[-1], area[:, 0], area[:, -1]]).mean() > 0.1
    if np.median(small[edge]) < (2 if at_border else 1.3) * np.median(small[around]):
        return colours
    inner = ndimage.binary_erosion(area, iterations=2, border_value=1)
    nearest = ndimage.distance_transform_edt(~inner, return_distances=False, return_indices=True)
    filled = [resize(shrink(channel, 128)[tuple(nearest)], channel.shape) for channel in colours]
    return np.where(resize(inner, colours.shape[1:]) > 0.5, colours, filled)


def find_ground(channel: np.ndarray) -> np.ndarray:
    """The light (h, w) of the paper in a channel (H, W), of 128 pixels: the median in a disc, then of what is no ink.

    The disc is wider than two strokes; a median follows the straight edge of a shadow.
    """
    radius = 34
    small = (shrink(channel, 128).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    padded = np.pad(small, radius, mode="symmetric")
    rough = rank.median(padded, disk(radius))
    paper = abs(rough.astype(int) - padded) < 10
    filled = np.where(paper, padded, rough)[radius:-radius, radius:-radius]
    light = np.pad(filled.astype(float), radius, mode="reflect", reflect_type="odd").clip(0, 255)  # goes on as it does
    fine = rank.median(light.astype(np.uint8), disk(radius // 2), mask=paper)
    return np.where(fine > 0, fine, rough)[radius:-radius, radius:-radius] / np.float32(255)


def missing_light(colours: np.ndarray) -> np.ndarray:
    """The share of the paper's light that is missing at each pixel (H, W), or in excess where ink is the brighter.

    Where a bold digit fills the picture, as in a drawing, the light is taken as even.
    """
    share = light_difference(colours, [find_ground(channel) for channel in colours])
    if (share > 0.2).mean() > 0.08:
        share = light_difference(colours, [np.full((8, 8), np.median(channel)) for channel in colours])
    return ndimage.gaussian_filter(share, 1)


def light_difference(colours: np.ndarray, grounds: list[np.ndarray]) -> np.ndarray:
    """The share of the light of the grounds, one of each channel, that is missing (H, W), or in excess."""
    shape = colours.shape[1:]
    low = np.stack([resize(ndimage.minimum_filter(ground, 5), shape) for ground in grounds])  # edges are no ink
    high = np.stack([resize(ndimage.maximum_filter(ground, 5), shape) for ground in grounds])
    missing = ((low - colours) / low.clip(0.2)).max(axis=0).clip(0, 1)
    excess = ((colours - high) / (1 - high).clip(0.3)).max(axis=0).clip(0, 1)
    return excess if (excess**3).sum() > 2 * (missing**3).sum() else missing  # strong ink counts


def find_ink(share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masks (H, W) of what is stronger than the paper's grain, and of the ink: than a part of the strongest nearby.

    So pencil is read beside a felt pen, and a stroke's faint end (0.15) where it joins the rest of it (0.35).
    """
    side = max(share.shape)
    window = int(0.1 * side)
    paper = share < 0.1
    grain = ndimage.uniform_filter(share * paper, window) / ndimage.uniform_filter(paper * 1.0, window).clip(0.01)
    strength = share / ndimage.maximum_filter(share, int(0.01 * side) * 2 + 1).clip(1e-3)
    visible = share > np.maximum(0.05, 5 * grain)
    return visible, apply_hysteresis_threshold(np.where(visible, strength, 0), 0.15, 0.35)


def thickness(line) -> float:
    """The usual thickness of a horizontal line, a region."""
    return np.median(line.image.sum(axis=0))


def find_lines(mask: np.ndarray, span: float, thickest: float, length: float) -> list:
    """The thin, nearly horizontal lines in a mask (H, W), made of runs of `length` pixels, as regions."""
    length = max(int(length), 15) | 1
    thick = ndimage.maximum_filter(mask, (3, 1))  # so that a line may lean a little
    lines = regionprops(label(ndimage.grey_opening(thick, (1, length)) & mask))
    return [line for line in lines if line.image.shape[1] >= max(span, length) and thickness(line) <= thickest
            and line.image.shape[0] <= thickness(line) + 0.08 * line.image.shape[1]]


def erase(mask: np.ndarray, lines: list) -> np.ndarray:
    """A mask (H, W) without these horizontal lines, but with the strokes that cross them."""
    if not lines:
        return mask
    tall = int(2 * max(map(thickness, lines)) + 2) | 1
    strokes = ndimage.grey_opening(mask, (tall, 1), mode="constant")
    drawn = np.zeros_like(mask)
    for line in lines:
        drawn[line.slice] |= line.image
    return mask & (strokes | ~ndimage.binary_dilation(drawn, np.ones((3, 1))))


def remove_lines(ink: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """The ink (H, W) without the lines that begin at an edge of the image, and go on in all that is visible (H, W)."""
    side = max(ink.shape)
    for _ in range(2):  # horizontal, then vertical lines
        lines = find_lines(visible, 0.1 * side, 0.015 * side + 2, 0.1 * side)
        near, far = 0.02 * side, ink.shape[1] - 0.02 * side
        ink = erase(ink, [line for line in lines if line.bbox[1] < near or line.bbox[3] > far]).T
        visible = visible.T
    return ink


def stroke_width(mask: np.ndarray) -> float:
    """The mean width, in pixels, of the strokes in a mask: twice their area over the length of their outline."""
    return 2 * mask.sum() / perimeter_crofton(mask, directions=2)


def surrounds(frame, mark) -> bool:
    """Whether a region has pixels to the left and to the right, and above or below, of a smaller one."""
    top, left, bottom, right = np.subtract(mark.bbox, frame.bbox[:2] * 2).clip(0)
    middle = slice((5 * top + 3 * bottom) // 8, (3 * top + 5 * bottom) // 8)  # the rows at its centre
    beside, above = frame.image[middle], frame.image[:, left:right]
    is_around = beside[:, :left].any() and beside[:, right:].any() and above.any()
    return is_around and 0.2 * min(frame.image.shape) < longer_side(mark) < longer_side(frame)


def longer_side(region) -> int:
    """The height or the width of a region's box."""
    return max(region.image.shape)


def find_regions(mask: np.ndarray, gap: int) -> list:
    """The parts of a mask (H, W) that are larger than dust, the largest first; 2 · `gap` pixels do not divide them."""
    regions = regionprops(label(ndimage.binary_dilation(mask, iterations=gap)) * mask)
    regions = [region for region in regions if longer_side(region) > max(11, 0.02 * max(mask.shape))]
    return sorted(regions, key=longer_side, reverse=True)[:100]  # a screen or a carpet has no end of them


def remove_frames(ink: np.ndarray) -> np.ndarray:
    """The ink (H, W) without the boxes, circles, combs and tables around marks.

    A box, a comb or a table has a straight line across and two or more down, and what touches these lines stays.
    """
    regions = find_regions(ink, gap=1)
    ink = ink.copy()
    for frame in regions[:20]:
        height, width = frame.image.shape
        thickest = 0.06 * max(height, width)
        across = find_lines(frame.image, 0.8 * width, thickest, width / 8)
        tall = height * (0.35 if len(across) == 1 else 0.8)  # the teeth of a comb are short
        down = find_lines(frame.image.T, tall, thickest, tall / 6)
        if across and len(down) > 1:
            ink[frame.slice] &= ~frame.image | erase(erase(frame.image, across).T, down).T
        elif any(surrounds(frame, region) for region in regions):
            ink[frame.slice] &= ~frame.image
    return ink


def find_parts(ink: np.ndarray, share: np.ndarray) -> list:
    """The connected parts of the ink (H, W) that may be digits, as regions.

    What touches the image's edge is something else, unless it alone is there: a digit that is cut off. A printed rule
    is thinner than a pen's line of its length. The paper's own marks are faint (below 0.1 of its light; real pencil has
    0.4); dots, creases and the back of the page are fainter than the rest; the edge of a shadow is less sharp (0.06 of
    its depth a pixel; a digit of 28 pixels, enlarged tenfold, has 0.08).
    """
    parts = find_regions(clear_border(ink, max(ink.shape) // 200), gap=3)
    parts = parts or [part for part in find_regions(ink, gap=3) if part.area_bbox > 0.4 * ink.size]
    strength = [share[part.slice][part.image].max() for part in parts]
    slope = ndimage.gaussian_gradient_magnitude(share, 1)
    parts = [part for part, strong in zip(parts, strength, strict=True) if strong > max(0.15, 0.2 * max(strength))
             and np.percentile(slope[part.slice][part.image], 90) > 0.065 * strong]
    return [part for part in parts if part.axis_minor_length > 0.025 * part.axis_major_length] or parts


def centre(ink: np.ndarray) -> np.ndarray:
    """The box of a digit's ink (H, W) in MNIST's form (28, 28): 20 pixels high or wide, around its centre of mass.

    So LeCun, Cortes and Burges describe it; on average MNIST's centres lie at 14.5.
    """
    box = ndimage.find_objects(ink > 0.5, max_label=1)[0]
    if box is None:
        raise ValueError("no digit: no ink")
    small = shrink(ink[box], 20).clip(0, 1)
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
    """What may be a digit: its pixels (n, 2), box, ink (bottom - top, right - left), and form in MNIST (28, 28)."""

    pixels: np.ndarray
    top: int
    left: int
    bottom: int
    right: int
    ink: np.ndarray  # 1 along the middle of a stroke
    digit: np.ndarray
    probabilities: Tensor  # (10,)
    sure: float  # the largest of these
    size: int  # pixels of its longer side


@cache
def stored_network() -> nn.Module:
    """The network in S6_MNIST.pt."""
    return load_run(ROOT / "S6_MNIST.pt")[0]


def classify(digit: np.ndarray, model: nn.Module) -> Tensor:
    """The network's ten probabilities for a digit (28, 28) in [0, 1]."""
    images = normalise(torch.from_numpy(digit).view(1, *IMAGE_SHAPE))
    logits, _ = predict(model, [(images, torch.zeros(1))])
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
    return Mark(pixels, top, left, bottom, right, ink, digit, probabilities, sure, max(ink.shape))


def join_broken(marks: list[Mark], read: Callable) -> list[Mark]:
    """Join marks that are near each other where the network is no less sure of both together."""
    marks = sorted(marks, key=lambda mark: -mark.size)
    for first, second in combinations(marks, 2):
        pixels = np.concatenate([first.pixels, second.pixels])
        height, width = np.ptp(pixels, axis=0) + 1
        size = max(height, width)
        is_shape = width < 1.3 * height and size < 2 * first.size
        if is_shape and cKDTree(first.pixels).query(second.pixels)[0].min() < 0.2 * size:
            both = read(pixels)
            if both.sure > max(first.sure, second.sure) - 0.03:
                return join_broken([both, *(mark for mark in marks if mark is not first and mark is not second)], read)
    return marks


def split_touching(mark: Mark, read: Callable) -> list[Mark]:
    """Cut a wide mark where there is little ink, upright or aslant, if the network is surer of the two pieces."""
    height, width = mark.ink.shape
    if width < 0.8 * height:
        return [mark]
    best, pieces = mark.sure, []
    for slant in (-0.4, 0, 0.4):  # columns to the right for each row
        columns = np.round(mark.pixels[:, 1] + slant * mark.pixels[:, 0]).astype(int)
        columns -= columns.min()
        ink = ndimage.uniform_filter1d(np.bincount(columns).astype(float), 3)
        cuts, _ = find_peaks(-ink, height=-0.4 * height, distance=max(1, height // 8))
        if width < 1.3 * height:  # two digits that touch are held by one stroke, the halves of one by more
            cuts = [cut for cut in cuts if np.all(np.diff(np.sort(mark.pixels[columns == cut, 0])) == 1)]
        for cut in cuts:
            sides = [mark.pixels[columns < cut], mark.pixels[columns >= cut]]
            heights, widths = np.transpose([np.ptp(side, axis=0) + 1 for side in sides])
            if np.all(heights > np.maximum(0.5 * height, 0.8 * widths)):
                both = [read(side) for side in sides]
                score = both[0].sure * both[1].sure
                if score > best:
                    best, pieces = score, both
    return [part for piece in pieces for part in split_touching(piece, read)] or [mark]


def reading_order(marks: list[Mark]) -> list[Mark]:
    """Rows from top to bottom, in each from left to right; a row may lean: each mark is beside the one before it."""
    rows: list[list[Mark]] = []
    for mark in sorted(marks, key=lambda mark: mark.left):
        for row in rows:
            overlap = min(mark.bottom, row[-1].bottom) - max(mark.top, row[-1].top)
            if overlap > 0.4 * min(len(mark.ink), len(row[-1].ink)):
                row.append(mark)
                break
        else:
            rows.append([mark])
    rows.sort(key=lambda row: np.mean([mark.top for mark in row]))
    return [mark for row in rows for mark in row]


class Preparation(NamedTuple):
    """The steps from an image to MNIST's form, each a float32 array (H, W) in [0, 1]."""

    grey: np.ndarray  # the image
    missing_light: np.ndarray  # the share of the paper's light that is missing
    ink: np.ndarray  # where it is ink, lines taken away
    mark: np.ndarray  # the ink of the digit, within its box
    digit: np.ndarray  # (28, 28): strokes of MNIST's weight, 20 pixels high or wide, around their centre of mass


def prepare_digits(image: Picture, model: nn.Module | None = None) -> tuple[list[np.ndarray], list[Mark]]:
    """The first three steps of `Preparation`, which all marks share, and the marks in reading order.

    ValueError says what is wrong with the image, or that it has no marks; OSError that a file is missing or damaged.
    """
    colours = load_colours(image)
    share = missing_light(cover_table(colours))
    visible, ink = find_ink(share)
    ink = remove_frames(remove_lines(ink, visible))
    read = partial(read_mark, share, model or stored_network())
    marks = join_broken([read(part.coords) for part in find_parts(ink, share)], read)
    marks = [piece for mark in marks for piece in split_touching(mark, read)]
    usual = max([mark.size * mark.sure for mark in marks], default=0)  # a digit's size
    marks = [mark for mark in marks if mark.size > 0.35 * usual and mark.right - mark.left < 3 * len(mark.ink)]
    if not marks:
        raise ValueError("no digit: nothing of a digit's size and shape is darker or brighter than the paper")
    return [step.astype(np.float32) for step in (colours.mean(axis=0), share, ink)], reading_order(marks)


def the_digit(marks: list[Mark]) -> Mark:
    """The one mark, or the only one of which the network is sure, if it is the largest; ValueError says how many."""
    sure = [mark for mark in marks if mark.sure > 0.8] if len(marks) > 1 else marks
    if len(sure) != 1 or sure[0].size < 0.8 * max(mark.size for mark in marks):
        raise ValueError(f"{len(marks)} digits: cut out one of them, or call predict_digits, which classifies each")
    return sure[0]


def prepare_digit(image: Picture, model: nn.Module | None = None) -> Preparation:
    """The steps from an image to MNIST's form of the digit in it; the errors are those of `predict_digit`."""
    steps, marks = prepare_digits(image, model)
    mark = the_digit(marks)
    return Preparation(*steps, mark.ink, mark.digit)


def predict_digit(image: Picture, model: nn.Module | None = None) -> tuple[int, Tensor]:
    """Classify the one digit in an image, with the stored network or another: the digit and its ten probabilities.

    ValueError says what is wrong with the image or seen in it instead; OSError that a file is missing or damaged.
    """
    _, marks = prepare_digits(image, model)
    probabilities = the_digit(marks).probabilities
    return int(probabilities.argmax()), probabilities


def predict_digits(image: Picture, model: nn.Module | None = None) -> list[tuple[int, Tensor, Box]]:
    """Classify all that may be digits, in reading order: the digit, its ten probabilities, and its box.

    What cannot be read has a low probability. The errors are those of `predict_digit`.
    """
    (grey, *_), marks = prepare_digits(image, model)
    height, width = grey.shape
    return [(int(mark.probabilities.argmax()), mark.probabilities,
             (mark.left / width, mark.top / height, mark.right / width, mark.bottom / height)) for mark in marks]
