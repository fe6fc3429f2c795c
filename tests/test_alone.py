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
SMALL = shutil.ignore_patterns(".git", ".venv", "*cache*", ".ipynb_checkpoints", "tests", "benchmarks", "docs",
                               "*-ubyte")
SLUG = "yuvaraj-venkataswamy/S6_MNIST"


@pytest.fixture(scope="module")
def github(tmp_path_factory):
    """A folder that stands for github.com, with the repository in it."""
    folder = tmp_path_factory.mktemp("github")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=SMALL)
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    plain = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}  # the user's own rules stay out of it
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=source, check=True, env=plain)
    subprocess.run(["git", "clone", "-q", "--bare", source, folder / f"{SLUG}.git"], check=True, env=plain)
    return folder


@pytest.fixture
def colab(github, tmp_path, monkeypatch):
    """A folder with nothing but the notebook; git finds the other folder where it looks for GitHub."""
    alone = tmp_path / "content"
    alone.mkdir()
    shutil.copy(ROOT / "S6_MNIST.ipynb", alone)
    for name, value in {"GIT_CONFIG_COUNT": 1, "GIT_CONFIG_KEY_0": f"url.{github.as_uri()}/.insteadOf",
                        "GIT_CONFIG_VALUE_0": "https://github.com/", "GIT_CONFIG_GLOBAL": os.devnull}.items():
        monkeypatch.setenv(name, str(value))
    return alone


def execute(folder, cells=None, times=1):
    """Run the notebook in `folder`, or its first code cells; return what it printed each time."""
    notebook = nbformat.read(folder / "S6_MNIST.ipynb", as_version=4)
    once = [cell for cell in notebook.cells if cell.cell_type == "code"][:cells]
    notebook.cells = [nbformat.v4.new_code_cell(cell.source) for _ in range(times) for cell in once]
    client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": folder}})
    client.execute()
    runs = [notebook.cells[i:i + len(once)] for i in range(0, len(notebook.cells), len(once))]
    return ["".join(output.text for cell in run for output in cell.outputs if output.get("name") == "stdout")
            for run in runs]


def test_every_cell_runs(colab):
    (printed,) = execute(colab)
    assert "Total params: 19,712" in printed
    assert sorted(path.name for path in colab.iterdir()) == ["S6_MNIST", "S6_MNIST.ipynb"]
    status = subprocess.run(["git", "status", "--porcelain"], cwd=colab / "S6_MNIST", capture_output=True, text=True,
                            check=True)
    assert status.stdout == ""


def test_set_up_runs_twice_and_after_a_restart_beside_foreign_modules(colab):
    for name in "model.py", "utils.py":
        (colab / name).write_text("raise RuntimeError('a foreign module was imported')\n")
    first, again = execute(colab, cells=2, times=2)
    (colab / "S6_MNIST" / "S6_MNIST.pt").unlink()  # to train anew
    (restarted,) = execute(colab, cells=2)
    assert first == again == restarted
    assert not (colab / "S6_MNIST" / "S6_MNIST").exists()


@pytest.mark.parametrize("failure", ["unreachable", "half a clone", "an old clone"])
def test_failure_to_fetch_is_said_in_the_set_up(colab, monkeypatch, failure):
    if failure == "unreachable":
        monkeypatch.setenv("GIT_CONFIG_KEY_0", "url.file:///nowhere/.insteadOf")
    else:
        (colab / "S6_MNIST" / ".git").mkdir(parents=True)
        if failure == "an old clone":
            (colab / "S6_MNIST" / "utils.py").write_text("ROOT = 'of long ago'\n")
    with pytest.raises(CellExecutionError) as error:
        execute(colab, cells=1)
    assert error.value.ename == "AssertionError" and "S6_MNIST" in error.value.evalue


def test_downloaded_archive_needs_no_git(tmp_path, monkeypatch):
    """The unpacked archive of the repository, in a path with spaces and accents, up to the network."""
    folder = tmp_path / "mes leçons" / "S6_MNIST main"
    shutil.copytree(ROOT, folder, ignore=SMALL)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("LC_ALL", "C")
    (printed,) = execute(folder, cells=7)
    assert "Total params: 19,712" in printed
