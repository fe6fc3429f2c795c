"""What README, notebook and weight file say is the same, and true."""

import json

import pytest
import readme

from utils import ROOT, TARGET, Config, Loader, evaluate, get_device, load_run, requirements


@pytest.fixture(scope="module")
def stored():
    return load_run(ROOT / "S6_MNIST.pt")


def test_weights_score_what_is_said(stored, test_set):
    model, config, run = stored
    device = get_device()
    loss, accuracy = evaluate(model.to(device), Loader(*test_set, config, device, train=False))
    last = run["history"][-1]
    assert accuracy == last["val_accuracy"] >= TARGET
    assert loss == pytest.approx(last["val_loss"], rel=1e-4)
    said = f"{accuracy:.2f} %"
    cells = json.loads((ROOT / "S6_MNIST.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = ["".join(out.get("text", "")) for cell in cells for out in cell.get("outputs", [])]
    assert f"S6_MNIST.pt, loaded again: accuracy {said}" in "".join(outputs)
    assert f"**{said} after the last of" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_stored_run_is_the_recipe(stored):
    _, config, run = stored
    assert config == Config()
    assert [row["epoch"] for row in run["history"]] == list(range(1, config.epochs + 1))
    assert set(run["environment"]) == {"device", "precision", "python", "torch", "torchvision"}


def test_requirements_are_met_and_can_fail(stored):
    model, config, run = stored
    assert all(passed for *_, passed in requirements(model, config, run["history"]))
    poor = [{**run["history"][-1], "val_accuracy": 99.39}] * 20
    failed = [name for name, _, _, passed in requirements(model, Config(dropout=0), poor) if not passed]
    assert failed == ["validation accuracy, last epoch", "epochs", "Dropout layers"]


def test_readme_agrees_with_the_records():
    text = readme.README.read_text(encoding="utf-8")
    assert readme.render(text) == text, "run 'python benchmarks/readme.py'"


def test_weight_file_is_small():
    assert (ROOT / "S6_MNIST.pt").stat().st_size < 150_000
