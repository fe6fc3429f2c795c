"""Make photographs of digits by code and count how many `predict_digit` gets right, beside a simple preparation.

    python -m benchmarks.photos

Each kind of picture is made from MNIST test digits that the network itself gets right, or from strokes of our own. The
rates take the place of the last ones in results/photos.json.
"""

import argparse
import io
import json
import math
import sys
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps
from torch import Tensor, nn
from tqdm import tqdm

from handwriting import centre, predict_digit, stored_network
from model import IMAGE_SHAPE
from utils import ROOT, atomic_write, load_mnist, normalise

RESULTS = ROOT / "benchmarks" / "results" / "photos.json"
SIDE = 600  # pixels of a photo
SURE = 0.8  # the probability of an answer from which it is sure
PENS = {  # colour, and width as a share of the digit's height; None: as MNIST has it
    "marker": ((32, 36, 58), None), "red": ((200, 40, 45), None), "light blue": ((120, 180, 235), None),
    "yellow": ((253, 220, 60), None), "ballpoint": ((30, 50, 150), 0.024), "pencil": ((105, 105, 105), 0.03),
    "felt": ((32, 36, 58), 0.2), "phone": ((30, 34, 60), 0.05), "chalk": ((235, 235, 228), 0.09),
    "white": ((255, 255, 255), None), "orange": ((255, 160, 0), None)}
STROKES = {  # digits drawn in straight lines, in a box of 10×10: x, y, x, y, ...; no stroke joins the next
    0: ["50 20 13 18 3A 7A 96 92 70 50"], 1: ["32 50 5A"], 2: ["23 50 82 73 2A 9A"], 3: ["20 80 53 85 88 5A 19"],
    4: ["40 16 96", "72 6A"], 5: ["90 30 24 74 97 7A 1A"], 6: ["70 34 28 4A 8A 96 65 26"], 7: ["10 80 4A"],
    8: ["80 30 22 87 7A 3A 17 83 80"], 9: ["83 50 22 45 84 83 7A"]}


def thin(images: Tensor) -> Tensor:
    """The middle lines of the strokes in the boolean images (N, H, W): T. Y. Zhang and C. Y. Suen, 1984."""
    images = images.clone()
    while True:
        before = images.sum()
        for turn in (0, 2):
            padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
            height, width = images.shape[1:]
            ring = [padded[:, 1 + dy:1 + dy + height, 1 + dx:1 + dx + width] for dy, dx in  # clockwise from north
                    ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))]
            count = torch.stack(ring).sum(0)
            starts = sum(~a & b for a, b in zip(ring, ring[1:] + ring[:1], strict=True))
            north, east, south, west = (ring[(2 * i + 2 * turn) % 8] for i in range(4))
            images &= ~((count >= 2) & (count <= 6) & (starts == 1) & ~(north & east & south) & ~(east & south & west))
        if images.sum() == before:
            return images


def draw_digit(image: np.ndarray, size: int, width: float | None) -> Image.Image:
    """Redraw a digit (28, 28) in [0, 1] at `size` pixels: as it is, or as a line of `width` times the size."""
    large = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    if width is None:
        return Image.fromarray((255 * (2.5 * np.asarray(large) - 0.5).clip(0, 1)).astype(np.uint8))
    middle = Image.fromarray(image).resize((112, 112), Image.Resampling.BICUBIC)
    points = thin(torch.from_numpy(np.asarray(middle) > 0.4)[None])[0].nonzero().numpy() + 0.5
    return draw_points([[(x, y)] for y, x in points * size / 112], size, width * size)


def draw_points(lines: list, size: int, width: float) -> Image.Image:
    """Draw lines of (x, y) with round ends."""
    page = Image.new("L", (2 * size, 2 * size))  # twice as large, against jagged edges
    draw = ImageDraw.Draw(page)
    for line in lines:
        draw.line([(2 * x, 2 * y) for x, y in line], fill=255, width=round(2 * width), joint="curve")
        for x, y in line:
            draw.ellipse([2 * x - width, 2 * y - width, 2 * x + width, 2 * y + width], fill=255)
    return page.reduce(2)


