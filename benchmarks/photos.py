"""Count how many digits in pictures are read right, beside a simple preparation.

    python -m benchmarks.photos FOLDER    your own pictures: FOLDER/3/any.jpg of one digit, here a 3, and
                                          FOLDER/several/any-is-12345-67890.jpg of two rows of five
    python -m benchmarks.photos           pictures made by code, of twenty kinds, and of what is no digit

All failures of a folder are drawn on one sheet. FOLDER/SOURCES.tsv may give kind and source of each picture. With
--keep the rates go to results/photos.json, by kind and method: numbers of pictures, whole pictures and digits, the rest
in percent.
"""

import argparse
import csv
import io
import json
import math
import sys
from collections import Counter, defaultdict
from contextlib import suppress
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from scipy.ndimage import distance_transform_edt, find_objects
from skimage.filters import threshold_otsu
from skimage.morphology import skeletonize
from torch import Tensor
from tqdm import tqdm

from benchmarks.robustness import SURE
from handwriting import centre, classify, load_colours, predict_digit, predict_digits, stored_network
from mnist import load_mnist, normalise
from utils import ROOT, predict

RESULTS = ROOT / "benchmarks" / "results" / "photos.json"
SIDE = 600  # pixels of a picture made by code
PENS = {  # colour, and width as a share of the digit's height; None: as MNIST has it
    "marker": ((32, 36, 58), None), "ballpoint": ((30, 50, 150), 0.03), "pencil": ((105, 105, 105), 0.04),
    "yellow": ((253, 220, 60), None), "chalk": ((235, 235, 228), 0.09), "white": ((255, 255, 255), None)}
KINDS: dict[str, dict] = {  # the keywords of `photograph`
    "clean": {}, "pencil": {"pen": "pencil"}, "ballpoint": {"pen": "ballpoint"},
    "chalk": {"pen": "chalk", "ground": (45, 70, 60)}, "yellow on white": {"pen": "yellow", "ground": (252, 252, 252)},
    "white on clear": {"pen": "white", "clear": True}, "noise SD 20": {"noise": 20}, "JPEG 5": {"jpeg": 5},
    "gradient 0.5": {"light": ("gradient", 0.5)}, "gradient 0.6, pencil": {"light": ("gradient", 0.6), "pen": "pencil"},
    "shadow 0.6": {"light": ("shadow", 0.6)}, "vignette 0.5": {"light": ("vignette", 0.5)}, "ruled": {"lines": 170},
    "ruled, ballpoint": {"lines": 170, "pen": "ballpoint"}, "squared": {"lines": 170, "grid": True},
    "squared, ballpoint": {"lines": 150, "grid": True, "pen": "ballpoint"}, "five specks": {"specks": 5},
    "in a box": {"box": True}, "cut tight": {"margin": 0.0}, "cut off by 8 %": {"margin": 0.08},
}
NO_DIGIT: dict[str, dict] = {  # the same for pictures that must be refused, or answered with a low probability
    "two digits": {"count": 2}, "blank, gradient 0.5": {"light": ("gradient", 0.5)},
    "blank, shadow 0.5": {"light": ("shadow", 0.5)}, "blank, vignette 0.5": {"light": ("vignette", 0.5)},
    "blank, noise SD 20": {"noise": 20}, "blank, ruled": {"lines": 170},
    "blank, squared": {"lines": 170, "grid": True}, "blank, ten specks": {"specks": 10},
}


def draw_digit(image: np.ndarray, size: int, width: float | None) -> Image.Image:
    """Redraw a digit (28, 28) in [0, 1] at `size` pixels: as it is, or as a line of `width` times the size."""
    large = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
    if width is None:
        ink = 2.5 * large - 0.5
    else:
        ink = width * size / 2 - distance_transform_edt(~skeletonize(large > 0.4)) + 0.5
    ink = Image.fromarray((255 * ink.clip(0, 1)).astype(np.uint8))
    return ink.crop(ink.getbbox())


def light_on(kind: str, dark: float, rng: np.random.Generator) -> np.ndarray:
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


