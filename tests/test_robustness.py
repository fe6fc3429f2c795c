"""Distortions do what their names say, and the record is that of the stored network."""

import copy
import sys

import pytest
import torch

from benchmarks import robustness
from benchmarks.accuracy import config_of, settings_of
from benchmarks.robustness import DISTORTIONS, accuracy, digest
from model import Net
from utils import ROOT, load_run


@pytest.fixture(scope="module")
def images(test_set):
    return test_set[0][:200].float() / 255


@pytest.mark.parametrize("name", DISTORTIONS)
def test_distortions_are_none_at_one_strength_and_keep_the_form(images, name):
    strengths, distort = DISTORTIONS[name]
    neutral = 1 if "factor" in name else 0
    assert neutral in strengths
    assert all(torch.allclose(variant, images, atol=1e-5) for variant in distort(images, neutral))
    for strength in set(strengths) - {neutral}:
        for variant in distort(images, strength):
            assert variant.shape == images.shape
            assert not torch.allclose(variant, images, atol=0.01)
            assert variant.min() >= -1e-6 and variant.max() <= 1 + 1e-6


def test_shift_moves_by_pixels_in_four_directions(images):
    right, left, down, up = DISTORTIONS["shift (pixels)"][1](images, 3)
    assert torch.allclose(right[..., 3:], images[..., :-3], atol=1e-4)
    assert torch.allclose(left[..., :-3], images[..., 3:], atol=1e-4)
    assert torch.allclose(down[..., 3:, :], images[..., :-3, :], atol=1e-4)
    assert torch.allclose(up[..., :-3, :], images[..., 3:, :], atol=1e-4)


def test_record_is_of_the_stored_network(images, test_set):
    model, _, run = load_run(ROOT / "S6_MNIST.pt")
    results = robustness.read_results()
    original, config, _ = load_run(robustness.ORIGINAL)
    assert results["weights"] == {"chosen": digest(model), "original": digest(original)}, (
        "run 'python benchmarks/robustness.py'")
    assert config == config_of(settings_of("original"))
    for name, (strengths, _) in DISTORTIONS.items():
        result = results["distortions"][name]
        assert result["strengths"] == list(strengths)
        neutral = strengths.index(1 if "factor" in name else 0)
        assert result["chosen"][neutral] == pytest.approx(run["history"][-1]["val_accuracy"], abs=0.011)
    labels = test_set[1][:200]
    assert accuracy(model, images, labels) > 98 > accuracy(Net(), images, labels)


def test_digest_tells_weights_apart():
    torch.manual_seed(0)
    model = Net()
    before = digest(model)
    assert before == digest(copy.deepcopy(model).to(memory_format=torch.channels_last))
    with torch.no_grad():
        model.head[0].weight[0, 0] += 1e-6
    assert digest(model) != before


def test_examples_show_the_worst_strength(images):
    results = {"distortions": {name: {"strengths": list(strengths), "chosen": [50.0] + [90.0] * (len(strengths) - 1)}
                               for name, (strengths, _) in DISTORTIONS.items() if name.startswith("scale")}}
    title, image = robustness.examples(results, images[0])["scale (factor)"]
    assert title == "0.5"
    assert image.shape == (1, 28, 28)
    assert 0.2 < image.sum() / images[0].sum() < 0.3  # half the size, a quarter of the ink


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit, match="pip install scikit-learn"):
        robustness.other_handwriting()
