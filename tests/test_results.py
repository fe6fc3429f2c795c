"""What README, notebook and weight file say is the same, and true."""

import copy
import json

import pytest
import torch
from torch import nn

from benchmarks import readme
from benchmarks.evidence import fingerprint, requirements
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
