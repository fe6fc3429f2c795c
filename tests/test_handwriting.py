"""Pictures of digits are classified, however they are handed over; what is no digit, or no image, is refused."""

import base64
import copy
import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy import ndimage

from handwriting import predict_digit, predict_digits, prepare_digit
from utils import ROOT, load_run

PHOTOS = sorted((ROOT / "tests" / "photos").glob("*-is-*"))  # KIND-N-is-DIGIT
SEVEN = [(100, 80), (190, 75), (130, 230)]
RNG = np.random.default_rng(0)


def encode(image, file_format="PNG", **options):
    image.save(content := io.BytesIO(), file_format, **options)
    return content.getvalue()


def draw(*lines, ground="white", ink="navy", size=(300, 300), width=18, page=None):
    """A page with strokes through the points of each line."""
    page = page.copy() if page else Image.new("RGB", size, ground)
    for line in lines:
        ImageDraw.Draw(page).line(line, fill=ink, width=width, joint="curve")
    return page


def shift(line, x, y, scale=1.0):
    return [(x + scale * a, y + scale * b) for a, b in line]


PAGE = draw(SEVEN)
GREY = np.asarray(PAGE.convert("L"))
COLOUR = np.asarray(PAGE)


def test_photos_are_classified():
    correct = [predict_digit(path)[0] == int(path.stem[-1]) for path in PHOTOS]
    assert len(PHOTOS) == 20
    assert sum(correct) >= 19


def test_form_is_that_of_mnist(test_set):
    """Size, centre and weight of the prepared digits are those of MNIST's own, and so are most pixels."""
    differences = []
    for image in test_set[0][:8, 0].numpy():
        steps = prepare_digit(np.kron(255 - image, np.ones((8, 8), dtype=np.uint8)))
        rows, columns = np.nonzero(steps["digit"])
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
        assert all((step.dtype, step.ndim) == (np.float32, 2) and 0 <= step.min() <= step.max() <= 1
                   for step in steps.values())
        differences.append(abs(steps["digit"] - image / 255).mean())
    assert np.mean(differences) < 0.05


@pytest.mark.parametrize("image", [
    PAGE, PAGE.convert("1"), PAGE.convert("P"), PAGE.convert("CMYK"), PAGE.convert("F"), PAGE.resize((60, 60)),
    Image.fromarray(GREY * np.uint16(257)), encode(PAGE, "JPEG", exif=b"Exif\0\0damaged"), encode(PAGE, "MPO"),
    io.BytesIO(encode(PAGE)), "data:image/png;base64," + base64.b64encode(encode(PAGE)).decode(),
    COLOUR, 255 - GREY, GREY > 150, GREY[..., None], GREY[None, None], COLOUR.transpose(2, 0, 1),
    np.dstack([GREY * 0, 255 - GREY]), np.dstack([COLOUR * 0 + 255, 255 - GREY]),
    GREY * np.uint16(4), GREY / 255 * 1.04 - 0.02, (torch.tensor(GREY) / 255).bfloat16(),
    ((torch.tensor(GREY)[None] / 255 - 0.1307) / 0.3081).requires_grad_(), draw(SEVEN, ink="yellow"),
], ids=lambda image: type(image).__name__)
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
        assert [predict_digit(image)[0] for image in (str(path), file, deep)] == [7, 7, 7]


def test_model():
    """The stored network is the default; a network that is given stays as it is, and dropout does not change it."""
    model = load_run(ROOT / "S6_MNIST.pt")[0].train()
    before = copy.deepcopy(model.state_dict())
    given = predict_digit(PAGE, model)[1]
    assert torch.equal(predict_digit(PAGE)[1], given)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_ruled_pages_in_fading_light():
    """Whose rules touch a digit, or are hidden, in pieces, by strong ink nearby."""
    assert predict_digit(ROOT / "images" / "photo.jpg")[0] == 5
    page = ROOT / "images" / "photo-row.jpg"
    assert [digit for digit, *_ in predict_digits(page)] == [7, 2, 1, 0, 4, 1, 4, 9, 9, 0]


def test_rows_of_different_strength():
    """In reading order, with their boxes, pencil beside felt pen; and as one digit they are refused."""
    page = draw(shift(SEVEN, -50, -40, 0.8), [(220, 30), (222, 150)], size=(600, 500))
    page = draw(shift(SEVEN, -50, 210, 0.8), shift(SEVEN, 100, 220, 0.8), ink="darkgray", width=9, page=page)
    answers = predict_digits(page)
    assert [digit for digit, *_ in answers] == [7, 1, 7, 7]
    assert np.allclose(answers[1][2], (0.355, 0.06, 0.385, 0.3), atol=0.02)
    with pytest.raises(ValueError, match="4 digits"):
        predict_digit(page)


