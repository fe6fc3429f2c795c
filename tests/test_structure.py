"""Who may import whom: the lesson's files stand alone, and benchmarks and tests build on them."""

import ast

import pytest

from utils import ROOT

LESSON = {"model", "muon", "mnist", "utils", "plots", "handwriting", "run_notebook"}
ALLOWED = {"model": set(), "muon": set(), "mnist": {"model"}, "utils": {"model", "muon"},
           "plots": {"mnist", "utils", "model"}, "handwriting": {"mnist", "utils", "model"}, "run_notebook": {"utils"},
           "benchmarks": LESSON - {"run_notebook"} | {"benchmarks"}}


@pytest.mark.parametrize("path", [*ROOT.glob("*.py"), *ROOT.glob("benchmarks/*.py")], ids=lambda path: path.stem)
def test_arrows_run_one_way(path):
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    ours = {name.split(".")[0] for name in names} & {*LESSON, "benchmarks", "tests", "conftest"}
    room = path.stem if path.parent == ROOT else "benchmarks"
    assert room == "conftest" or ours <= ALLOWED[room]
