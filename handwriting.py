"""Classify handwritten digits in photographs, scans and drawings with a network that knows MNIST only.

The steps: `load_colours` → `flatten_light` → `ink_strength`, `find_parts`, `choose_parts` → `check_shape` →
`set_weight` → `centre`. A `Preparation` holds what they make.
"""

import io
import math
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn

from model import IMAGE_SHAPE, NUM_CLASSES
from utils import ROOT, load_run, normalise, predict

SIDES = 200, 400  # pixels of the longer side in all steps: smaller images are enlarged, larger ones reduced
WINDOW = 0.3  # of the longer side: any stroke is narrower, and shadows are larger
LEVELS = 0.7, 0.6, 0.5, 0.4, 0.3, 0.22, 0.16, 0.11  # shares of the light that ink takes away, strongest ink first
FAINT = 0.5  # below this share, what lies at the edge of the image may be the end of a shadow
SMALLEST = 0.08  # of the longer side: the largest digit is no smaller
SPECK, BESIDE, NEAR = 0.1, 0.3, 0.3  # of a digit's size: dust is smaller, another digit larger, its own parts nearer
LARGE = 80  # pixels of the longer side at which a digit's shape is measured: 4 for each of MNIST's
SHARE = 0.4  # of the ink's strength, from which a pixel is ink; ruled lines are weaker
RAMP = 0.1, 0.9  # shares of the ink's strength that become 0 and 1, so that the outlines stay smooth
REACH = 8, 3  # pixels around the ink in which its outline fades: more in an image that was enlarged
THICKEST, LENGTH = 0.4, (0.8, 3.4)  # of MNIST's strokes, in units of a digit's longer side
TANGLED = 5.4  # MNIST's digits have less length and holes in all
WEIGHT = 2.3, 3.4  # pixels: the usual widths of MNIST's strokes, as `stroke_width` measures them
LEAN = 0.35  # columns by which each row is shifted against the next: 19°
KNOWN = 5.1  # a digit's logit, averaged over the image and two slanted views, is larger as a rule
ONE_SIDED = 0.7  # and one larger than their mirror image's by more than this, except for those that are SYMMETRIC
SYMMETRIC = 0, 1, 8
FADE = 4  # how quickly doubt sets in about these logits
NOTHING = (f"no digit: nothing is both larger than {SMALLEST:.0%} of the image and at least {LEVELS[-1]:.0%} darker "
           "(or brighter) than the ground around it")

Picture = Image.Image | np.ndarray | Tensor | str | os.PathLike | bytes | BinaryIO
Box = tuple[float, float, float, float]  # left, top, right, bottom, in shares of the image's width and height


class Preparation(NamedTuple):
    """The steps from an image to MNIST's form, each a float32 array (H, W) in [0, 1]."""

    grey: np.ndarray  # the image
    flat: np.ndarray  # the share of the light that is missing, compared with the ground around
    ink: np.ndarray  # what of this forms the digit
    crop: np.ndarray  # its box
    digit: np.ndarray  # (28, 28): strokes of MNIST's weight, 20 pixels high or wide, around their centre of mass


class Part(NamedTuple):
    """A connected part of the ink, within its box; `right` and `bottom` are the first column and row outside.

    `edge` is 0 inside the image, 1 at its edge, 2 in a corner (a table) or from edge to edge (a margin line).
    """

    label: int
    left: int
    top: int
    right: int
    bottom: int
    edge: int

    @property
    def size(self) -> int:
        return max(self.right - self.left, self.bottom - self.top)


def open_image(content: bytes, name: str) -> Image.Image:
    """Decode the content of a file; ValueError says what to do if that fails."""
    try:
        image = Image.open(io.BytesIO(content))
        image.draft(None, (2 * SIDES[1], 2 * SIDES[1]))  # a JPEG is decoded no larger than needed, which saves time
        image.load()
        return image
    except Image.UnidentifiedImageError as error:
        start = content[:512].lstrip()
        if not content:
            problem = "is empty: copy or save it again"
        elif start[4:8] == b"ftyp":
            problem = "is a HEIC or AVIF file: export it as JPEG (on an iPhone, 'Most Compatible')"
        elif start[:5] == b"%PDF-":
            problem = "is a PDF file: save the page as PNG, or take a screenshot"
        elif b"<svg" in start:
            problem = "is an SVG file: export it as PNG, or take a screenshot"
        else:
            problem = "is not an image, or of an unknown format: save it as PNG or JPEG"
        raise ValueError(f"{name} {problem}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has too many pixels ({error}): save it smaller") from error
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"{name} is damaged or incomplete ({error}): copy or save it again") from error


