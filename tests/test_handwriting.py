"""Digits outside MNIST's form are brought to it and read; what is no digit is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.evidence import read_pages
from benchmarks.figures import draw_pages
from handwriting import MAX_SIDE, predict_digit, prepare_digit
from utils import MEAN, ROOT, STD, load_run


@pytest.fixture(scope="module")
def model():
    return load_run(ROOT / "S6_MNIST.pt")[0]


def page_like(digit, rng):
    """A 28×28 digit, bright on black, as dark ink somewhere on a larger bright page."""
    side = int(rng.integers(60, 150))
    large = digit.resize((side, side), Image.Resampling.BICUBIC)
    page = Image.new("L", (int(1.8 * side), int(2.2 * side)), 0)
    page.paste(large, (int(rng.integers(0, int(0.8 * side))), int(rng.integers(0, int(1.2 * side)))))
    return Image.eval(page, lambda value: 240 - int(0.8 * value))


def test_pages_are_read_like_mnist(model, test_set):
    images, labels = test_set[0][:1000], test_set[1][:1000]
    with torch.no_grad():
        direct = (model((images / 255 - MEAN) / STD).argmax(1) == labels).sum().item()
    rng = np.random.default_rng(0)
    pages = (page_like(Image.fromarray(image[0].numpy()), rng) for image in images)
    read = sum(predict_digit(page, model)[0] == label for page, label in zip(pages, labels.tolist(), strict=True))
    assert read >= direct - 10


def test_form_is_that_of_mnist(test_set):
    """Size and centre of the prepared digits are those of MNIST's own."""
    for image in test_set[0][:200, 0].numpy():
        whole = prepare_digit(np.kron(255 - image, np.ones((5, 5), dtype=np.uint8)))["as in MNIST"]
        rows, columns = (np.flatnonzero(whole.any(axis)) for axis in (1, 0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
        centre = [(whole.sum(axis) @ np.arange(0.5, 28)) / whole.sum() for axis in (0, 1)]
        assert centre == pytest.approx([14.5, 14.5], abs=0.51) or min(rows[0], columns[0]) == 0
        assert (whole.dtype, whole.min(), whole.max()) == (np.float32, 0, 1)


def test_every_kind_of_image(model, tmp_path):
    expected = {"pen": 3, "chalk": 4, "marker": 7}
    for name, page in draw_pages().items():
        grey = page.convert("L")
        clear = page.convert("RGBA")
        clear.putalpha(grey if name == "chalk" else Image.eval(grey, lambda value: 255 - value))
        page.save(tmp_path / f"{name}.png")
        pixels, file = np.asarray(grey), tmp_path / f"{name}.png"
        kinds = [page, grey, clear, np.asarray(page), pixels, pixels / 255, pixels[None].astype(int), pixels > 150,
                 torch.tensor(pixels)[None], pixels * np.uint16(257), Image.fromarray(pixels * np.uint16(257)),
                 Image.fromarray(pixels / np.float32(255)), 255 - pixels, file, str(file), page.resize((3000, 3000)),
                 page.resize((60, 60))]
        if name == "chalk":
            kinds.remove(clear)  # bright on transparent is bright on white: nothing to see
        for kind in kinds:
            digit, probabilities = predict_digit(kind, model)
            assert digit == expected[name]
            assert probabilities.shape == (10,)
            assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)


def test_photograph_on_its_side_is_turned(model, tmp_path):
    """A camera stores the picture as the sensor saw it, and beside it which way was up."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° to the right
    draw_pages()["marker"].rotate(90).save(tmp_path / "photo.jpg", exif=exif)
    assert predict_digit(tmp_path / "photo.jpg", model)[0] == 7


def test_stored_network_is_the_default():
    assert predict_digit(draw_pages()["marker"])[0] == 7


@pytest.mark.parametrize(("image", "message"), [
    (np.zeros((0, 28)), r"shape \(0, 28\) is no image"),
    (np.zeros((2, 3, 4, 5)), "is no image"),
    (np.zeros((3, 28, 28)), r"shape \(3, 28, 28\) is no image"),
    (np.full((28, 28), np.nan), "finite"),
    (np.full((28, 28), 0.5) + 0.01 * np.eye(28), "uniform"),
    (np.full((28, 28), 7.0), "uniform: its strongest contrast is 0%"),
    (Image.new("RGB", (100, 100), "white"), "uniform"),
    (Image.fromarray(np.arange(100, 120, dtype=np.uint8).reshape(4, 5)), "ink needs 10 %"),
    (Image.new("L", (MAX_SIDE + 1, 2)), r"9001×2 pixels; each side may have 1 to 9,000"),
])
def test_what_is_no_digit_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        prepare_digit(image)


def test_bad_pages_do_not_stop_the_others(model, tmp_path, capsys):
    (tmp_path / "text.png").write_text("not a picture")
    pages = {"blank": Image.new("L", (50, 50)), "text": tmp_path / "text.png", "marker": draw_pages()["marker"]}
    results = read_pages(pages, model)
    assert list(results) == ["marker"]
    steps, digit, probabilities = results["marker"]
    assert (list(steps)[-1], digit, len(probabilities)) == ("as in MNIST", 7, 10)
    blank, text, marker = capsys.readouterr().out.splitlines()
    assert blank.startswith("blank cannot be read: the image is uniform")
    assert text.startswith("text cannot be read: cannot identify image file")
    assert marker == "marker: read as 7"


def test_file_that_is_no_image(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        prepare_digit(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(OSError, match=r"text\.png"):
        prepare_digit(tmp_path / "text.png")


def test_photo_with_too_many_pixels_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    Image.new("L", (300, 200), "white").save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)  # Pillow refuses twice as many
    with pytest.raises(ValueError, match=r"photo\.png has too many pixels .*: shrink it to sides up to 9,000"):
        prepare_digit(path)
