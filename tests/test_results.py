"""What README, notebook and weight file say is the same, and true."""

import json

import pytest
import readme
import torch
from torch import nn

from utils import ROOT, TARGET, Config, Loader, evaluate, fingerprint, load_run, requirements


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
    assert f"S6_MNIST.pt, loaded again: accuracy {said}" in outputs
    assert readme.log().strip("`\n") in outputs, "the weights are of another run than the notebook"
    assert f"**{said} after the last of" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_stored_run_is_the_recipe(stored):
    _, config, run = stored
    assert config == Config()
    assert run["code"] == fingerprint()
    assert [row["epoch"] for row in run["history"]] == list(range(1, config.epochs + 1))
    assert set(run["environment"]) == {"device", "precision", "python", "torch", "torchvision"}


def test_requirements_are_met_and_can_fail(stored):
    model, _, run = stored
    assert [name for name, *_, passed in requirements(model, run["history"]) if not passed] == []
    poor = [{**run["history"][-1], "val_accuracy": TARGET - 0.01}] * 20
    assert [passed for *_, passed in requirements(nn.Linear(784, 100), poor)] == [False] * 6


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda path: path.parent.name + "/" + path.name)
def test_pages_agree_with_the_records(page):
    assert readme.render(page) == page.read_text(encoding="utf-8"), "run 'python benchmarks/readme.py'"


def test_weight_file_is_small():
    assert (ROOT / "S6_MNIST.pt").stat().st_size < 150_000
