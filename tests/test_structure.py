"""Who may import whom: the assignment's files stand alone, and benchmarks and tests build on them."""

import ast

import pytest

from utils import ROOT

ALLOWED = {"model": set(), "muon": set(), "utils": {"model", "muon"}, "handwriting": {"model", "utils"},
           "plots": {"model", "utils"}}
OURS = {*ALLOWED, "benchmarks", "conftest", "run_notebook", "tests"}
FILES = sorted(path for folder in (ROOT, ROOT / "benchmarks", ROOT / "tests") for path in folder.glob("*.py"))


def imports(source):
    """Those of our modules that Python source imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names} & OURS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path):
    source, lowest = path.read_text(encoding="utf-8"), ALLOWED.get(path.stem if path.parent == ROOT else "", OURS)
    above = {ROOT: {"benchmarks", "tests"}, ROOT / "benchmarks": {"tests", "conftest"}}.get(path.parent, set())
    assert imports(source) <= lowest - above
