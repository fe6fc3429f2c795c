"""The data are whole or refused with a remedy; augmentation changes images within its bounds, evaluation not at all."""

import functools
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torchvision.datasets import MNIST

from utils import MEAN, ROOT, STD, Config, Loader, augment, load_mnist

CPU = torch.device("cpu")
STILL = {"rotation": 0, "shift": 0, "scale": 0, "shear": 0}
ARCHIVES = ROOT / "data" / "MNIST" / "raw"


@pytest.fixture
def copied_data(tmp_path, monkeypatch):
    """A copy of the four archives, with every download going nowhere."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for archive in ARCHIVES.glob("*.gz"):
        shutil.copyfile(archive, raw / archive.name)  # the copy may be written to, whatever the original allows
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    return tmp_path


def test_counts_and_statistics(train_set, test_set):
    assert train_set[0].shape == (60_000, 1, 28, 28)
    assert test_set[0].shape == (10_000, 1, 28, 28)
    assert train_set[0].dtype == torch.uint8
    pixels = train_set[0].float() / 255
    assert (round(pixels.mean().item(), 4), round(pixels.std().item(), 4)) == (MEAN, STD)
    assert test_set[1].bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_reading_leaves_the_folder_as_it_is(copied_data, test_set):
    raw = copied_data / "MNIST" / "raw"
    before = sorted(path.name for path in raw.iterdir())
    raw.chmod(0o555)
    images, labels = load_mnist(train=False, root=copied_data)
    raw.chmod(0o755)
    assert torch.equal(images, test_set[0])
    assert torch.equal(labels, test_set[1])
    assert sorted(path.name for path in raw.iterdir()) == before


def test_missing_archive_is_downloaded(copied_data, monkeypatch, test_set, capsys):
    raw = copied_data / "MNIST" / "raw"
    path = raw / "t10k-labels-idx1-ubyte.gz"
    path.unlink()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=ARCHIVES)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert torch.equal(load_mnist(train=False, root=copied_data)[1], test_set[1])
        server.shutdown()
    assert path.read_bytes() == (ARCHIVES / path.name).read_bytes()


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
@pytest.mark.parametrize("state", ["missing", "damaged"])
def test_bad_archive_without_network(copied_data, name, state):
    path = copied_data / "MNIST" / "raw" / name
    if state == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RuntimeError, match="git checkout -- data") as error:
        load_mnist(train=name.startswith("train"), root=copied_data)
    assert f"{path} is {state}" in str(error.value)


def test_published_sums_are_those_that_are_checked():
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for name, md5 in MNIST.resources:
        assert f"`{name}` | {(ARCHIVES / name).stat().st_size:,} | {md5} |" in text


@pytest.mark.parametrize(("images", "labels", "message"), [
    ((10, 28, 28), 10, r"images are torch\.uint8 of shape \(10, 28, 28\); they must be .* of shape \(N, 1, 28, 28\)"),
    ((0, 1, 28, 28), 0, r"of shape \(0, 1, 28, 28\); .* with N > 0"),
    ((10, 1, 28, 28), 9, r"labels are torch\.int64 of shape \(9,\); .* one for each of the 10 images"),
])
def test_loader_names_a_wrong_shape(images, labels, message):
    images, labels = torch.zeros(images, dtype=torch.uint8), torch.zeros(labels, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        Loader(images, labels, Config(), CPU, train=True)


def test_loader_names_a_wrong_value(train_set):
    images, labels = train_set[0][:10], train_set[1][:10]
    with pytest.raises(ValueError, match=r"the images are torch\.float32 .* must be torch\.uint8, from 0 to 255"):
        Loader(images.float() / 255, labels, Config(), CPU, train=False)
    with pytest.raises(ValueError, match=r"the labels are torch\.float32 .* must be torch\.int64"):
        Loader(images, labels.float(), Config(), CPU, train=False)
    with pytest.raises(ValueError, match="labels run from 10 to 10; they may run from 0 to 9"):
        Loader(images, torch.full((10,), 10), Config(), CPU, train=True)


def test_no_strength_no_change(train_set):
    images = train_set[0][:200].float() / 255
    still = augment(images, Config(**STILL), torch.Generator())
    assert torch.allclose(still, images, atol=1e-4)


@pytest.mark.parametrize("strength", STILL)
def test_each_strength_changes_the_images(train_set, strength):
    images = train_set[0][:200].float() / 255
    alone = Config(**{**STILL, strength: getattr(Config(), strength)})
    assert (augment(images, alone, torch.Generator()) - images).abs().amax(dim=(1, 2, 3)).median() > 0.2


def test_no_digit_leaves_the_frame(train_set):
    """Rotation, shear and shift preserve area, so ink is lost only at the frame; scaling changes it by its square."""
    images, generator = train_set[0][:20_000].float() / 255, torch.Generator().manual_seed(0)
    ink = images.sum(dim=(1, 2, 3))
    kept = augment(images, Config(scale=0), generator).sum(dim=(1, 2, 3)) / ink
    assert kept.min() > 0.9
    assert kept.quantile(0.01) > 0.97
    scale = Config().scale
    kept = augment(images, Config(), generator).sum(dim=(1, 2, 3)) / ink
    assert kept.min() > 0.9 * (1 - scale) ** 2
    assert kept.max() < 1.1 * (1 + scale) ** 2


def test_augmented_border_is_background(train_set):
    images = train_set[0][:1000].float() / 255
    augmented = augment(images, Config(), torch.Generator())
    assert augmented.min() >= 0
    assert augmented.max() <= 1.001
    batch, _ = next(iter(Loader(*(t[:1000] for t in train_set), Config(batch_size=1000), CPU, train=True)))
    corners = batch[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.median().item() == pytest.approx(-MEAN / STD, abs=1e-4)


def moments(images):
    """Angle in degrees, of the principal axis, and mass of every image."""
    line = torch.arange(28.0) - 13.5
    mass = images.sum(dim=(1, 2, 3))
    x, y = ((images.sum(dim=(1, axis)) * line).sum(1) / mass for axis in (2, 3))
    xx, yy = ((images.sum(dim=(1, axis)) * line**2).sum(1) / mass for axis in (2, 3))
    xy = (images[:, 0] * line[:, None] * line).sum(dim=(1, 2)) / mass
    return torch.rad2deg(0.5 * torch.atan2(2 * (xy - x * y), (xx - x**2) - (yy - y**2))), mass


@pytest.mark.parametrize(("strength", "upright"), [("rotation", False), ("shear", True)])
def test_angles_are_degrees(strength, upright):
    bars = torch.zeros(2000, 1, 28, 28)
    bars[:, :, 13:15, 4:24] = 1
    bars = bars.mT if upright else bars
    tilted, _ = moments(augment(bars, Config(**{**STILL, strength: 8}), torch.Generator()))
    tilt = 90 - tilted.abs() if upright else tilted
    assert tilt.abs().max() == pytest.approx(8, abs=0.3)
    assert tilt.abs().median() == pytest.approx(4, abs=0.4)


def test_scale_is_a_share_of_the_size():
    """Each side of a square is scaled on its own, by up to the share that is asked for."""
    squares = torch.zeros(2000, 1, 28, 28)
    squares[:, :, 10:18, 10:18] = 1
    scaled = augment(squares, Config(**{**STILL, "scale": 0.2}), torch.Generator())
    width, height = scaled.sum(dim=3).amax(dim=(1, 2)) / 8, scaled.sum(dim=2).amax(dim=(1, 2)) / 8
    for side in (width, height):
        assert (side.min().item(), side.max().item()) == pytest.approx((0.8, 1.2), abs=0.02)
    assert abs(torch.corrcoef(torch.stack([width, height]))[0, 1]) < 0.1


def test_shift_is_what_it_says(train_set):
    """The centre of mass moves by up to shift × 28 pixels along each axis, and the ink stays the same."""
    images = train_set[0][:2000].float() / 255
    config = Config(**{**STILL, "shift": 0.05})
    line = torch.arange(28.0)

    def centres(batch):
        mass = batch.sum(dim=(1, 2, 3))
        return torch.stack([(batch.sum(dim=(1, axis)) * line).sum(1) / mass for axis in (2, 3)])

    shifted = augment(images, config, torch.Generator())
    moved = (centres(shifted) - centres(images)).abs()
    assert moved.max() == pytest.approx(0.05 * 28, abs=0.1)
    kept = shifted.sum(dim=(1, 2, 3)) / images.sum(dim=(1, 2, 3))
    assert kept.quantile(torch.tensor([0.05, 0.5, 1.0])).tolist() == pytest.approx([1, 1, 1], abs=1e-3)
    assert kept.min() > 0.95  # few digits are so near an edge that some of their ink is lost


def test_training_batches_are_shuffled_whole_and_reproducible(train_set):
    images, labels = train_set[0][:1000], train_set[1][:1000]
    tagged = images.clone()
    tagged[:, 0, 0, 0] = labels.byte() + 1  # each image carries its own label
    loader = Loader(tagged, labels, Config(**STILL, batch_size=96), CPU, train=True)

    def epoch(number):
        loader.epoch = number
        return [torch.cat(parts) for parts in zip(*loader, strict=True)]

    first, again, second = epoch(1), epoch(1), epoch(2)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[1], second[1])
    assert first[1].bincount().tolist() == labels.bincount().tolist()
    tags = ((first[0][:, 0, 0, 0] * STD + MEAN) * 255).round().long() - 1
    assert torch.equal(tags, first[1])
    assert len(loader) == len(list(loader)) == 11


def test_last_steps_see_plain_images(train_set):
    images, labels = train_set[0][:400], train_set[1][:400]
    plain = {image.numpy().tobytes() for image in (images.float() / 255 - MEAN) / STD}
    loader = Loader(images, labels, Config(epochs=2, batch_size=100, plain=0.25), CPU, train=True)

    def are_plain(epoch):
        loader.epoch = epoch
        return [all(image.numpy().tobytes() in plain for image in batch) for batch, _ in loader]

    assert are_plain(1) == [False, False, False, False]
    assert are_plain(2) == [False, False, True, True]


def test_evaluation_batches_are_the_images(test_set):
    images, labels = test_set[0][:1200], test_set[1][:1200]
    loader = Loader(images, labels, Config(), CPU, train=False)
    got_images, got_labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert torch.equal(got_images, (images.float() / 255 - MEAN) / STD)
    assert torch.equal(got_labels, labels)
