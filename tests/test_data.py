"""The data are whole or refused with a remedy; augmentation changes images within its bounds, evaluation not at all."""

import functools
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
from torchvision.datasets import MNIST

from model import IMAGE_SHAPE
from utils import MEAN, ROOT, STD, Config, Loader, augment, change_light, change_shape, load_mnist, normalise

CPU, ARCHIVES = torch.device("cpu"), ROOT / "data" / "MNIST" / "raw"
STILL = {"degrees": 0, "translate": 0, "scale": 0, "shear": 0}  # no change of shape
CLEAR = {"blur": 0, "contrast": 0, "noise": 0}  # no change of light


def change(images, function=change_shape, **strengths):
    """The images, changed by one of the functions with these strengths alone."""
    return function(images, Config(**{**STILL, **CLEAR, **strengths}), torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def images(train_set):
    return train_set[0][:2000].float() / 255


def test_counts_and_statistics(train_set, test_set):
    assert (train_set[0].shape, test_set[0].shape) == ((60_000, *IMAGE_SHAPE), (10_000, *IMAGE_SHAPE))
    pixels = train_set[0].float() / 255
    assert (round(pixels.mean().item(), 4), round(pixels.std().item(), 4)) == (MEAN, STD)
    assert test_set[1].bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    with pytest.raises(TypeError, match=r"torch\.uint8; .* / 255"):
        normalise(train_set[0])


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
@pytest.mark.parametrize("state", ["missing", "damaged"])
def test_bad_archive_is_fetched_from_any_mirror_or_named(tmp_path, monkeypatch, name, state):
    root, bad, train = tmp_path / "new", tmp_path / "bad", name.startswith("train")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(RuntimeError, match="missing"):
        load_mnist(train, root)
    assert not root.exists()  # nor any empty folder in it
    (raw := root / "MNIST" / "raw").mkdir(parents=True)
    for archive in set(ARCHIVES.glob("*.gz")) - {ARCHIVES / name}:
        shutil.copyfile(archive, raw / archive.name)  # the copy may be written to, whatever the original allows
    if state == "damaged":
        (raw / name).write_bytes((ARCHIVES / name).read_bytes()[:1000])
    with pytest.raises(RuntimeError, match="git checkout -- data") as error:
        load_mnist(train, root)
    assert f"{raw / name} is {state}" in str(error.value)
    bad.mkdir()
    (bad / name).write_text("a page for those who are not logged in")
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(SimpleHTTPRequestHandler, directory=folder))
               for folder in (bad, ARCHIVES)]
    monkeypatch.setattr(MNIST, "mirrors", [*MNIST.mirrors, *(f"http://127.0.0.1:{s.server_port}/" for s in servers)])
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    load_mnist(train, root)
    for server in servers:
        server.shutdown()
        server.server_close()
    assert (raw / name).read_bytes() == (ARCHIVES / name).read_bytes()
    raw.chmod(0o555)
    load_mnist(train, root)  # reads without writing
    raw.chmod(0o755)
    assert {path.name for path in raw.iterdir()} == {path.name for path in ARCHIVES.glob("*.gz")}


GREY, DIGITS = torch.zeros(10, *IMAGE_SHAPE, dtype=torch.uint8), torch.arange(10)


@pytest.mark.parametrize(("images", "labels", "message"), [
    (GREY[:, 0], DIGITS, r"images are torch\.uint8 of shape \(10, 28, 28\); .* of shape \(N, 1, 28, 28\)"),
    (GREY[:0], DIGITS[:0], r"of shape \(0, 1, 28, 28\); .* with N > 0"),
    (GREY / 255, DIGITS, r"images are torch\.float32 .* must be torch\.uint8, from 0 to 255"),
    (GREY, DIGITS.tolist()[:9], r"labels are torch\.int64 of shape \(9,\); .* one for each of the 10 images"),
    (GREY, DIGITS.float().tolist(), r"labels are torch\.float32 .* must be torch\.int64"),
    (GREY, DIGITS + 1, "labels run from 1 to 10; they may run from 0 to 9"), (GREY, DIGITS - 1, "from -1 to 8"),
])
def test_loader_names_what_is_wrong(images, labels, message):
    with pytest.raises(ValueError, match=message):
        Loader(images, labels, Config(), CPU, train=True)


def test_no_strength_no_change(images):
    assert torch.allclose(change(images, augment), images, atol=1e-4)
    assert torch.allclose(change(images, change_light), images, atol=1e-6)


def test_no_digit_leaves_the_frame(train_set):
    """Rotation, shear and shift preserve area, so ink is lost only at the frame."""
    images, default = train_set[0][:20_000].float() / 255, {name: getattr(Config(), name) for name in STILL}
    kept = change(images, **{**default, "scale": 0}).sum(dim=(1, 2, 3)) / images.sum(dim=(1, 2, 3))
    assert kept.min() > 0.9 and kept.quantile(0.01) > 0.97


@pytest.mark.parametrize("strength", ["degrees", "shear"])
def test_angles_are_degrees(strength):
    """The principal axis of a bar turns: of one that lies by rotation, of one that stands by shear."""
    bars, line = torch.zeros(2000, *IMAGE_SHAPE), torch.arange(28.0) - 13.5
    bars[:, :, 13:15, 4:24] = 1
    turned = change(bars if strength == "degrees" else bars.mT, **{strength: 8})[:, 0]
    xx_yy, xy = ((turned * weights).sum((1, 2)) for weights in (line**2 - line[:, None]**2, line.outer(line)))
    tilt = torch.rad2deg(0.5 * torch.atan2(2 * xy, xx_yy.abs())).abs()
    assert (tilt.max().item(), tilt.median().item()) == pytest.approx((8, 4), abs=0.4)


