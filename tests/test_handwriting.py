"""Photographs of digits are classified, however they are handed over; what is no digit, or no image, is refused."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

from handwriting import Part, choose_parts, predict_digit, predict_digits, prepare_digit
from utils import ROOT, load_run

PHOTOS = sorted((ROOT / "tests" / "photos").glob("*-is-*"))  # KIND-N-is-DIGIT


def encode(image, file_format="PNG", **options):
    image.save(content := io.BytesIO(), file_format, **options)
    return content.getvalue()


def draw(*lines, ground="white", ink="navy", size=(300, 300)):
    """A page with strokes through the points of each line."""
    page = Image.new("RGB", size, ground)
    for line in lines:
        ImageDraw.Draw(page).line(line, fill=ink, width=18, joint="curve")
    return page


PAGE = draw([(100, 80), (190, 75), (130, 230)])  # a seven
GREY = np.asarray(PAGE.convert("L"))
COLOUR = np.asarray(PAGE)


@pytest.mark.parametrize("kind", sorted({path.stem.rsplit("-", 3)[0] for path in PHOTOS}))
def test_photos_are_classified(kind):
    photos = [path for path in PHOTOS if path.stem.rsplit("-", 3)[0] == kind]
    correct = [predict_digit(path)[0] == int(path.stem[-1]) for path in photos]
    assert len(photos) == 3
    assert sum(correct) >= (2 if kind == "desk-edge" else 3)


def test_form_is_that_of_mnist(test_set):
    """Size, centre and weight of the prepared digits are those of MNIST's own, and so are most pixels."""
    differences = []
    for image in test_set[0][:100, 0].numpy():
        steps = prepare_digit(np.kron(255 - image, np.ones((8, 8), dtype=np.uint8)))
        rows, columns = (np.flatnonzero(steps.digit.any(axis)) for axis in (1, 0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
        centre = [(steps.digit.sum(axis) @ np.arange(0.5, 28)) / steps.digit.sum() for axis in (0, 1)]
        assert centre == pytest.approx([14.5, 14.5], abs=0.51) or min(rows[0], columns[0]) == 0
        assert all((step.dtype, step.ndim) == (np.float32, 2) and 0 <= step.min() <= step.max() <= 1 for step in steps)
        differences.append(abs(steps.digit - image / 255).mean())
    assert np.mean(differences) < 0.05


@pytest.mark.parametrize("width", [4, 10, 20, 40])
def test_strokes_of_any_width_come_out_alike(width):
    page = Image.new("L", (400, 400), "white")
    ImageDraw.Draw(page).line([(100, 100), (300, 100), (180, 330)], fill=0, width=width, joint="curve")
    assert 45 < prepare_digit(page).digit.sum() < 110  # MNIST's sevens: 5th to 95th percentile


@pytest.mark.parametrize("image", [
    PAGE, PAGE.convert("L"), PAGE.convert("1"), PAGE.convert("P"), PAGE.convert("CMYK"), PAGE.convert("F"),
    Image.fromarray(GREY * np.uint16(257)), PAGE.resize((3000, 3000)), PAGE.resize((60, 60)),
    encode(PAGE), encode(PAGE, "JPEG", quality=20), encode(PAGE, "WEBP"), io.BytesIO(encode(PAGE)),
    encode(PAGE, "GIF", save_all=True, append_images=[Image.new("RGB", PAGE.size)]),
    COLOUR, GREY, 255 - GREY, GREY > 150, GREY[..., None], GREY[None], GREY[None, None], COLOUR.transpose(2, 0, 1),
    np.dstack([GREY * 0, 255 - GREY]), np.dstack([COLOUR, 255 - GREY]), np.dstack([COLOUR * 0 + 255, 255 - GREY]),
    GREY.astype(int), GREY * np.uint16(4), GREY * np.uint16(16), GREY * np.uint16(257), GREY / 255, GREY * 1.0,
    GREY / 255 * 1.04 - 0.02, torch.tensor(GREY), torch.tensor(COLOUR).permute(2, 0, 1) / 255,
    (torch.tensor(GREY) / 255).bfloat16(),
    (torch.tensor(GREY)[None] / 255 - 0.1307) / 0.3081, (torch.tensor(GREY)[None, None] / 255).requires_grad_(),
    draw([(100, 80), (190, 75), (130, 230)], ground="darkslategray", ink="white"),
    draw([(100, 80), (190, 75), (130, 230)], ink="yellow"),
    draw([(100, 80), (190, 75), (130, 230)], ground="gold", ink="dodgerblue"),
    draw([(100, 80), (190, 75), (130, 230)], ground="mediumblue", ink="orange"),
    np.dstack([GREY * 0, 255 - GREY])[60:240, 120:200], bytearray(encode(PAGE)), memoryview(encode(PAGE)),
    encode(PAGE, "JPEG", exif=b"Exif\0\0damaged"),
], ids=lambda image: f"{type(image).__name__}-{getattr(image, 'mode', getattr(image, 'shape', ''))}")
def test_every_kind_of_image(image):
    digit, probabilities = predict_digit(image)
    assert digit == 7
    assert probabilities.shape == (10,) and probabilities[7] > 0.5
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)


def test_files(tmp_path):
    """A path or an open file will do; a camera's note of which way is up is followed."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° to the right
    path, deep = tmp_path / "photo.jpg", tmp_path / "deep.png"
    PAGE.rotate(90).save(path, exif=exif)
    Image.fromarray(np.rot90(GREY) * np.uint16(257)).save(deep, exif=exif)
    with path.open("rb") as file:
        assert [predict_digit(image)[0] for image in (path, str(path), file, deep)] == [7, 7, 7, 7]


def test_a_file_that_was_just_written():
    PAGE.save(file := io.BytesIO(), "PNG")
    assert predict_digit(file)[0] == 7


def on_desk(sheet, angle):
    """A photograph of a sheet that lies whole on a desk."""
    desk, sheet = Image.new("RGB", (800, 600), "saddlebrown"), sheet.convert("RGBA").rotate(angle, expand=True)
    desk.paste(sheet, (200, 80), sheet)
    return desk


@pytest.mark.parametrize("angle", [0, 7, -20])
@pytest.mark.parametrize("ground", ["white", "khaki", "black"])
def test_sheet_on_a_desk(angle, ground):
    sheet = draw([(100, 80), (190, 75), (130, 230)], ground=ground, ink="white" if ground == "black" else "navy")
    photo = on_desk(sheet, angle)
    digit, probabilities = predict_digit(photo)
    assert digit == 7
    assert probabilities[7] > 0.8
    assert predict_digit(photo.convert("RGBA"))[0] == 7
    if angle == 0:
        assert np.allclose(predict_digits(photo)[0][2], (300 / 800, 155 / 600, 390 / 800, 310 / 600), atol=0.03)
    with pytest.raises(ValueError, match="no digit"):
        predict_digit(on_desk(draw(ground=ground), angle))


def test_black_bars():
    page = draw([(100, 80), (190, 75), (130, 230)], size=(300, 500))
    assert predict_digit(ImageOps.expand(page, (0, 200)))[0] == 7


@pytest.mark.parametrize(("ink", "ground"), [("gold", "#181a1f"), ("tomato", "#141628"), ("dodgerblue", "#23262d")])
def test_coloured_ink_on_a_dark_ground(test_set, ink, ground):
    for image, label in zip(test_set[0][:12, 0].numpy(), test_set[1], strict=False):
        page = Image.new("RGB", (500, 500), ground)
        page.paste(ink, (40, 40), Image.fromarray(image).resize((420, 420), Image.Resampling.BICUBIC))
        assert predict_digit(page)[0] == label


@pytest.mark.parametrize("mark", [
    [(60, 30), (240, 30), (240, 270), (60, 270), (60, 30)],  # a printed box
    [(150 + 125 * np.cos(t), 152 + 125 * np.sin(t)) for t in np.linspace(0, 2 * np.pi, 60)],  # a circle
    [(60, 262), (240, 255)],
])
def test_frame_and_underline_are_passed_over(mark):
    digit, probabilities = predict_digit(draw([(100, 80), (190, 75), (130, 230)], mark))
    assert digit == 7
    assert probabilities[7] > 0.8


def test_model():
    """The stored network is the default; the modes of the caller's own are kept."""
    model = load_run(ROOT / "S6_MNIST.pt")[0].train()
    model.stage1.eval()
    given = predict_digit(PAGE, model)[1]
    assert model.training and not model.stage1.training
    assert torch.equal(predict_digit(PAGE)[1], given)


def test_several_digits():
    page = draw([(60, 80), (140, 75), (90, 230)], [(220, 70), (215, 235)])
    with pytest.raises(ValueError, match="two digits"):
        predict_digit(page)
    (seven, _, left), (one, _, right) = predict_digits(page)
    assert (seven, one) == (7, 1)
    assert np.allclose(left, (0.17, 0.22, 0.5, 0.78), atol=0.05)
    assert np.allclose(right, (0.69, 0.23, 0.76, 0.78), atol=0.05)


def test_a_row_of_digits_of_different_sizes():
    row = [[(x, 180 - height), (x + height // 2, 178 - height), (x + height // 4, 180)]
           for x, height in zip(range(30, 1200, 120), [100, 70] * 5, strict=True)]
    assert [digit for digit, *_ in predict_digits(draw(*row, size=(1260, 200)))] == [7] * 10


@pytest.mark.parametrize("mark", [
    [(250, 0), (250, 299)], [(40, 0), (36, 299)],  # a margin line
    [(210, 200), (280, 280), (215, 275), (285, 205), (230, 290), (260, 190), (200, 240), (290, 250), (210, 200)],
])
def test_what_is_beside_the_digit_is_passed_over(mark):
    digit, probabilities = predict_digit(draw([(100, 80), (190, 75), (130, 230)], mark))
    assert digit == 7
    assert probabilities[7] > 0.8


@pytest.mark.parametrize("side", range(84, 120, 4))
def test_digits_of_the_smallest_size_are_found_or_refused(side):
    page = Image.new("L", (1000, 1000), "white")
    page.paste(PAGE.convert("L").crop((90, 65, 200, 240)).resize((side * 2 // 3, side)), (500, 500))
    try:
        assert predict_digit(page)[0] == 7
    except ValueError as error:
        assert str(error).startswith("no digit") and side < 88


def test_no_part_belongs_to_two_digits():
    dash, seven = Part(1, 20, 100, 140, 112, edge=0), Part(2, 155, 60, 215, 150, edge=0)
    assert choose_parts([dash, seven], (300, 300)) == [[dash], [seven]]


RNG = np.random.default_rng(0)
LIGHT = np.linspace(240, 140, 300)[:, None].repeat(300, 1)
RULED = LIGHT - 50 * (np.arange(300)[:, None] % 24 < 2)
SPECK = Image.new("L", (300, 300), "white")
SPECK.paste(0, (100, 100, 105, 104))


@pytest.mark.parametrize("image", [
    Image.new("RGB", (100, 100), "white"), np.full((28, 28), 7.0), LIGHT, LIGHT + RNG.normal(0, 5, LIGHT.shape),
    LIGHT.T * 1.5 - 120, RULED, RULED.T,
    200 + RNG.normal(0, 20, (300, 300)), SPECK, Image.new("RGBA", (50, 50)), np.full((28, 28), 0.5) + 0.01 * np.eye(28),
    draw([tuple(point) for point in RNG.integers(40, 260, (30, 2)).tolist()]),  # a scribble
])
def test_pages_without_a_digit(image):
    with pytest.raises(ValueError, match="no digit"):
        prepare_digit(image)


def test_page_of_text():
    page = Image.new("L", (400, 400), "white")
    ImageDraw.Draw(page).text((10, 10), "much is written\nhere, but no\ndigit at all", font_size=48)
    with pytest.raises(ValueError, match="digits"):
        predict_digit(page)


@pytest.mark.parametrize(("most", "lines"), [
    (0.3, [[(190, 70), (110, 70), (110, 230), (190, 230)], [(110, 150), (170, 150)]]),  # E
    (0.3, [[(190, 70), (110, 70), (110, 230)], [(110, 150), (170, 150)]]),  # F
    (0.3, [[(110, 70), (110, 230)], [(190, 70), (110, 150), (190, 230)]]),  # K
    (0.3, [[(90, 230), (100, 70), (150, 160), (200, 70), (210, 230)]]),  # M
    (0.3, [[(95, 230), (150, 70), (205, 230)], [(115, 170), (185, 170)]]),  # A
    (0.3, [[(100, 70), (100, 230)], [(200, 70), (200, 230)], [(100, 150), (200, 150)]]),  # H
    (0.75, [[(100, 80), (200, 220)], [(200, 80), (100, 220)]]),  # X
    (0.75, [[(110, 230), (120, 80), (210, 190), (100, 200)]]),  # a triangle with a tail
])
def test_what_is_no_digit_meets_with_doubt(most, lines):
    assert predict_digit(draw(*lines))[1].max() < most


@pytest.mark.parametrize(("image", "message"), [
    (np.zeros((0, 28)), "not one image"), (np.zeros((2, 3, 4, 5)), "not one image"), (np.zeros(28), "not one image"),
    (np.zeros((5, 28, 28)), "not one image"), (torch.zeros(2, 1, 28, 28), "not one image"), (None, "not one image"),
    (np.full((28, 28), np.nan), "finite"), (b"", "empty"), (b"not a picture", "format"),
    (encode(PAGE)[:500], "damaged"), (encode(PAGE, "JPEG")[:2000], "damaged"), (b"%PDF-1.7 ...", "PDF"),
    (b"<?xml version='1.0'?><svg></svg>", "SVG"), (b"\0\0\0\x18ftypheic....", "HEIC"),
    ("https://example.com/seven.png", "download"), ("HTTP://example.com/seven.png", "download"),
    (Image.new("L", (0, 0)), "no pixels"), ((GREY, 7), "image alone"),
])
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        prepare_digit(image)


def test_paths_without_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        prepare_digit(tmp_path / "none.png")
    with pytest.raises(IsADirectoryError, match="folder"):
        prepare_digit(tmp_path)
    with (ROOT / "README.md").open() as text, pytest.raises(ValueError, match="rb"):
        prepare_digit(text)


def test_too_many_pixels(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)  # Pillow refuses twice as many
    with pytest.raises(ValueError, match="too many pixels"):
        prepare_digit(encode(PAGE))