def photograph(digits: list[np.ndarray], rng: np.random.Generator, pen: str = "marker", light: tuple | None = None,
               lines: float = 0, grid: bool = False, specks: int = 0, box: bool = False, noise: float = 0,
               jpeg: int = 92, clear: bool = False, margin: float | None = None, ground: tuple = (236, 234, 228)
               ) -> Image.Image:
    """One picture of the digits side by side, each (28, 28) in [0, 1]; the keywords say what is in it."""
    pen_colour, pen_width = PENS[pen]
    page = Image.new("L", (SIDE, SIDE))
    size = int(SIDE * rng.uniform(0.25, 0.42))
    left, top = rng.integers(50, 85, 2).tolist()
    for digit in digits:
        ink = draw_digit(digit, size, pen_width)
        page.paste(ink, (left, top))
        left += ink.width + size // 4
    ink_box = page.getbbox()
    if box:
        outline = np.add(ink_box, [-40, -40, 40, 40]).tolist()
        ImageDraw.Draw(page).rectangle(outline, outline=255, width=int(rng.integers(3, 9)))
    if clear:
        picture = Image.new("RGB", page.size, pen_colour)
        picture.putalpha(page)
        return picture
    paper = np.full((SIDE, SIDE, 3), ground, dtype=np.float32) + rng.normal(0, 1, (SIDE, SIDE, 1))
    if lines:
        step = SIDE * (rng.uniform(0.04, 0.06) if grid else rng.uniform(0.08, 0.11))
        colour = lines, lines + 10, min(lines + 40, 255)
        for start in np.arange(rng.uniform(0, step), SIDE, step).astype(int):
            paper[start:start + 2] = colour
            if grid:
                paper[:, start:start + 2] = colour
    cover = np.asarray(page, dtype=np.float32)[..., None] / 255
    paper = paper * (1 - cover) + np.float32(pen_colour) * cover
    for y, x in rng.integers(0, SIDE - 4, (specks, 2)):
        paper[y:y + 4, x:x + 4] = 40
    if light:
        paper *= light_on(*light, rng)[..., None]
    paper += rng.normal(0, noise, paper.shape)
    picture = Image.fromarray(paper.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.7))
    if margin is not None:
        cut = round(margin * max(ink_box[2] - ink_box[0], ink_box[3] - ink_box[1]))
        picture = picture.crop((ink_box[0] + cut, *ink_box[1:]))
    picture.save(stored := io.BytesIO(), "JPEG", quality=jpeg)
    return Image.open(stored)


def predict_simply(picture: Path | Image.Image) -> tuple[int, Tensor]:
    """Classify by what a first attempt makes: grey, Otsu's threshold, the box of the ink, 20 pixels, centre of mass."""
    grey = load_colours(picture).mean(axis=0)
    ink = grey > threshold_otsu(grey)
    if ink.mean() > 0.5:
        ink = ~ink
    boxes = find_objects(ink.astype(int))
    if not boxes:
        raise ValueError("no ink")
    digit = centre(ink[boxes[0]].astype(np.float32))
    probabilities = classify(digit / max(digit.max(), 1e-6), stored_network())
    return int(probabilities.argmax()), probabilities


def judge_one(method, picture: Path | Image.Image, label: int | None) -> tuple[Counter, str]:
    """What became of a picture of one digit, or of none, and the answer in words. Refusing what is none is right."""
    try:
        digit, probabilities = method(picture)
        sure = probabilities.max().item() > SURE
        answer = f"{digit} ({probabilities.max():.2f})"
    except ValueError as error:
        digit = None
        sure = label is None
        answer = str(error)[:30]
    right = digit == label
    return Counter(pictures=1, right=right, right_and_sure=right and sure, wrong_and_sure=sure and not right,
                   refused=digit is None), answer


def judge_several(picture: Path, label: str) -> tuple[Counter, str]:
    """What became of a picture of several digits, and the answer; found and expected digits are aligned by difflib."""
    try:
        found = predict_digits(picture)
    except ValueError:
        found = []
    said = "".join(str(digit) for digit, *_ in found)
    counts = Counter(pictures=1, whole=said == label, digits=len(label), right=0, wrong_and_sure=0, missed=0, extra=0,
                     extra_and_sure=0)
    for operation, *expected, start, end in SequenceMatcher(None, label, said, autojunk=False).get_opcodes():
        number = expected[1] - expected[0]
        if operation == "equal":
            counts["right"] += number
            continue
        sure = [probabilities.max().item() > SURE for _, probabilities, _ in found[start:end]]
        counts.update(missed=max(0, number - len(sure)), extra=max(0, len(sure) - number),
                      wrong_and_sure=sum(sure[:number]), extra_and_sure=sum(sure[number:]))
    return counts, said or "nothing"


