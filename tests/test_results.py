"""What README, notebook and weight file say is the same, and true."""

import copy
import json

import pytest
import torch
from torch import nn

from benchmarks import readme
from benchmarks.evidence import accuracy_of_rest, calibration, feature_maps, fingerprint, nearest, requirements
from utils import ROOT, TARGET, Config, Loader, evaluate, load_run


@pytest.fixture(scope="module")
def stored():
    return load_run(ROOT / "S6_MNIST.pt")


def test_weights_score_what_is_said(stored, test_set):
    model, config, run = stored
    loss, accuracy = evaluate(model, Loader(*test_set, config, torch.device("cpu"), train=False))
    last = run["history"][-1]
    assert accuracy == last["val_accuracy"] >= TARGET
    assert loss == pytest.approx(last["val_loss"], rel=1e-4)
    said = f"{accuracy:.2f} %"
    cells = json.loads((ROOT / "S6_MNIST.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = "".join("".join(out.get("text", "")) for cell in cells for out in cell.get("outputs", []))
    assert f"loaded from the file: accuracy {said}" in outputs
    assert readme.log().strip("`\n") in outputs, "the weights are of another run than the notebook"
    assert f"**{said} after the last of" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_stored_run_is_the_recipe(stored):
    _, config, run = stored
    assert config == Config()
    assert run["code"] == fingerprint()
    assert [row["epoch"] for row in run["history"]] == list(range(1, config.epochs + 1))
    assert set(run["environment"]) == {"device", "precision", "python", "torch", "torchvision"}


def test_requirements_are_met_and_can_fail(stored):
    model, run = copy.deepcopy(stored[0]), stored[2]
    assert [name for name, *_, passed in requirements(model, run["history"]) if not passed] == []
    poor = [{**run["history"][-1], "val_accuracy": TARGET - 0.01}] * 20
    model.stage2 = nn.Sequential(nn.Conv2d(16, 32, 7), nn.ReLU())  # 25,088 weights
    for block in model.stage1:
        del block[2:]
    model.head[1] = nn.AvgPool2d(2)  # leaves 2×2 maps
    assert [passed for *_, passed in requirements(model, poor)] == [False] * 6
    assert [passed for *_, passed in requirements(model, [])] == [False] * 6


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda path: path.parent.name + "/" + path.name)
def test_pages_agree_with_the_records(page):
    assert readme.render(page) == page.read_text(encoding="utf-8"), "run 'python benchmarks/readme.py'"


def test_weight_file_is_small():
    assert (ROOT / "S6_MNIST.pt").stat().st_size < 150_000


def test_calibration_and_rejection_of_a_small_case():
    sure, right = torch.tensor([0.95, 0.99, 0.55, 0.65]), torch.tensor([True, True, False, True])
    bins, error = calibration(sure, right, bins=10)
    assert [count for *_, count in bins] == [1, 1, 2]
    assert [said for said, *_ in bins] == pytest.approx([0.55, 0.65, 0.97])
    assert [was for _, was, _ in bins] == [0, 1, 1]
    assert error == pytest.approx(100 * (0.55 + 0.35 + 2 * 0.03) / 4)
    assert accuracy_of_rest(sure, right).tolist() == [75, 100, 100, 100]


def test_nearest_image_is_of_the_asked_digit(train_set):
    images, labels = train_set[0][:1000], train_set[1][:1000]
    same = nearest(images[:50], labels[:50], images, labels)
    assert torch.equal(same, images[:50])
    other = nearest(images[:50], (labels[:50] + 1) % 10, images, labels)
    found = [labels[(images == image).flatten(1).all(1)].tolist() for image in other]
    assert found == [[(int(label) + 1) % 10] for label in labels[:50]]


def test_feature_maps_end_in_the_scores(stored, test_set):
    model, config, _ = stored
    image, _ = next(iter(Loader(*test_set, config, torch.device("cpu"), train=False)))
    maps = feature_maps(model, image[0])
    assert [tuple(values.shape) for values in maps.values()] == [
        (16, 26, 26), (16, 24, 24), (32, 22, 22), (16, 11, 11), (16, 9, 9), (16, 9, 9), (16, 7, 7), (32, 5, 5),
        (10, 5, 5)]
    assert torch.allclose(maps["digits"].mean(dim=(1, 2)), model(image[:1])[0], atol=1e-4)