def draw_strokes(digit: int, rng: np.random.Generator, size: int) -> Image.Image:
    """Draw a digit of straight lines, leaning and stretched at random."""
    turn = np.eye(2) + rng.uniform(-0.15, 0.15, (2, 2))
    lines = [np.array([[int(c, 16) for c in point] for point in stroke.split()]) for stroke in STROKES[digit]]
    lines = [((line - 5) @ turn.T * 0.07 + 0.5) * size for line in lines]
    return draw_points(lines, size, size * rng.uniform(0.025, 0.1))


def draw_letter(letter: str, size: int) -> Image.Image:
    """A printed letter."""
    page = Image.new("L", (2 * size, 2 * size))
    ImageDraw.Draw(page).text((size // 2, size // 2), letter, fill=255, font=ImageFont.load_default(size))
    return page


def draw_scribble(rng: np.random.Generator, size: int) -> Image.Image:
    """A line that turns back on itself at random, again and again."""
    points = rng.uniform(0.1, 0.9, (rng.integers(10, 25), 2)) * size
    return draw_points([[tuple(point) for point in points]], size, size * rng.uniform(0.03, 0.08))


def draw_text(rng: np.random.Generator, size: int) -> Image.Image:
    """Six lines of print."""
    letters = np.array(list("abcdefghiklmnopqrstuvwxyz    "))
    lines = ["".join(rng.choice(letters, 16)) for _ in range(6)]
    page = Image.new("L", (2 * size, 2 * size))
    ImageDraw.Draw(page).multiline_text((10, 10), "\n".join(lines), fill=255, font=ImageFont.load_default(size // 6))
    return page


def ramp(kind: str, dark: float, rng: np.random.Generator) -> np.ndarray:
    """The light on each pixel (SIDE, SIDE), from `dark` to 1: from one side, with a hand's shadow, or dim corners."""
    y, x = np.mgrid[-1:1:SIDE * 1j, -1:1:SIDE * 1j]
    angle = rng.uniform(0, 2 * math.pi)
    along = x * math.cos(angle) + y * math.sin(angle)
    if kind == "gradient":
        share = (along - along.min()) / np.ptp(along)
    elif kind == "shadow":
        share = ((along - rng.uniform(-0.4, 0.4)) / rng.uniform(0.02, 0.2)).clip(-0.5, 0.5) + 0.5
    else:
        share = 1 - (x**2 + y**2) / 2
    return dark + (1 - dark) * share


def rule(paper: np.ndarray, grid: bool, grey: float, rng: np.random.Generator) -> None:
    """Print lines on the paper, blue, `grey` being the red they leave; squared if `grid`."""
    step, width = SIDE * (rng.uniform(0.04, 0.06) if grid else rng.uniform(0.08, 0.11)), rng.integers(1, 3)
    for start in np.arange(rng.uniform(0, step), SIDE, step).astype(int):
        paper[start:start + width] = grey, grey + 10, min(grey + 40, 255)
        if grid:
            paper[:, start:start + width] = grey, grey + 10, min(grey + 40, 255)


def draw_marks(digits: list[np.ndarray], pen: str, drawn: int | str | None, rng: np.random.Generator) -> Image.Image:
    """The ink alone: the digits (28, 28) side by side or, if `drawn` says so, strokes of our own in their place."""
    size = int(SIDE * rng.uniform(0.25, 0.5) / max(1, len(digits) - 1) ** 0.5)
    if drawn == "scribble":
        marks = [draw_scribble(rng, size)]
    elif drawn == "text":
        marks = [draw_text(rng, size)]
    elif isinstance(drawn, str):
        marks = [draw_letter(rng.choice(list(drawn)), size)]
    elif drawn is not None:
        marks = [draw_strokes(drawn, rng, size)]
    else:
        marks = [draw_digit(digit, size, PENS[pen][1]) for digit in digits]
    marks = [mark.crop(mark.getbbox()) for mark in marks]
    gaps = [int(size * rng.uniform(0.1, 0.5)) for _ in marks]
    ink = Image.new("L", (sum(mark.width for mark in marks) + sum(gaps[:-1]),
                          max([mark.height for mark in marks], default=0)))
    left = 0
    for mark, gap in zip(marks, gaps, strict=True):
        ink.paste(mark, (left, (ink.height - mark.height) // 2))
        left += mark.width + gap
    return ink


def draw_around(page: Image.Image, corner: list[int], ink: Image.Image, kind: str, rng: np.random.Generator) -> None:
    """Draw a box or a circle around the ink on a page, or a line below it."""
    gap, width = int(max(ink.size) * rng.uniform(0.15, 0.3)), int(rng.integers(4, 12))
    left, top, right, bottom = corner[0], corner[1], corner[0] + ink.width, corner[1] + ink.height
    draw = ImageDraw.Draw(page)
    if kind == "line":
        height = bottom + gap // 2
        draw.line([left - gap // 2, height, right + gap // 2, height + rng.integers(-8, 9)], fill=255, width=width)
    elif kind == "box":
        draw.rectangle([left - gap, top - gap, right + gap, bottom + gap], outline=255, width=width)
    else:
        radius, x, y = math.hypot(*ink.size) / 2 + gap // 2, (left + right) / 2, (top + bottom) / 2
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], outline=255, width=width)


def lay_on_table(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The photo of a table with the sheet on it, turned by up to 25°."""
    sheet = photo.resize([int(side * rng.uniform(0.5, 0.7)) for side in photo.size])
    sheet = sheet.convert("RGBA").rotate(rng.uniform(-25, 25), Image.Resampling.BICUBIC, expand=True)
    colour = [(120, 85, 60), (70, 50, 42), (150, 120, 90), (40, 42, 45)][rng.integers(4)]
    table = np.float32(colour) + rng.normal(0, 4, (SIDE, 1, 1)) + rng.normal(0, 3, (SIDE, SIDE, 3))  # with a grain
    table = Image.fromarray(table.clip(0, 255).astype(np.uint8))
    table.paste(sheet, tuple(int(rng.integers(0, max(1, SIDE - side))) for side in sheet.size), sheet)
    return table


def photograph(digits: list[np.ndarray], rng: np.random.Generator, pen: str = "marker", light: tuple | None = None,
               lines: float = 0, grid: bool = False, margin_line: bool = False, specks: int = 0, desk: bool = False,
               drawn: int | str | None = None, around: str = "", phone: bool = False, noise: float = 0, blur: float = 0,
               jpeg: int = 92, form: str = "", margin: float | None = None, ground: tuple = (236, 234, 228)
               ) -> Image.Image:
    """One photo of the digits side by side, each (28, 28) in [0, 1]; the keywords say what is in the picture."""
    ink, page = draw_marks(digits, pen, drawn, rng), Image.new("L", (SIDE, SIDE))
    edge = SIDE // 5 if around else SIDE // 9 if desk or margin_line else SIDE // 20  # kept free of ink
    corner = [int(edge + rng.integers(0, max(1, SIDE - side - 2 * edge))) for side in ink.size]
    page.paste(ink, tuple(corner))
    if around:
        draw_around(page, corner, ink, around, rng)
    if form == "clear":
        shown = Image.new("RGB", page.size, PENS[pen][0])
        shown.putalpha(page)
        return shown
    paper = np.full((SIDE, SIDE, 3), ground, dtype=np.float32) + rng.normal(0, 1, (SIDE, SIDE, 1))
    if lines:
        rule(paper, grid, lines, rng)
    if margin_line:
        paper[:, (left := rng.integers(20, 50)):left + rng.integers(3, 9)] = 230, 90, 90
    cover = np.asarray(page, dtype=np.float32)[..., None] / 255
    if pen == "pencil":
        cover = cover * rng.uniform(0.6, 1, cover.shape)
    paper = paper * (1 - cover) + np.float32(PENS[pen][0]) * cover
    for y, x in rng.integers(0, SIDE - 4, (specks, 2)):
        side = rng.integers(2, 5)
        paper[y:y + side, x:x + side] = 40
    if desk:
        for _ in range(rng.integers(1, 3)):
            np.rot90(paper, rng.integers(0, 4))[:rng.integers(SIDE // 40, SIDE // 10)] = 70, 50, 42
    if light:
        paper *= ramp(*light, rng)[..., None]
    photo = Image.fromarray(paper.clip(0, 255).astype(np.uint8))
    if margin is not None:
        box = [corner[0], corner[1], corner[0] + ink.width, corner[1] + ink.height]
        cut = rng.integers(0, 4)
        box[cut] += round(margin * max(ink.size)) * (-1 if cut > 1 else 1)
        photo = photo.crop(box)
    if form == "on a table":
        photo = lay_on_table(photo, rng)
    if form == "black bars":
        photo = ImageOps.expand(photo, tuple(rng.permutation([0, int(SIDE * rng.uniform(0.1, 0.4))]).tolist()))
    if phone:
        tilt = rng.uniform(0, 0.06 * SIDE, 8) * [1, 1, 1, -1, -1, -1, -1, 1]
        quad = np.array([0, 0, 0, SIDE, SIDE, SIDE, SIDE, 0]) + tilt
        photo = photo.transform(photo.size, Image.Transform.QUAD, list(quad), Image.Resampling.BILINEAR)
        noise, blur, jpeg = 6, 1.2, 40
    photo = photo.filter(ImageFilter.GaussianBlur(blur)) if blur else photo
    if noise:
        noisy = np.asarray(photo) + rng.normal(0, noise, np.shape(photo))
        photo = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    if form == "one-bit":
        return photo.convert("1")
    photo.save(stored := io.BytesIO(), "JPEG", quality=jpeg)
    return Image.open(stored)


KINDS: dict[str, dict] = {  # the keywords of `photograph`
    "clean": {}, "drawn": {"drawn": True}, "red": {"pen": "red"}, "light blue": {"pen": "light blue"},
    "felt pen": {"pen": "felt"}, "ballpoint": {"pen": "ballpoint"}, "pencil": {"pen": "pencil"},
    "chalk": {"pen": "chalk", "ground": (45, 70, 60)}, "JPEG 5": {"jpeg": 5}, "noise SD 20": {"noise": 20},
    "blur 10 px": {"blur": 7.5},
    "gradient 0.6": {"light": ("gradient", 0.6)}, "gradient 0.5": {"light": ("gradient", 0.5)},
    "gradient 0.35": {"light": ("gradient", 0.35)},
    "gradient 0.6, ballpoint": {"light": ("gradient", 0.6), "pen": "ballpoint"},
    "gradient 0.6, pencil": {"light": ("gradient", 0.6), "pen": "pencil"},
    "shadow 0.8": {"light": ("shadow", 0.8)}, "shadow 0.6": {"light": ("shadow", 0.6)},
    "shadow 0.45": {"light": ("shadow", 0.45)},
    "vignette 0.7": {"light": ("vignette", 0.7)}, "vignette 0.5": {"light": ("vignette", 0.5)},
    "ruled 180": {"lines": 180}, "ruled 130": {"lines": 130},
    "ruled 170, ballpoint": {"lines": 170, "pen": "ballpoint"},
    "squared 170": {"lines": 170, "grid": True},
    "squared 150, ballpoint": {"lines": 150, "grid": True, "pen": "ballpoint"},
    "one speck": {"specks": 1}, "five specks": {"specks": 5}, "twenty specks": {"specks": 20},
    "desk edge": {"desk": True}, "desk edge, gradient 0.6": {"desk": True, "light": ("gradient", 0.6)},
    "one-bit": {"form": "one-bit"},
    "sheet on a table": {"form": "on a table"},
    "sheet on a table, gradient 0.6": {"form": "on a table", "light": ("gradient", 0.6)},
    "black bars": {"form": "black bars"},
    "in a box": {"around": "box"}, "in a circle": {"around": "circle"}, "underlined": {"around": "line"},
    "yellow on black": {"pen": "yellow", "ground": (24, 26, 31)},
    "light blue on black": {"pen": "light blue", "ground": (24, 26, 31)},
    "ruled 180, margin line": {"lines": 180, "margin_line": True},
    "light blue on yellow": {"pen": "light blue", "ground": (255, 235, 60)},
    "orange on blue": {"pen": "orange", "ground": (30, 90, 200)},
    "yellow on white": {"pen": "yellow", "ground": (252, 252, 252)}, "yellow on cream": {"pen": "yellow"},
    "white on clear": {"pen": "white", "form": "clear"},
    "cut tight": {"margin": 0.0}, "cut off by 8 %": {"margin": 0.08},
    "phone 0.8": {"phone": True, "light": ("gradient", 0.8), "pen": "phone"},
    "phone 0.6": {"phone": True, "light": ("gradient", 0.6), "pen": "phone"},
    "phone 0.8, ruled": {"phone": True, "light": ("gradient", 0.8), "pen": "phone", "lines": 180},
    "phone 0.6, ruled": {"phone": True, "light": ("gradient", 0.6), "pen": "phone", "lines": 180},
}

NO_DIGIT: dict[str, dict] = {  # the same for pictures that must be refused, or answered with a low probability
    "two digits": {"count": 2}, "two digits, ballpoint": {"count": 2, "pen": "ballpoint"}, "three digits": {"count": 3},
    "blank, gradient 0.7": {"light": ("gradient", 0.7)},
    "blank, gradient 0.5": {"light": ("gradient", 0.5)},
    "blank, gradient 0.8, noise SD 5": {"light": ("gradient", 0.8), "noise": 5},
    "blank, shadow 0.5": {"light": ("shadow", 0.5)}, "blank, vignette 0.5": {"light": ("vignette", 0.5)},
    "blank, noise SD 20": {"noise": 20}, "blank, ruled 170": {"lines": 170},
    "blank, squared 170": {"lines": 170, "grid": True}, "blank, desk edge": {"desk": True},
    "blank sheet on a table": {"form": "on a table"},
    "blank, one-bit": {"form": "one-bit"},
    "blank, phone, ruled": {"phone": True, "light": ("gradient", 0.6), "lines": 180},
    "blank, one speck": {"specks": 1}, "blank, ten specks": {"specks": 10},
    "scribble": {"drawn": "scribble"}, "letters": {"drawn": "AEFHKMNRWXY&#%"}, "page of text": {"drawn": "text"},
}


def simple_preparation(photo: Image.Image) -> np.ndarray:
    """The preparation (28, 28) that a first attempt makes: one ground, one threshold, and one box around the rest."""
    photo = photo.convert("RGBA")
    page = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo)
    grey = np.asarray(page.convert("L"), dtype=np.float32) / 255
    ink = grey - np.median(grey)
    ink = ink if ink.max() >= -ink.min() else -ink
    if ink.max() < 0.1:
        raise ValueError("the image is uniform")
    ink = (ink / ink.max()).clip(0)
    rows, columns = (np.flatnonzero((ink > 0.3).any(axis)) for axis in (1, 0))
    return centre(ink[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]).astype(np.float32)


def legible_digits(model: nn.Module, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Digits (N, 28, 28) of the first 1,000 that the network classifies correctly as they are and as thin lines.

    A filled loop, for one, is no loop in a thin line, and nobody could read it. With their labels (N,).
    """
    images, labels = (part[:1000] for part in load_mnist(train))
    images, correct = images[:, 0].numpy() / np.float32(255), True
    lines = [draw_digit(image, 112, 0.1) for image in images]
    lines = np.stack([centre(np.asarray(line.crop(line.getbbox())) / 255) for line in lines])
    for digits in images, lines.astype(np.float32):
        with torch.no_grad():
            correct &= model(normalise(torch.from_numpy(digits)[:, None])).argmax(1) == labels
    return images[correct], labels[correct].numpy()


def measure(kind: str, settings: dict, methods: dict[str, Callable], images: np.ndarray, labels: np.ndarray,
            number: int) -> dict[str, dict]:
    """For each method, the percentages of right answers, of these that are unsure, of wrong but sure ones, of refusals.

    Where there is not one digit to find, a refusal is right, and any answer that is not sure is neither.
    """
    rng = np.random.default_rng(list(kind.encode()))
    counts = {name: Counter() for name in methods}
    for index in range(number):
        options = dict(settings)
        chosen = rng.integers(0, len(images), options.pop("count", int(kind in KINDS)))
        label = int(labels[chosen[0]]) if kind in KINDS else None
        if options.get("drawn") is True:
            options["drawn"] = label = index % 10
        photo = photograph(list(images[chosen]), rng, **options)
        photo.load()
        for name, classify in methods.items():
            try:
                digit, probabilities = classify(photo)
                sure = probabilities.max().item() > SURE
            except ValueError:
                digit, sure = None, label is None
            right = digit == label
            counts[name] += Counter(right=right, unsure=right and not sure, wrong_sure=sure and not right,
                                    refused=digit is None)
    return {name: {key: round(100 * count[key] / number, 1) for key in ("right", "unsure", "wrong_sure", "refused")}
            for name, count in counts.items()}


def read_results() -> dict:
    """The rates on record."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def write_examples() -> None:
    """Draw the photos of README and notebook: two that are classified, and one without a digit."""
    images, _ = load_mnist(train=False)
    for name, kind, index in ("photo", "phone 0.6", 15), ("photo-ruled", "phone 0.6, ruled", 61), \
                             ("photo-blank", "blank, shadow 0.5", None):
        digits = [] if index is None else [images[index, 0].numpy() / 255]
        photo = photograph(digits, np.random.default_rng(5), **(KINDS | NO_DIGIT)[kind])
        photo.convert("RGB").save(ROOT / "images" / f"{name}.jpg", quality=88)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=100, help="photos of each kind")
    parser.add_argument("--train", action="store_true", help="draw training digits, for development; store nothing")
    parser.add_argument("--examples", action="store_true", help="draw the photos in images/, and measure nothing")
    arguments = parser.parse_args()
    if arguments.examples:
        write_examples()
        return
    model = stored_network()

    def simple(photo: Image.Image) -> tuple[int, Tensor]:
        with torch.no_grad():
            digit = torch.from_numpy(simple_preparation(photo)).view(1, *IMAGE_SHAPE)
            probabilities = model(normalise(digit)).softmax(1)[0]
        return int(probabilities.argmax()), probabilities

    methods = {"predict_digit": predict_digit, "simple": simple}
    images, labels = legible_digits(model, arguments.train)
    results = {}
    for kind, settings in tqdm((KINDS | NO_DIGIT).items(), file=sys.stdout, leave=False):
        results[kind] = measure(kind, settings, methods, images, labels, arguments.number)
        cells = (f"{name}: right {r['right']:5} % (unsure {r['unsure']:4} %), wrong though sure {r['wrong_sure']:4} %, "
                 f"refused {r['refused']:5} %" for name, r in results[kind].items())
        tqdm.write(f"{kind:32} {' | '.join(cells)}", file=sys.stdout)
    if not arguments.train:
        record = {"photos_of_each_kind": arguments.number, "kinds": results}
        text = json.dumps(record, indent=1) + "\n"
        atomic_write(RESULTS, lambda temporary: temporary.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