def draw_sheet(failures: list[tuple[Path, str]], path: Path) -> None:
    """All failures on one sheet: the picture, what was found in it, and what was said."""
    sheet = Image.new("RGB", (5 * 260, math.ceil(len(failures) / 5) * 290 or 1), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (name, said) in enumerate(failures):
        left, top = index % 5 * 260, index // 5 * 290
        picture = ImageOps.contain(ImageOps.exif_transpose(Image.open(name)).convert("RGB"), (250, 250))
        sheet.paste(picture, (left, top))
        draw.text((left, top + 255), said, fill="black")
        with suppress(ValueError):
            for *_, box in predict_digits(name):
                corners = np.reshape(box, (2, 2)) * picture.size + [left, top]
                draw.rectangle(corners.ravel().tolist(), outline="red")
    sheet.save(path)


def rates(counts: Counter) -> dict:
    """The numbers of pictures and digits, and the others as percentages of these; whole pictures as they are."""
    total = counts["digits"] or counts["pictures"]
    return {key: int(value) if key in ("pictures", "whole", "digits") else round(100 * value / total, 1)
            for key, value in counts.items()}


def measure_folder(folder: Path, sheet: Path) -> dict:
    """The counts by kind of all pictures in a folder, and their sources; the failures are drawn on a sheet."""
    table = folder / "SOURCES.tsv"
    rows = list(csv.DictReader(table.open(encoding="utf-8"), delimiter="\t")) if table.exists() else []
    kinds = {row["file"]: row["kind"] for row in rows}
    sources = sorted({(row["repository"], row["commit"]) for row in rows})
    counts = defaultdict(lambda: defaultdict(Counter))
    failures = []
    for path in tqdm(sorted(folder.glob("[0-9]/*")) + sorted(folder.glob("several/*")), file=sys.stdout, leave=False):
        label = path.parent.name
        if label == "several":
            label = path.stem.rsplit("-is-", 1)[1].replace("-", "")
            count, said = judge_several(path, label)
            counts["several"]["predict_digits"].update(count)
        else:
            count, said = judge_one(predict_digit, path, int(label))
            simple, _ = judge_one(predict_simply, path, int(label))
            for kind in "all", kinds.get(path.relative_to(folder).as_posix(), "single digit"):
                counts[kind]["predict_digit"].update(count)
                counts[kind]["predict_simply"].update(simple)
        if not count["whole"] and not count["right_and_sure"]:
            failures.append((path, f"{label}: {said}"))
    draw_sheet(failures, sheet)
    print(f"{len(failures)} pictures were not read, or not surely: see {sheet}")
    return {"kinds": counts, "sources": [{"repository": name, "commit": commit} for name, commit in sources]}


def measure_simulated(number: int) -> dict:
    """The counts by kind of pictures made by code, of MNIST test digits that the network itself gets right."""
    images, labels = (part[:1000] for part in load_mnist(train=False))
    logits, _ = predict(stored_network(), [(normalise(images.float() / 255), labels)])
    right = logits.argmax(1) == labels
    images, labels = images[right, 0].numpy() / np.float32(255), labels[right].tolist()
    counts = defaultdict(lambda: defaultdict(Counter))
    for kind, settings in tqdm((KINDS | NO_DIGIT).items(), file=sys.stdout, leave=False):
        rng = np.random.default_rng(list(kind.encode()))
        for _ in range(number):
            options = dict(settings)
            chosen = rng.integers(0, len(images), options.pop("count", int(kind in KINDS)))
            picture = photograph(list(images[chosen]), rng, **options)
            label = labels[chosen[0]] if kind in KINDS else None
            for method in (predict_digit, predict_simply):
                counts[kind][method.__name__].update(judge_one(method, picture, label)[0])
    return {"kinds": counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="pictures of your own; without it, pictures are made")
    parser.add_argument("--sheet", type=Path, default=Path("failures.png"), help="where the failures are drawn")
    parser.add_argument("--number", type=int, default=30, help="pictures of each kind that are made")
    parser.add_argument("--keep", action="store_true", help="put the rates in results/photos.json")
    args = parser.parse_args()
    result = measure_folder(args.folder, args.sheet) if args.folder else measure_simulated(args.number)
    for kind, methods in result["kinds"].items():
        for method, count in methods.items():
            methods[method] = rates(count)
            print(f"{kind:32} {method:14} {', '.join(f'{key} {value}' for key, value in methods[method].items())}")
    if args.keep:
        record = json.loads(RESULTS.read_text(encoding="utf-8"))
        record["real" if args.folder else "simulated"] = result
        RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
