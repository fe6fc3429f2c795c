"""Read handwritten digits in photographs, scans and drawings with a network that knows MNIST only.

The steps, in the order of `prepare_digits`: load the colours, cover the table around a sheet, find the light that is
missing, the ink, and in it lines, frames and the parts that may be digits; the network classifies each of these;
join what is broken, split what touches, choose the marks of a digit's size, and order them.
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
from skimage.morphology import convex_hull_image, disk, isotropic_dilation
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
    if np.ptp(small) < 0.1:
        return colours
    bright = small > threshold_otsu(small)
    inside = ndimage.distance_transform_edt(ndimage.binary_fill_holes(bright))
    near = ndimage.distance_transform_edt(inside <= inside.max() / 2) < 0.7 * inside.max()
    area = convex_hull_image(bright & near)
    middle = ndimage.binary_erosion(area, iterations=4, border_value=1)
    edge = area & ~middle
    if area.mean() < 0.12 or bright[area].mean() < 0.85 or not edge.any():
        return colours
    around = ~area & ndimage.binary_dilation(area, iterations=4)
    contrast = np.median(small[edge]) / np.median(small[around])
    border = np.pad(np.zeros(np.subtract(area.shape, 2), bool), 1, constant_values=True)
    if contrast < (1.3 if area[border].mean() < 0.1 else 2):
        return colours
    inner = ndimage.binary_erosion(area, iterations=2, border_value=1)
    nearest = ndimage.distance_transform_edt(~inner, return_distances=False, return_indices=True)
    shape = colours.shape[1:]
    filled = [resize(resize(channel, small.shape)[tuple(nearest)], shape) for channel in colours]
    return np.where(resize(inner, shape) > 0.5, colours, filled)


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
    dark, bright = (low - colours).max(axis=0).clip(0), (colours - high).max(axis=0).clip(0)
    if (bright**3).sum() > 2 * (dark**3).sum():  # strong ink counts
        share = ((colours - high) / (1 - high).clip(0.3)).max(axis=0)
    else:
        share = ((low - colours) / low.clip(0.2)).max(axis=0)
    return share.clip(0, 1)


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


def is_ring(frame, mark) -> bool:
    """Whether a region lies in the hole of another, which may have a small gap, and not near its line."""
    gap = longer_side(frame) // 12
    thick = isotropic_dilation(np.pad(frame.image, gap), gap)
    holes = ndimage.binary_fill_holes(thick) & ~thick
    row, column = (int(place) + gap - start for place, start in zip(mark.centroid, frame.bbox[:2], strict=True))
    return holes[row, column]


def find_regions(mask: np.ndarray, share: np.ndarray, gap: int) -> list:
    """The parts of a mask (H, W) that are larger than dust, the largest first; 2 · `gap` pixels do not divide them."""
    labels = label(ndimage.binary_dilation(mask, iterations=gap)) * mask
    regions = [region for region in regionprops(labels, intensity_image=share)
               if longer_side(region) > max(11, 0.02 * max(mask.shape))]
    return sorted(regions, key=longer_side, reverse=True)[:100]  # a screen or a carpet has no end of them


def longer_side(region) -> int:
    """The height or the width of a region's box."""
    return max(region.image.shape)


def remove_frames(mask: np.ndarray, share: np.ndarray) -> np.ndarray:
    """A mask (H, W) without boxes, circles, combs, tables and printed rules, but with what is written in or on them.

    A box, a comb or a table has a straight line across, two or more down, and something in it, or on its lines; a
    circle is closed round a mark; a rule is thinner than a pen's line of its length.
    """
    regions = find_regions(mask, share, gap=1)
    mask = mask.copy()
    for frame in regions[:20]:
        top, left, bottom, right = frame.bbox
        size = longer_side(frame)
        held = [region for region in regions if top < region.centroid[0] < bottom and left < region.centroid[1] < right
                and 0.06 * size < longer_side(region) < size]
        across = find_lines(frame.image, 0.8 * (right - left), 0.06 * size, (right - left) / 8)
        down = []
        if across:
            tall = (bottom - top) * (0.8 if len(across) > 1 else 0.35)  # the teeth of a comb are short
            down = find_lines(frame.image.T, tall, 0.06 * size, tall / 6)
        elif len(regions) > 1:
            down = find_lines(frame.image.T, 0.9 * size, 0.02 * size + 1, size / 8)
        rest = erase(erase(frame.image, across).T, down).T
        largest = max(map(longer_side, regionprops(label(rest))), default=0)
        is_box = across and len(down) > 1 and (held or largest > 0.15 * size)
        is_rule = len(across + down) == 1 and thickness((across + down)[0]) <= 0.02 * size + 1 and largest < 0.6 * size
        if is_box or is_rule:
            mask[frame.slice] &= ~frame.image | rest
        elif any(longer_side(region) > 0.3 * min(frame.image.shape) and is_ring(frame, region) for region in held):
            mask[frame.slice] &= ~frame.image
    return mask