NOTE = Image.new("RGB", (600, 500), "saddlebrown")
ImageDraw.Draw(NOTE).rectangle([150, 80, 450, 380], fill="khaki")
ImageDraw.Draw(NOTE).ellipse([260, 350, 330, 700], fill="rosybrown")  # a thumb
GRAIN = ndimage.gaussian_filter(RNG.normal(0, 60, (600, 800)), (1, 15))[..., None]
WOOD = Image.fromarray((np.full((600, 800, 3), (110, 80, 55)) + GRAIN).clip(0, 255).astype(np.uint8))
SHEET = WOOD.copy()
ImageDraw.Draw(SHEET).rectangle([100, 90, 700, 510], fill="gainsboro")
EIGHT = [(150 + 40 * np.sin(2 * t), 150 - 80 * np.cos(t)) for t in np.linspace(0, 2 * np.pi, 60)]
COMB = [[(50, 200), (650, 200)]] + [[(x, 90), (x, 200)] for x in range(50, 651, 100)]
BOXES = [[(x + a, y + b) for a, b in ((0, 0), (60, 0), (60, 60), (0, 60), (0, 0))]
         for y in range(20, 480, 90) for x in range(20, 560, 90)]
CELLS = [shift(SEVEN, x - 15, 75, 0.45) for x in range(50, 650, 100)]
PRINT = {"ink": "dimgray", "width": 3}


@pytest.mark.parametrize("page, expected", [
    (draw([(110, 130), (160, 70), (158, 230)], width=16), [1]),  # with a flag
    (draw([(130, 150), (175, 156)], ink="white", width=7, page=PAGE), [7]),  # broken
    (draw(SEVEN, shift(SEVEN, 90, 0), size=(400, 300)), [7, 7]),  # that touch
    (draw([(76, 70), (78, 230)], EIGHT, width=14), [1, 8]),  # close to each other
    (draw(shift(SEVEN, 180, 110, 0.8), page=NOTE), [7]),  # a note on a table
    (draw(shift(SEVEN, 270, 150), page=SHEET), [7]),  # a sheet on wood
    (draw(shift(SEVEN, 2500, 1100, 0.8), size=(4000, 3000), width=16, ground="ivory"), [7]),  # small in a large photo
    (draw([(60, 30), (240, 30), (240, 270), (60, 270), (60, 30)], **PRINT, page=PAGE), [7]),  # in a box
    (draw([(5, 30), (165, 30), (165, 210), (5, 210), (5, 30)], **PRINT,
          page=draw(shift(SEVEN, -70, -30), size=(600, 500))), [7]),  # in a box close to the image's edge
    (draw(*[shift(SEVEN, x - 5, y, 0.22) for (x, y), *_ in BOXES], width=5,
          page=draw(*BOXES, **PRINT, size=(600, 550))), [7] * 36),  # many boxes
    (draw([(92, 20), (280, 20), (280, 280), (92, 280), (92, 20)], **PRINT, page=PAGE), [7]),  # touching a box
    (draw([(150 + 125 * np.cos(t), 152 + 125 * np.sin(t)) for t in np.linspace(0, 6, 60)], **PRINT, page=PAGE), [7]),
    (draw([(20, 262), (280, 255)], [(250, 20), (250, 240)], **PRINT, page=PAGE), [7]),  # rules below and beside
    (draw([(0, 262), (299, 255)], [(0, 150), (299, 150)], **PRINT, page=PAGE), [7]),  # from edge to edge, and across
    (draw(*CELLS, width=8, page=draw(*COMB, **PRINT, size=(700, 300))), [7] * 6),  # a comb
    (draw(*CELLS, width=8, page=draw(*COMB, [(50, 90), (650, 90)], **PRINT, size=(700, 300))), [7] * 6),  # a table
])
def test_pages(page, expected):
    answers = predict_digits(page)
    assert [digit for digit, *_ in answers] == expected
    assert min(probabilities.max() for _, probabilities, _ in answers) > 0.8


LIGHT = np.linspace(240, 140, 300)[:, None].repeat(300, 1)
RULED = LIGHT - 50 * (np.arange(300)[:, None] % 24 < 2)


@pytest.mark.parametrize("image", [
    np.full((28, 28), 7.0), LIGHT + RNG.normal(0, 5, LIGHT.shape), LIGHT.T * 1.5 - 120, RULED, RULED.T,
    Image.new("RGBA", (50, 50)), ROOT / "images" / "photo-blank.jpg",
    draw([(100, 100), (102, 100)], width=2),  # a speck
    draw([(100, 0), (240, 299)], ink="darkgray", width=2), SHEET,  # a crease, wood
])
def test_pages_without_a_digit(image):
    with pytest.raises(ValueError, match="no digit"):
        prepare_digit(image)


@pytest.mark.parametrize("image", [
    np.zeros((0, 28)), np.zeros((2, 3, 4, 5)), np.zeros(28), torch.zeros(2, 1, 28, 28), None, {"image": 7}, (GREY, 7),
    np.full((28, 28), np.nan), b"", b"%PDF-1.7 ...", Image.new("L", (0, 0)), "data:image/png;base64,AAAA",
], ids=lambda image: type(image).__name__)
def test_what_is_no_image_is_refused(image):
    with pytest.raises(ValueError, match=r"."):
        prepare_digit(image)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        prepare_digit(tmp_path / "none.png")
    with pytest.raises(OSError):
        prepare_digit(encode(PAGE)[:500])
    with (ROOT / "README.md").open() as text, pytest.raises(ValueError, match=r"."):
        prepare_digit(text)