def test_scale_and_translate_are_shares():
    """Each side of a square is scaled on its own, by a share of its length, and moved by one of the image's side."""
    squares, line = torch.zeros(2000, *IMAGE_SHAPE), torch.arange(28.0) - 13.5
    squares[:, :, 10:18, 10:18] = 1
    for strength, share in (("scale", 0.2), ("translate", 0.1)):
        changed = change(squares, **{strength: share})
        profiles = torch.stack([changed.sum(dim=(1, axis)) for axis in (2, 3)])  # along x and y
        found = changed.amax(dim=2).sum(-1)[:, 0] / 8 - 1 if strength == "scale" else profiles @ line / 64 / 28
        assert (found.min().item(), found.max().item()) == pytest.approx((-share, share), abs=0.02)
        sizes = profiles.amax(-1) if strength == "scale" else profiles @ line
        assert abs(torch.corrcoef(sizes)[0, 1]) < 0.1


@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_light_changes_in_the_share_of_the_images_that_is_asked(images, share):
    before, config = images.clone(), Config(light_fraction=share)
    shaped, augmented, again = (function(images, config, torch.Generator().manual_seed(0))
                                for function in (change_shape, augment, augment))
    assert (augmented != shaped).flatten(1).any(1).sum() == round(share * len(images))
    assert augmented.min() >= 0 and augmented.max() <= 1 + 1e-6
    assert torch.equal(augmented, again) and torch.equal(images, before)


def test_blur_contrast_and_noise_are_of_up_to_their_strengths():
    points, halves, grey = torch.zeros(3, 2000, *IMAGE_SHAPE)
    points[..., 14, 14], halves[..., 14:, :], grey[:] = 1, 1, 0.5
    for axis in 2, 3:
        profile = change(points, change_light, blur=1.2).sum(dim=(1, axis))
        variance = profile @ (torch.arange(28.0) - 14) ** 2
        assert (variance.max().item(), variance.median().item()) == pytest.approx((1.2**2, 0.6**2), rel=0.1)
    ground, ink = change(halves, change_light, contrast=0.6).flatten(1).aminmax(dim=1)
    lost = 1 - (ink - ground)
    assert (lost.min().item(), lost.mean().item(), lost.max().item()) == pytest.approx((0, 0.3, 0.6), abs=0.02)
    assert (ground <= lost + 1e-6).all() and (ground / lost).mean() == pytest.approx(0.5, abs=0.03)  # it grows lighter
    noisy = change(grey, change_light, noise=0.15).flatten(1)
    assert (noisy.std(1).max().item(), noisy.std(1).median().item()) == pytest.approx((0.15, 0.075), rel=0.1)
    assert noisy.mean() == pytest.approx(0.5, abs=1e-3)


def epoch_of(loader):
    return [torch.cat(parts) for parts in zip(*loader, strict=True)]


def test_training_batches_are_shuffled_whole_reproducible_and_differ_between_epochs(train_set):
    tagged, labels = train_set[0][:1000].clone(), train_set[1][:1000]
    tagged[:, 0, 0, 0] = labels.byte() + 1  # each image carries its own label
    loaders = [Loader(tagged, labels, Config(batch_size=96, seed=seed, light_fraction=0, **STILL), CPU, train=True)
               for seed in (0, 0, 1)]
    first, second, again, other = (epoch_of(loaders[number]) for number in (0, 0, 1, 2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], second[1]) and not torch.equal(first[1], other[1])
    assert first[1].bincount().tolist() == labels.bincount().tolist()
    assert torch.equal(((first[0][:, 0, 0, 0] * STD + MEAN) * 255).round().long() - 1, first[1])
    assert len(loaders[0]) == len(list(loaders[0])) == 11


def test_augmentation_differs_between_epochs_and_spares_the_last_steps(train_set):
    images, labels = train_set[0][:400], train_set[1][:400]
    known = {image.numpy().tobytes() for image in normalise(images.float() / 255)}
    loader = Loader(images, labels, Config(epochs=2, batch_size=100, no_aug_fraction=0.25), CPU, train=True)
    plain = [[all(image.numpy().tobytes() in known for image in batch) for batch, _ in loader] for _ in range(2)]
    assert plain == [[False] * 4, [False, False, True, True]]
    loader = Loader(images[:1], labels[:1], Config(no_aug_fraction=0), CPU, train=True)
    assert not torch.equal(epoch_of(loader)[0], epoch_of(loader)[0])


def test_evaluation_batches_are_the_images_in_order(test_set):
    images, labels = test_set[0][:500], test_set[1][:500]
    loader = Loader(images.numpy(), labels.tolist(), Config(), CPU, train=False)  # of arrays and lists, too
    for got_images, got_labels in (epoch_of(loader), epoch_of(loader)):
        assert torch.equal(got_images, normalise(images.float() / 255)) and torch.equal(got_labels, labels)


def test_batches_are_made_on_the_device(train_set, monkeypatch):
    """Whatever a loader makes is on the device of its images: here on one that only knows shapes."""
    monkeypatch.setattr(torch, "Generator", lambda device: SimpleNamespace(manual_seed=lambda seed: None))
    loader = Loader(*(t[:100] for t in train_set), Config(batch_size=64), torch.device("meta"), train=True)
    batches = [(images.device.type, tuple(images.shape), labels.device.type) for images, labels in loader]
    assert batches == [("meta", (64, *IMAGE_SHAPE), "meta"), ("meta", (36, *IMAGE_SHAPE), "meta")]