def find_parts(mask: np.ndarray, share: np.ndarray) -> list:
    """The connected parts of the ink that may be digits, as regions.

    What touches the image's edge is something else, unless it alone is there: a digit that is cut off. Dots, creases
    and the back of the page are fainter (0.15 of the strongest; pencil beside a pen has 0.5); the end of a shadow is
    less sharp (0.06 of its depth a pixel; a digit of 28 pixels, enlarged tenfold, has 0.08).
    """
    parts = find_regions(mask, share, gap=3)
    near = max(mask.shape) // 200
    inside = [part for part in parts
              if min(part.bbox[:2]) > near and min(np.subtract(mask.shape, part.bbox[2:])) > near]
    parts = inside or [part for part in parts if part.area_bbox > 0.4 * mask.size]
    strongest = max([part.intensity_max for part in parts], default=0)
    slope = ndimage.gaussian_gradient_magnitude(share, 1)
    return [part for part in parts if part.intensity_max > 0.2 * strongest
            and np.percentile(slope[part.slice][part.image], 90) > 0.065 * part.intensity_max]


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
    """What may be a digit."""

    pixels: np.ndarray  # (n, 2): the row and column of each of its pixels
    top: int
    left: int
    bottom: int
    right: int
    ink: np.ndarray  # (bottom - top, right - left): how strong the ink is, 1 along the middle of a stroke
    digit: np.ndarray  # (28, 28): its form in MNIST
    probabilities: Tensor  # (10,)
    sure: float  # the largest of these

    @property
    def size(self) -> int:
        """Pixels of its longer side."""
        return max(self.ink.shape)


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
    return Mark(pixels, top, left, bottom, right, ink, digit, probabilities, probabilities.max().item())


def join_broken(marks: list[Mark], read: Callable) -> list[Mark]:
    """Join marks that are near each other where the network is no less sure of both together."""
    marks = sorted(marks, key=lambda mark: -mark.size)
    for first, second in combinations(marks, 2):
        if may_be_one(first, second):
            both = read(np.concatenate([first.pixels, second.pixels]))
            if both.sure > max(first.sure, second.sure) - 0.03:
                return join_broken([both, *(mark for mark in marks if mark is not first and mark is not second)], read)
    return marks


def may_be_one(first: Mark, second: Mark) -> bool:
    """Whether two marks are near enough; pieces of which the network is unsure, or small ones, may be further apart."""
    height = max(first.bottom, second.bottom) - min(first.top, second.top)
    width = max(first.right, second.right) - min(first.left, second.left)
    size = max(height, width)
    if width > 1.3 * height or size > 2 * first.size:
        return False
    is_piece = max(first.sure, second.sure) < 0.9 or second.size < 0.5 * first.size
    return cKDTree(first.pixels).query(second.pixels)[0].min() < (0.3 if is_piece else 0.1) * size


def split_touching(mark: Mark, read: Callable) -> list[Mark]:
    """Cut a wide mark where there is little ink, upright or aslant, where the network is surer of the pieces."""
    height, width = mark.ink.shape
    if width < 0.8 * height:
        return [mark]
    best, pieces = mark.sure, [mark]
    for slant in (-0.4, 0, 0.4) if width > 1.1 * height else (0,):  # columns to the right for each row
        columns = np.round(mark.pixels[:, 1] + slant * mark.pixels[:, 0]).astype(int)
        score, cut = best_cuts(mark, columns - columns.min(), read)
        if score > best:
            best, pieces = score, cut
    return pieces


def best_cuts(mark: Mark, columns: np.ndarray, read: Callable) -> tuple[float, list[Mark]]:
    """The largest product of the pieces' probabilities, and the pieces, of a mark whose pixels lie in these columns."""
    height, width = mark.ink.shape
    ink = ndimage.uniform_filter1d(np.bincount(columns).astype(float), 3)
    cuts, _ = find_peaks(-ink, height=-0.4 * height, distance=max(1, height // 8))
    if width < 1.3 * height:  # two digits that touch are held by one stroke, the halves of one by more
        cuts = [cut for cut in cuts if np.all(np.diff(np.sort(mark.pixels[columns == cut, 0])) == 1)]
    best = {0: (1.0, [])}  # up to each cut: the product, and the pieces
    for end in [*cuts, len(ink)]:
        options = []
        for start, (score, pieces) in best.items():
            pixels = mark.pixels[(columns >= start) & (columns < end)]
            tall, wide = np.ptp(pixels, axis=0) + 1
            if tall > max(0.5 * height, 0.8 * wide):
                piece = read(pixels)
                options.append((score * piece.sure, [*pieces, piece]))
        if options:
            best[end] = max(options, key=lambda option: option[0])
    return best.get(len(ink), (0, []))


def choose_marks(marks: list[Mark]) -> list[Mark]:
    """The marks of a digit's size, as the largest shows of which the network is sure; and no bars."""
    usual = max([mark.size * mark.sure for mark in marks], default=0)
    return [mark for mark in marks if mark.size > 0.35 * usual
            and mark.right - mark.left < 3 * (mark.bottom - mark.top)]


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
    ink = remove_frames(remove_lines(ink, visible), share)
    read = partial(read_mark, share, model or stored_network())
    marks = join_broken([read(part.coords) for part in find_parts(ink, share)], read)
    marks = [piece for mark in marks for piece in split_touching(mark, read)]
    marks = reading_order(choose_marks(marks))
    if not marks:
        what = "only lines, edges or specks are" if ink.any() else "nothing is"
        raise ValueError(f"no digit: {what} darker or brighter than the paper")
    return [step.astype(np.float32) for step in (colours.mean(axis=0), share, ink)], marks


def the_digit(marks: list[Mark]) -> Mark:
    """The one mark, or the only one of which the network is sure, if it is the largest; ValueError says how many."""
    sure = [mark for mark in marks if mark.sure > 0.8] if len(marks) > 1 else marks
    if len(sure) != 1 or sure[0].size < 0.8 * max(mark.size for mark in marks):
        raise ValueError(f"{len(marks)} digits: cut out one of them, or call predict_digits, which classifies each")
    return sure[0]


def prepare_digit(image: Picture) -> Preparation:
    """The steps from an image to MNIST's form of the digit in it; the errors are those of `predict_digit`."""
    steps, marks = prepare_digits(image)
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
