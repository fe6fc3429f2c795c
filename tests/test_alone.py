"""The notebook runs alone, as Colab opens it: it fetches what belongs beside it, or says in a sentence what to do."""

import os
import shutil
import subprocess

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from utils import ROOT

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="fetches with git")
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "*cache*", "tests", "benchmarks", "docs", "*.gz")
SLUG = "yuvaraj-venkataswamy/S6_MNIST"


@pytest.fixture(scope="module")
def github(tmp_path_factory, train_set):
    """A folder that stands for github.com, with the repository in it, whose MNIST has 2,000 images only."""
    folder = tmp_path_factory.mktemp("github")
    source = folder / SLUG
    shutil.copytree(ROOT, source, ignore=LEFT_OUT)
    for path in (source / "data" / "MNIST" / "raw").glob("*-ubyte"):
        whole = path.read_bytes()
        header, size = (16, 28 * 28) if "images" in path.name else (8, 1)
        path.write_bytes(whole[:4] + (2000).to_bytes(4, "big") + whole[8:header + 2000 * size])
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    plain = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}  # the user's own rules stay out of it
    for command in ["init", "-q"], ["add", "--all", "--force"], [*identity, "commit", "-qm", "all"]:
        subprocess.run(["git", *command], cwd=source, check=True, env=plain)
    return folder


@pytest.fixture
def colab(github, tmp_path, monkeypatch):
    """A folder with nothing but the notebook; git finds the other folder where it looks for GitHub."""
    shutil.copy(ROOT / "S6_MNIST.ipynb", tmp_path)
    for name, value in {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{github.as_uri()}/.insteadOf",
                        "GIT_CONFIG_VALUE_0": "https://github.com/", "GIT_CONFIG_GLOBAL": os.devnull}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def execute(folder, cells=None, times=1, **options):
    """Run the notebook in `folder`, or its first code cells; return the outputs."""
    notebook = nbformat.read(folder / "S6_MNIST.ipynb", as_version=4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"][:cells]
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in times * code]
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": folder}}, **options).execute()
    return [output for cell in notebook.cells for output in cell.outputs]


def test_notebook_runs_beside_foreign_modules_and_after_a_restart(colab):
    for name in "model.py", "utils.py":
        (colab / name).write_text("raise RuntimeError('a foreign module was imported')\n")
    outputs = execute(colab, allow_errors=True)
    errors = [output.ename for output in outputs if output.output_type == "error"]
    assert errors == ["AssertionError"]  # since so few images do not suffice
    clone = colab / "S6_MNIST"
    status = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True)
    assert status.stdout == ""

    (clone / "S6_MNIST.pt").unlink()  # to train anew
    execute(colab, cells=2, times=2)
    assert not (clone / "S6_MNIST").exists() and not (clone / "S6_MNIST.pt").exists()
    assert {path.name for path in colab.iterdir()} == {"S6_MNIST", "S6_MNIST.ipynb", "model.py", "utils.py"}


@pytest.mark.parametrize("failure", ["no network", "an old clone"])
def test_failure_to_fetch_is_said_in_the_set_up(colab, monkeypatch, failure):
    if failure == "no network":
        monkeypatch.setenv("GIT_CONFIG_KEY_0", "url.file:///nowhere/.insteadOf")
    else:
        (colab / "S6_MNIST").mkdir()
        (colab / "S6_MNIST" / "utils.py").write_text("ROOT = 'of long ago'\n")
    with pytest.raises(CellExecutionError) as error:
        execute(colab, cells=1)
    assert error.value.ename == "AssertionError"
