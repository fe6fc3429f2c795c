"""Who may import whom: the lesson's files stand alone, and benchmarks and tests build on them."""

import ast

import pytest

from utils import ROOT

ALLOWED = {"model": set(), "muon": set(), "mnist": {"model"}, "utils": {"model", "muon"},
           "plots": {"mnist", "utils", "model"}, "handwriting": {"mnist", "utils", "model"}, "run_notebook": {"utils"}}
OURS = {*ALLOWED, "benchmarks", "conftest", "tests"}


def imports(source):
    """Those of our modules that Python source imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names} & OURS


@pytest.mark.parametrize("name", [path.stem for path in sorted(ROOT.glob("*.py")) if path.stem != "conftest"])
def test_arrows_run_one_way(name):
    assert imports((ROOT / f"{name}.py").read_text(encoding="utf-8")) <= ALLOWED[name]


@pytest.mark.parametrize("path", sorted(ROOT.glob("benchmarks/*.py")), ids=lambda path: path.stem)
def test_benchmarks_do_not_need_the_tests(path):
    assert not imports(path.read_text(encoding="utf-8")) & {"tests", "conftest", "run_notebook"}
