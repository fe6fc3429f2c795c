"""Distortions do what their names say."""

import sys

import pytest
import torch
import torch.nn.functional as F

from benchmarks import robustness
from benchmarks.robustness import DISTORTIONS


@pytest.fixture(scope="module")
def images(test_set):
    return test_set[0][:200].float() / 255


@pytest.mark.parametrize("name", DISTORTIONS)
def test_distortions_are_none_at_one_strength_and_keep_the_form(images, name):
    strengths, distort = DISTORTIONS[name]
    none = 1 if "factor" in name else 0
    assert none in strengths
    assert all(torch.allclose(variant, images, atol=1e-5) for variant in distort(images, none))
    for variant in (variant for strength in set(strengths) - {none} for variant in distort(images, strength)):
        assert variant.shape == images.shape and not torch.allclose(variant, images, atol=0.01)
        assert variant.min() >= -1e-6 and variant.max() <= 1 + 1e-6


def test_shift_scale_and_contrast_are_what_they_say(images):
    inner = images * F.pad(torch.ones(22, 22), [3] * 4)  # nothing is lost at the border
    steps = (0, 3), (0, -3), (3, 0), (-3, 0)
    for variant, step in zip(DISTORTIONS["shift (pixels)"][1](inner, 3), steps, strict=True):
        assert torch.allclose(variant, inner.roll(step, (2, 3)), atol=1e-4)
    half, = DISTORTIONS["scale (factor)"][1](images, 0.5)
    assert (half.sum(dim=(1, 2, 3)) / images.sum(dim=(1, 2, 3))).median() == pytest.approx(0.25, abs=0.02)
    pale, = DISTORTIONS["contrast (factor)"][1](images, 0.3)
    assert torch.allclose(pale.amax((1, 2, 3)) - pale.amin((1, 2, 3)), 0.3 * images.amax((1, 2, 3)), atol=1e-5)
    assert torch.allclose(pale.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=1e-5)  # about its mean


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit, match="pip install scikit-learn"):
        robustness.other_handwriting()
