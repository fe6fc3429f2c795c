"""The stored network is what its record says, and the README's numbers are those of the records."""

import re

import pytest

from benchmarks import readme
from mnist import Loader
from utils import ROOT, Config, check_assignment, evaluate, load_run


def test_stored_weights_are_those_of_the_recipe(test_set):
    model, run = load_run(ROOT / "S6_MNIST.pt")
    assert Config(**run["config"]) == Config()
    loss, percent = evaluate(model, Loader(*test_set, 200))
    assert percent == pytest.approx(run["history"][-1]["val_accuracy"], abs=0.02)  # another device rounds differently
    assert loss == pytest.approx(run["history"][-1]["val_loss"], rel=1e-2)
    assert all(passed for *_, passed in check_assignment(model, run["history"]))


def test_numbers_of_the_readme_are_those_of_the_records():
    page = readme.PAGE.read_text(encoding="utf-8")
    assert readme.MARK.findall(page), "the page marks no number"
    assert not re.search("^<!--", page, re.MULTILINE), "GitHub takes a line that begins with a mark for HTML"
    assert readme.fill(page, readme.numbers()) == page, "run 'python -m benchmarks.readme'"
