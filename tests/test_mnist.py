"""Augmentation changes images within its bounds, evaluation not at all; batches are whole."""

from functools import partial

import pytest
import torch

import mnist
from mnist import MEAN, STD, Loader, augment, change_light, change_shape
from model import IMAGE_SHAPE
from utils import Config

STILL = {"degrees": 0, "translate": 0, "scale": 0, "shear": 0}  # no change of shape
CLEAR = {"blur": 0, "contrast": 0, "noise": 0}  # no change of light


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def images(train_set):
    return train_set[0][:2000].float() / 255


@pytest.mark.parametrize("change", [mnist.filter_randomly, mnist.draw_lines, mnist.invert_strips])
def test_looks_change_nearly_every_image_and_stay_in_range(images, change):
    assert torch.equal(change(images, 0), images)
    changed = change(images, 1)
    assert changed.min() >= 0 and changed.max() <= 1 + 1e-6
    assert ((changed - images).abs().amax((1, 2, 3)) > 0.02).float().mean() > 0.9
    assert 0.01 < (changed - images).abs().mean() < 0.5  # and leave something of it


def test_augmentation_changes_the_share_asked_and_adds_outliers(images, train_set):
    labels, still = train_set[1][:2000], {**STILL, "outlier_fraction": 0.03}
    for share in 0, 0.5, 1:
        batch, targets = augment(images, labels, Config(**still, light_fraction=share / 2, look_fraction=share / 2))
        assert batch.shape == (2060, *IMAGE_SHAPE) and targets.shape == (2060, 10)
        changed = ((batch[:2000] - images).abs().amax((1, 2, 3)) > 1e-3).float().mean().item()
        assert changed == pytest.approx(share, abs=0.05)
        assert torch.equal(targets[:2000].argmax(1), labels) and torch.allclose(targets.sum(1), torch.ones(2060))
        assert targets[2000:].max() <= 1  # an outlier is no digit, or two, which may be alike
    batch, targets = augment(images[:1], labels[:1], Config())  # nothing is left for outliers
    assert len(batch) == len(targets) == 1


def test_outliers_are_no_digit_or_two(images, train_set):
    outliers, targets = mnist.make_outliers(images, train_set[1][:2000], 100)
    assert outliers.shape == (300, *IMAGE_SHAPE) and outliers.min() >= 0 and outliers.max() == 1
    assert (targets[:200] == 0.1).all()
    assert ((targets[200:] == 0.5).sum(1) + 2 * (targets[200:] == 1).sum(1) == 2).all()
    assert torch.equal(outliers[200:], images[:100].maximum(images[100:200]))
    standing = {image.numpy().tobytes() for image in images}
    assert not any(image.numpy().tobytes() in standing for image in outliers[:100].contiguous())


@pytest.mark.parametrize("strength", ["degrees", "shear"])
def test_angles_are_degrees(strength):
    """The principal axis of a bar turns: of one that lies by rotation, of one that stands by shear."""
    bars, line = torch.zeros(2000, *IMAGE_SHAPE), torch.arange(28.0) - 13.5
    bars[:, :, 13:15, 4:24] = 1
    turned = change_shape(bars if strength == "degrees" else bars.mT, **{**STILL, strength: 8})[:, 0]
    xx_yy, xy = ((turned * weights).sum((1, 2)) for weights in (line**2 - line[:, None]**2, line.outer(line)))
    tilt = torch.rad2deg(0.5 * torch.atan2(2 * xy, xx_yy.abs())).abs()
    assert (tilt.max().item(), tilt.median().item()) == pytest.approx((8, 4), abs=0.4)


def test_scale_and_translate_are_shares():
    """Each side of a square is scaled by a share of its length, and moved by a share of the image's side."""
    squares, line = torch.zeros(2000, *IMAGE_SHAPE), torch.arange(28.0) - 13.5
    squares[:, :, 10:18, 10:18] = 1
    scaled = change_shape(squares, **{**STILL, "scale": 0.2})
    moved = change_shape(squares, **{**STILL, "translate": 0.1})
    for axis in 2, 3:
        lengths = scaled.sum(axis).amax((1, 2)) / 8 - 1
        middles = moved.sum((1, axis)) @ line / 64 / 28
        assert (lengths.min().item(), lengths.max().item()) == pytest.approx((-0.2, 0.2), abs=0.02)
        assert (middles.min().item(), middles.max().item()) == pytest.approx((-0.1, 0.1), abs=0.02)


def test_blur_contrast_and_noise_are_of_up_to_their_strengths():
    points, halves, grey = torch.zeros(3, 2000, *IMAGE_SHAPE)
    points[..., 14, 14], halves[..., 14:, :], grey[:] = 1, 1, 0.5
    blurred = change_light(points, **{**CLEAR, "blur": 1.2})
    variance = blurred.sum(dim=(1, 2)) @ (torch.arange(28.0) - 14) ** 2
    assert (variance.max().item(), variance.median().item()) == pytest.approx((1.2**2, 0.6**2), rel=0.1)
    ground, ink = change_light(halves, **{**CLEAR, "contrast": 0.6}).flatten(1).aminmax(dim=1)
    lost = 1 - (ink - ground)
    assert (lost.min().item(), lost.mean().item(), lost.max().item()) == pytest.approx((0, 0.3, 0.6), abs=0.02)
    noise = change_light(grey, **{**CLEAR, "noise": 0.15}).flatten(1).std(1)
    assert (noise.max().item(), noise.median().item()) == pytest.approx((0.15, 0.075), rel=0.1)


def test_batches_are_shuffled_whole_and_repeatable(train_set):
    tagged, labels = train_set[0][:1000].clone(), train_set[1][:1000]
    tagged[:, 0, 0, 0] = labels.byte() + 1  # each image carries its own label
    loader = Loader(tagged, labels, batch_size=96, shuffle=True)
    epochs = []
    for seed in 1, 2, 1:
        torch.manual_seed(seed)
        images, order = [torch.cat(parts) for parts in zip(*loader, strict=True)]
        assert torch.equal(((images[:, 0, 0, 0] * STD + MEAN) * 255).round().long() - 1, order)
        assert order.bincount().tolist() == labels.bincount().tolist()
        epochs.append(order)
    assert torch.equal(epochs[0], epochs[2]) and not torch.equal(epochs[0], epochs[1])
    assert len(loader) == len(list(loader)) == 11


@pytest.mark.parametrize("change", [
    lambda x, y: (x.float() / 255, y), lambda x, y: (x[:, 0], y), lambda x, y: (x, y[:9])])
def test_loader_refuses_what_would_train_garbage(train_set, change):
    with pytest.raises(ValueError):
        Loader(*change(train_set[0][:10], train_set[1][:10]), batch_size=5)


def test_batches_are_made_on_the_device_of_the_images():
    """Whatever a loader makes is on that device: here on one that only knows shapes."""
    loader = Loader(torch.zeros(100, *IMAGE_SHAPE, dtype=torch.uint8), torch.zeros(100, dtype=torch.int64), 64,
                    shuffle=True, transform=partial(augment, config=Config()), device="meta")
    for images, labels in loader:
        assert images.device.type == labels.device.type == "meta"