def array_image(array: np.ndarray) -> Image.Image:
    """An array of any usual layout and range as an image of 8 bits; ValueError if it is none."""
    pixels = array
    while pixels.ndim > 2 and len(pixels) == 1:
        pixels = pixels[0]
    if pixels.ndim == 3 and len(pixels) == 3 and pixels.shape[2] > 4:
        pixels = pixels.transpose(1, 2, 0)
    if not pixels.size or pixels.ndim not in (2, 3) or pixels.shape[2:] > (4,) or pixels.dtype.kind not in "buif":
        raise ValueError(f"an array of shape {array.shape} and type {array.dtype} is not one image: "
                         "give numbers of shape (H, W), (H, W, 1 to 4) or (1 or 3, H, W); of several images, "
                         "one at a time")
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("the image has values that are not finite: replace them")
    # Below 0, the image is normalised; a little more than 1 or 255 comes from interpolation
    top = next((top for top in (1, 255, 1023, 4095, 65535) if high <= 1.1 * top), high)
    low, top = (low, high) if low < -0.1 else (0, top)
    if pixels.dtype != np.uint8 or top != 255:
        pixels = ((pixels.astype(np.float32) - low) * (255 / (top - low or 1))).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))


def upright(image: Image.Image) -> Image.Image:
    """Apply the orientation in an image's EXIF data, unless these are damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except SyntaxError:
        return image


def as_image(image: Picture) -> Image.Image:
    """Whatever holds an image, as a PIL image of 8 bits in a mode that can be resized."""
    if isinstance(image, (str, os.PathLike)):
        if str(image).lower().startswith(("http://", "https://")):
            raise ValueError(f"{image} is a web address: download the image, and give the path of the file")
        path = Path(image).expanduser()
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder: give the path of an image in it")
        image = open_image(path.read_bytes(), str(path))
    elif isinstance(image, (bytes, bytearray, memoryview)):
        image = open_image(bytes(image), "the image")
    elif hasattr(image, "read"):
        if isinstance(image, io.TextIOBase):
            raise ValueError("the file is open as text: open it with mode 'rb'")
        with suppress(AttributeError, OSError):  # of a pipe, which has only one direction
            image.seek(0)  # a BytesIO that was just written stands at its end
        image = open_image(image.read(), str(getattr(image, "name", "the image")))
    elif not isinstance(image, Image.Image):
        if isinstance(image, Tensor):
            image = (image.float() if image.dtype == torch.bfloat16 else image).detach().cpu().numpy()
        try:
            image = np.asarray(image)
        except ValueError as error:  # such as an image with its label
            raise ValueError(f"a {type(image).__name__} is not one image: give the image alone") from error
        image = array_image(image)
    if not min(image.size):
        raise ValueError("the image has no pixels")
    if image.mode[0] in "IF":  # more than 8 bits
        image = array_image(np.asarray(upright(image)))
    return image if image.mode in ("L", "LA", "RGB", "RGBA") else image.convert("RGBA")


def find_sheet(grey: np.ndarray) -> np.ndarray | None:
    """The area of a sheet that lies whole in an image (H, W), on a ground of another brightness; None without one.

    A sheet is large, nearly a rectangle, mostly blank, and unlike most of its ground. If it covers much of the
    image's border it may be paper beside a shadow, and needs the contrast of paper between black bars.
    """
    if np.ptp(grey) < 0.1:
        return None
    levels = np.linspace(grey.min(), grey.max(), 32)[1:-1]
    within = [sum(grey[side].var() * side.sum() for side in (grey > level, grey <= level)) for level in levels]
    bright = grey > levels[np.argmin(within)]  # the best division in two: Otsu, "A threshold selection method", 1979
    y, x = np.indices(grey.shape).reshape(2, -1)
    turns = np.linspace(0, np.pi, 60, endpoint=False)[:, None]
    along = np.cos(turns) * x + np.sin(turns) * y  # of each pixel, the place in 60 directions
    for half in bright, ~bright:
        labels, parts = find_parts(half)
        part = max(parts, key=lambda part: min(part.right - part.left, part.bottom - part.top))
        sheet = labels == part.label
        low, high = (limit(along[:, sheet.ravel()], axis=1)[:, None] for limit in (np.min, np.max))
        area = ((along >= low) & (along <= high)).all(axis=0).reshape(grey.shape)  # the convex hull
        box = ((high - low + 1) * np.roll(high - low + 1, 30)).min()  # pixels of the smallest rectangle around it
        if area.all() or min(part.right - part.left, part.bottom - part.top) < WINDOW * max(grey.shape):
            continue
        contrast = abs(math.log((grey[sheet].mean() + 0.01) / (grey[~area].mean() + 0.01)))
        border = np.concatenate([area[0], area[-1], area[:, 0], area[:, -1]]).mean()
        if (area.mean() > 0.12 and area.sum() > 0.9 * box and half[area].mean() > 0.85 and half[~area].mean() < 0.25
                and contrast > (1.6 if border > 0.1 else 0.17)):
            return area
    return None


def cut_out_sheet(image: Image.Image) -> tuple[Image.Image, Box]:
    """Cut a sheet of paper, or what lies between black bars, out of an image, if there is one; and its box."""
    whole = image, (0.0, 0.0, 1.0, 1.0)
    transparent = "A" in image.mode and image.getchannel("A").getextrema()[0] < 255
    if transparent or min(image.size) < 40:
        return whole
    small = image.convert("RGB")
    small.thumbnail((120, 120))
    pixels = np.asarray(small, dtype=np.float32) / 255
    area = find_sheet(pixels.mean(axis=2))
    if area is None:
        area = find_sheet(pixels.min(axis=2))  # in which white paper stands out, even in the shadow, from wood
    if area is None:
        return whole
    inside = Image.fromarray(-dilate(-area.astype(np.float32), 5) > 0).convert("L").resize(image.size)  # off the edge
    colours = np.array(image.convert("RGB"))
    colours[np.asarray(inside) < 128] = np.median(colours[np.asarray(inside) > 127], axis=0)
    box = inside.getbbox()
    return Image.fromarray(colours).crop(box), tuple((np.array(box) / np.tile(image.size, 2)).tolist())


def load_colours(picture: Picture) -> tuple[np.ndarray, Box]:
    """An image, or the sheet in it, as float32 (3, H, W) in [0, 1], upright and of a size within `SIDES`; and its box.

    Behind what is transparent lies the mean of what is visible or, if that is the ink alone, black or white.
    """
    image = as_image(picture)
    image = image.reduce(max(1, max(image.size) // (2 * SIDES[1])))  # what follows takes less time then
    image, box = cut_out_sheet(upright(image))
    longer = max(image.size)
    scale = min(max(longer, SIDES[0]), SIDES[1]) / longer
    size = [max(1, round(side * scale)) for side in image.size]
    smooth = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BILINEAR
    image = image.resize(size, smooth).convert("RGBA")
    *colours, opacity = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255
    weights = opacity / max(opacity.sum(), 1e-6)
    visible = (colours * weights).sum(axis=(1, 2), keepdims=True)
    spread = (abs(colours - visible).max(axis=0) * weights).sum()
    ground = visible if opacity.mean() > 0.5 and spread > 0.02 else visible.mean() < 0.5
    return (colours * opacity + ground * (1 - opacity)).astype(np.float32), box


def dilate(maps: np.ndarray, size: int) -> np.ndarray:
    """The maximum over a square of odd `size` around each pixel of (C, H, W) or (H, W)."""
    across = F.max_pool2d(torch.from_numpy(maps).view(1, -1, *maps.shape[-2:]), (1, size), 1, (0, size // 2))
    return F.max_pool2d(across, (size, 1), 1, (size // 2, 0)).view(maps.shape).numpy()


def close(maps: np.ndarray, size: int) -> np.ndarray:
    """Fill what is dark and narrower than `size`: the bright surroundings grow over it, and shrink back."""
    return -dilate(-dilate(maps, size), size)


def frame(maps: np.ndarray, width: int) -> np.ndarray:
    """Continue an image (C, H, W) on all sides with the medians along its border, so that ink may reach the edge."""
    sides = [np.rot90(maps, turn, (1, 2))[:, 0, :-1] for turn in range(4)]
    reach = max(maps.shape) * 7 // 8
    ring = np.pad(np.concatenate(sides, axis=1), [(0, 0), (reach, reach)], mode="wrap")
    medians = np.median(np.lib.stride_tricks.sliding_window_view(ring, 2 * reach + 1, axis=1), axis=2)
    border = maps.copy()
    for turn, side in enumerate(np.split(medians, np.cumsum([side.shape[1] for side in sides])[:-1], axis=1)):
        np.rot90(border, turn, (1, 2))[:, 0, :-1] = side
    framed = np.pad(border, [(0, 0), (width, width), (width, width)], mode="edge")
    framed[:, width:-width, width:-width] = maps
    return framed


def flatten_light(colours: np.ndarray) -> np.ndarray:
    """The share of the light that is missing at each pixel (H, W) of (3, H, W), compared with the ground around it.

    The ground is the image with the dark strokes filled. A colour has bright ink, and is inverted, if far more bright
    strokes remain after the dark ones are filled than dark ones after the bright ones are; where there are few of
    either, only if the colour with the most strokes is inverted.
    """
    height, width = colours.shape[1:]
    coarse = [math.ceil(side / 4) for side in (height, width)]
    small = F.interpolate(torch.from_numpy(colours)[None], coarse, mode="area")
    window = int(WINDOW * max(height, width) / 4) // 2 * 2 + 1
    framed = frame(small[0].numpy(), window)
    no_dark, no_bright = close(framed, window), -close(-framed, window)
    bright, dark = no_dark + close(-no_dark, window), close(no_bright, window) - no_bright
    bright, dark = ((strokes**3).sum(axis=(1, 2), keepdims=True) for strokes in (bright, dark))  # strong ones count
    brighter, most = bright > 10 * dark, max(bright.max(), dark.max())
    inverted = brighter & ((bright > 0.1 * most) | brighter[bright == most].any())
    colours, no_dark = np.where(inverted, 1 - colours, colours), np.where(inverted, 1 - no_bright, no_dark)
    ground = -dilate(-no_dark, 3)[:, window:-window, window:-window]  # the edge of a table is followed closely
    ground = F.interpolate(torch.from_numpy(ground.copy())[None], (height, width), mode="bilinear")[0].numpy()
    missing = ((ground - colours) / ground.clip(0.2)).max(axis=0)
    return F.avg_pool2d(torch.from_numpy(missing)[None], 3, 1, 1, count_include_pad=False)[0].clamp(0, 1).numpy()


def find_parts(mask: np.ndarray) -> tuple[np.ndarray, list[Part]]:
    """Number the connected parts of a boolean mask (H, W) from 1; gaps of one or two pixels do not divide them."""
    grown = dilate(mask.astype(np.float32), 3) > 0
    number = np.where(grown, np.cumsum(grown).reshape(mask.shape), 0)
    pairs = np.concatenate([np.stack([number[1:], number[:-1]]).reshape(2, -1),
                            np.stack([number[:, 1:], number[:, :-1]]).reshape(2, -1)], axis=1)
    first, second = pairs[:, pairs.all(axis=0)]
    root = np.arange(grown.sum() + 1)  # neighbours take the lower of their numbers, until each part has only one
    while (root[first] != root[second]).any():
        low, high = np.sort(root[[first, second]], axis=0)
        np.minimum.at(root, high, low)
        while (root != root[root]).any():
            root = root[root]
    roots = np.unique(root)
    labels = np.searchsorted(roots, root)[number] * mask
    places = np.nonzero(labels)
    found = labels[places]
    low, high = np.full((2, len(roots)), max(mask.shape)), np.zeros((2, len(roots)), dtype=int)
    for axis in range(2):
        np.minimum.at(low[axis], found, places[axis])
        np.maximum.at(high[axis], found, places[axis] + 1)
    starts, ends = low == 0, high == np.array(mask.shape)[:, None]
    edge = (starts | ends).any(axis=0).astype(int)
    edge[labels[[0, 0, -1, -1], [0, -1, 0, -1]]] = 2
    edge[(starts & ends & ~(starts | ends)[::-1]).any(axis=0)] = 2
    rows = np.stack([np.arange(len(roots)), low[1], low[0], high[1], high[0], edge], axis=1)
    return labels, [Part(*row) for row in rows[1:].tolist()]


def candidates(parts: list[Part], shape: tuple[int, ...]) -> list[Part]:
    """The parts that are large enough for digits: not those in a corner, nor at the edge, if there are others."""
    least, largest = SMALLEST * max(shape), max((part.size for part in parts), default=0)
    large = [part for part in parts if part.size >= min(least, largest / 2)] if largest >= least else []
    whole = [part for part in large if part.edge < 2] or large
    largest = max((part.size for part in whole), default=0)
    inside = [part for part in whole if part.edge == 0]
    return inside if any(part.size > largest / 3 for part in inside) else whole


def ink_strength(flat: np.ndarray) -> float:
    """The median strength of the strongest ink of which a part has the size of a digit; ValueError if there is none."""
    for level in LEVELS:
        labels, parts = find_parts(flat > level)
        if found := [part.label for part in candidates(parts, flat.shape) if level >= FAINT or part.edge == 0]:
            return float(np.median(flat[np.isin(labels, found)]))
    raise ValueError(NOTHING)


def belongs(part: Part, digit: Part) -> bool:
    """Whether a part is of the same digit as a larger one: near, and not a digit beside it, nor a speck."""
    across = min(part.right, digit.right) - max(part.left, digit.left)  # the overlap, negative if there is a gap
    along = min(part.bottom, digit.bottom) - max(part.top, digit.top)
    beside = across < 0.3 * min(part.right - part.left, digit.right - digit.left)
    if beside and part.bottom - part.top > BESIDE * (digit.bottom - digit.top):
        return False
    return part.size > SPECK * digit.size and min(across, along) > -NEAR * digit.size


def marks(part: Part, digit: Part) -> bool:
    """Whether a part frames a digit, or underlines it."""
    width, gap = part.right - part.left, part.top - digit.bottom
    margin = min(digit.left - part.left, digit.top - part.top, part.right - digit.right, part.bottom - digit.bottom)
    across = min(part.right, digit.right) - max(part.left, digit.left)
    flat = part.bottom - part.top < 0.2 * width < digit.bottom - digit.top
    return margin > part.size / 20 or (flat and 0 <= gap < digit.size and across > 0.6 * (digit.right - digit.left))


def choose_parts(parts: list[Part], shape: tuple[int, ...]) -> list[list[Part]]:
    """The parts of each digit, its largest first; the digits from left to right."""
    digits: list[list[Part]] = []
    large = [part for part in parts if part.size > SMALLEST * max(shape)]
    parts = [part for part in parts if not any(marks(part, digit) for digit in large if digit.size > part.size / 5)]
    heads = sorted(candidates(parts, shape), key=lambda part: -part.size)
    for part in heads:
        if part.size > BESIDE * heads[0].size and not any(belongs(part, digit[0]) for digit in digits):
            digits.append([part])
    heads = [digit[0] for digit in digits]
    for part in parts:
        near = [digit for digit in digits if part.edge <= digit[0].edge and belongs(part, digit[0])]
        if near and part not in heads:
            near[0].append(part)
    return sorted(digits, key=lambda digit: digit[0].left)


def resize(image: np.ndarray, longer: int) -> np.ndarray:
    """Bring the longer side of an image (H, W) to `longer` pixels, as Pillow's BILINEAR does.

    Old pixel j counts towards new pixel i by the height, over the middle of j, of a triangle that stands on the middle
    of i; half its base is the larger of one old and one new pixel.
    """
    scale = max(image.shape) / longer
    matrices = []
    for old in image.shape:
        new = max(1, math.floor(old / scale + 0.5))
        distance = abs(np.arange(old) + 0.5 - (np.arange(new)[:, None] + 0.5) * old / new)
        weights = (1 - distance / max(old / new, 1)).clip(0)
        matrices.append(weights / weights.sum(axis=1, keepdims=True))
    return matrices[0] @ image @ matrices[1].T


def stroke_width(image: np.ndarray) -> float:
    """The mean width, in pixels, of the strokes in an image: twice their area over the length of their outline."""
    solid = np.pad(image > 0.5, 1)
    steps = (solid[1:] != solid[:-1]).sum() + (solid[:, 1:] != solid[:, :-1]).sum()
    return 2 * solid.sum() / (max(steps, 1) * np.pi / 4)  # over all directions, steps are longer than a line by 4 / π


def check_shape(large: np.ndarray) -> None:
    """ValueError if the ink in a digit's box, resized to `LARGE`, is unlike any of MNIST's digits."""
    solid = np.pad(large > 0.5, 1)
    width = stroke_width(large) / LARGE
    length = solid.sum() / LARGE**2 / max(width, 1e-6)
    holes = sum(part.edge == 0 for part in find_parts(~solid)[1])
    if width > THICKEST or not LENGTH[0] < length < LENGTH[1] or length + holes > TANGLED:
        raise ValueError(f"no digit: compared with its longer side, the ink's strokes are {width:.2f} wide and "
                         f"{length:.1f} long, with {holes} holes; a digit's are up to {THICKEST} wide, {LENGTH[0]} to "
                         f"{LENGTH[1]} long, and length and holes add up to at most {TANGLED}")


def grow(image: np.ndarray, radius: int) -> np.ndarray:
    """The maximum over a disc around each pixel of an image and of a margin of `radius`."""
    padded = np.pad(image, 2 * radius)
    height, width = (side + 2 * radius for side in image.shape)
    reach = range(2 * radius + 1)
    return np.max([padded[y:y + height, x:x + width] for y in reach for x in reach
                   if (y - radius) ** 2 + (x - radius) ** 2 <= (radius + 0.5) ** 2], axis=0)


def set_weight(large: np.ndarray) -> np.ndarray:
    """Thicken or thin strokes so that their width lies within `WEIGHT` when the longer side has 20 pixels."""
    width = stroke_width(large)
    share = min(max(width / LARGE, WEIGHT[0] / 20), WEIGHT[1] / 20)
    radius = math.floor((share * LARGE - width) / (2 * (1 - share)) + 0.5)  # the longer side changes as well
    if radius >= 0:
        return grow(large, radius)
    thin = 1 - grow(1 - np.pad(large, 1), -radius)[1 - radius:radius - 1, 1 - radius:radius - 1]
    rows, columns = (np.flatnonzero((thin > 0.5).any(axis)) for axis in (1, 0))
    return thin[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1] if len(rows) else large


def centre(image: np.ndarray) -> np.ndarray:
    """Bring a digit's box to MNIST's form: 20 pixels high or wide, its centre of mass in the middle of 28×28 pixels.

    So LeCun, Cortes and Burges describe it (yann.lecun.com/exdb/mnist); on average it lies at 14.5, as in MNIST.
    """
    small = resize(image, 20)
    small = small / small.max()
    height, width = small.shape
    y, x = small.sum(1) @ np.arange(0.5, height) / small.sum(), small.sum(0) @ np.arange(0.5, width) / small.sum()
    top, left = (min(max(math.floor(15 - middle), 0), 28 - side) for middle, side in ((y, height), (x, width)))
    return np.pad(small, [(top, 28 - height - top), (left, 28 - width - left)])


def prepare_digits(image: Picture) -> list[tuple[Preparation, Box]]:
    """The preparation and the box of each digit in an image, by their left edges; see `prepare_digit`.

    A mark that is unlike a digit is passed over, unless there are more of these, as on a page of text.
    """
    colours, sheet = load_colours(image)
    origin, extent = np.tile(sheet[:2], 2), np.tile(np.subtract(sheet[2:], sheet[:2]), 2)
    flat = flatten_light(colours)
    strength = ink_strength(flat)
    labels, parts = find_parts(flat > SHARE * strength)
    smooth = ((flat / strength - RAMP[0]) / (RAMP[1] - RAMP[0])).clip(0, 1)
    reach = 2 * REACH[max(flat.shape) > SIDES[0]] + 1
    results, problems = [], []
    for digit in choose_parts(parts, flat.shape):
        ink = smooth * dilate(np.isin(labels, [part.label for part in digit]).astype(np.float32), reach)
        rows, columns = (np.flatnonzero((ink > RAMP[0]).any(axis)) for axis in (1, 0))
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        crop = ink[top:bottom, left:right]
        large = resize(crop, LARGE)
        try:
            check_shape(large)
        except ValueError as error:
            problems.append(error)
            continue
        steps = colours.mean(axis=0), flat, ink, crop, centre(set_weight(large))
        box = (origin + extent * [left, top, right, bottom] / np.tile(flat.shape[::-1], 2)).tolist()
        results.append((Preparation(*(step.astype(np.float32) for step in steps)), tuple(box)))
    if len(problems) > len(results):
        raise problems[0]
    if not results:
        raise ValueError(NOTHING)
    return results


def prepare_digit(image: Picture) -> Preparation:
    """Find the digit in an image and bring it to the form of MNIST's images.

    `image` is a PIL image, an array or tensor (H, W), (H, W, 1 to 4), (1 or 3, H, W) or (1, 1, H, W) of any usual
    range, a path, an open file, or a file's bytes. The paper may fill the image or lie whole in it; the ink may be dark
    or bright, in any colour, under uneven light and on ruled paper. ValueError says why the image could not be read, or
    no single digit was found in it, and what to do; OSError says that a file is missing or may not be opened.
    """
    (steps, _), *others = prepare_digits(image)
    if others:
        raise ValueError(f"{'two' if len(others) == 1 else len(others) + 1} digits: cut out one of them, or call "
                         "predict_digits, which classifies each")
    return steps


@cache
def stored_network() -> nn.Module:
    """The network in S6_MNIST.pt."""
    return load_run(ROOT / "S6_MNIST.pt")[0]


def lean(images: Tensor, slope: float) -> Tensor:
    """Slant images (N, 1, H, W): each row moves by `slope` columns against the next, with wrap-around."""
    height, width = images.shape[2:]
    shifts = torch.floor(slope * (torch.arange(height) - (height - 1) / 2) + 0.5).long()
    return images.gather(3, ((torch.arange(width) + shifts[:, None]) % width).expand_as(images))


def classify(digits: list[np.ndarray], model: nn.Module | None) -> Tensor:
    """The probabilities (N, 10), on the CPU, of prepared digits; the model's mode stays as it is.

    What is unlike a digit seldom keeps a large logit while it leans to either side; and A and H, which pass for 4, have
    it in the mirror too. The more there is to doubt, the nearer are the probabilities drawn to one tenth each.
    """
    model = stored_network() if model is None else model
    images = normalise(torch.from_numpy(np.stack(digits)).view(-1, *IMAGE_SHAPE))
    labels = torch.zeros(len(images))  # do not matter
    views = images, lean(images, -LEAN), lean(images, LEAN), images.flip(3)
    logits = torch.stack([predict(model, [(view, labels)])[0].cpu() for view in views])
    answers = logits[0].argmax(1, keepdim=True)
    upright, to_left, to_right, mirrored = (view.gather(1, answers) for view in logits)
    known = torch.sigmoid(FADE * ((upright + to_left + to_right) / 3 - KNOWN))
    one_sided = torch.sigmoid(FADE * (upright - mirrored - ONE_SIDED))
    known *= one_sided.where(~torch.isin(answers, torch.tensor(SYMMETRIC)), torch.tensor(1.0))
    return known * logits[0].softmax(1) + (1 - known) / NUM_CLASSES


def predict_digit(image: Picture, model: nn.Module | None = None) -> tuple[int, Tensor]:
    """Classify the one digit in an image: the digit, and the ten probabilities.

    The stored network is used unless another is given. What `image` may be, and the errors: see `prepare_digit`.
    """
    probabilities = classify([prepare_digit(image).digit], model)[0]
    return int(probabilities.argmax()), probabilities


def predict_digits(image: Picture, model: nn.Module | None = None) -> list[tuple[int, Tensor, Box]]:
    """Classify each digit in an image: the digit, the ten probabilities, and its box; in the order of the left edges.

    What `image` may be, and the errors: see `prepare_digit`.
    """
    steps, boxes = zip(*prepare_digits(image), strict=True)
    probabilities = classify([step.digit for step in steps], model)
    return [(int(p.argmax()), p, box) for p, box in zip(probabilities, boxes, strict=True)]
