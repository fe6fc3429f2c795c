"""The notebook runs alone, as Colab opens it: it fetches what belongs beside it, or says what to do."""

import os
import re
import shutil
import subprocess

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from benchmarks.figures import draw_pages
from utils import ROOT, Config

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="fetches with git")


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """A folder with nothing but the notebook, a stand-in for Google's package, and GitHub in a folder nearby."""
    source, remote, alone = (tmp_path / name for name in ("source", "remote", "content"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)  # the user's own rules stay out of it
    ignored = shutil.ignore_patterns(".git", ".venv", "*cache*", ".ipynb_checkpoints")
    shutil.copytree(ROOT, source, ignore=ignored)
    alone.mkdir()
    shutil.copy(source / "S6_MNIST.ipynb", alone)
    slug = re.search(r'REPOSITORY = \\"(.+?)\\"', (alone / "S6_MNIST.ipynb").read_text(encoding="utf-8")).group(1)
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=source, check=True)
    subprocess.run(["git", "clone", "-q", "--bare", source, remote / f"{slug}.git"], check=True)

    package, startup = tmp_path / "site" / "google" / "colab", tmp_path / "ipython" / "profile_default" / "startup"
    package.mkdir(parents=True)
    startup.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    draw_pages()["marker"].save(tmp_path / "photo.jpg")
    (package / "files.py").write_text(f"def upload():\n    return {{{str(tmp_path / 'photo.jpg')!r}: b''}}\n")
    (startup / "00-colab.py").write_text("import google.colab")
    for name, value in {"IPYTHONDIR": tmp_path / "ipython", "PYTHONPATH": tmp_path / "site", "GIT_CONFIG_COUNT": 1,
                        "GIT_CONFIG_KEY_0": f"url.{remote.as_uri()}/.insteadOf",
                        "GIT_CONFIG_VALUE_0": "https://github.com/"}.items():
        monkeypatch.setenv(name, str(value))
    return alone


def execute(folder, cells=None, times=1):
    """Run the notebook in `folder`, or its first code cells, with an upload; return what it printed each time."""
    notebook = nbformat.read(folder / "S6_MNIST.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("UPLOAD = False", "UPLOAD = True")
    once = [cell for cell in notebook.cells if cell.cell_type == "code"][:cells]
    notebook.cells = [nbformat.v4.new_code_cell(cell.source) for _ in range(times) for cell in once]
    client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": folder}})
    client.execute()
    runs = [notebook.cells[i:i + len(once)] for i in range(0, len(notebook.cells), len(once))]
    return ["".join(output.text for cell in run for output in cell.outputs if output.get("name") == "stdout")
            for run in runs]


def test_every_cell_runs_again_in_the_same_folder(colab):
    """Run all, and run all again: with the same results. After a restart of the kernel, up to the training."""
    printed = [*execute(colab, times=2), *execute(colab, cells=9)]
    first, again, start = (re.sub(r"\| +[\d.]+ s$|.*\r", "", text, flags=re.MULTILINE) for text in printed)
    assert again == first
    assert first.startswith(start)
    assert "measured:  loss 2." in start
    recipe = f"recipe: 1 of {Config().epochs} epochs"
    for expected in (recipe, "photo.jpg: read as 7", "loaded from the file: accuracy 99."):
        assert expected in first
    assert sorted(path.name for path in colab.iterdir()) == ["S6_MNIST", "S6_MNIST.ipynb"]
    clone = colab / "S6_MNIST"
    assert (clone / "model.py").exists()
    assert not (clone / "S6_MNIST").exists()
    status = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True)
    assert status.stdout == ""


@pytest.mark.parametrize("failure", ["unreachable", "no git"])
def test_failure_to_fetch_names_the_remedy(colab, monkeypatch, failure):
    if failure == "unreachable":
        (colab.parent / "remote").rename(colab.parent / "elsewhere")
    else:
        monkeypatch.setenv("PATH", str(colab))
    with pytest.raises(CellExecutionError) as error:
        execute(colab, cells=2)
    assert error.value.ename == "UsageError"
    assert "git could not fetch the files beside this notebook" in error.value.evalue
    assert "connect to the network, check that https://github.com/" in error.value.evalue
    assert [path.name for path in colab.iterdir()] == ["S6_MNIST.ipynb"]


def test_failure_to_install_names_the_remedy(colab, monkeypatch):
    """Where torchsummary is missing, and no package index can be reached."""
    startup = colab.parent / "ipython" / "profile_default" / "startup" / "01-missing.py"
    startup.write_text("import importlib.util\nimportlib.util.find_spec = lambda name: None")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_TARGET", str(colab.parent / "target"))  # does not count what is installed already
    with pytest.raises(CellExecutionError) as error:
        execute(colab, cells=3)
    assert error.value.ename == "UsageError"
    assert "pip could not install torchsummary: connect to the network" in error.value.evalue


def test_downloaded_archive_needs_no_git(tmp_path, monkeypatch):
    """The unpacked archive of the repository, in a path with spaces, up to the training."""
    folder = tmp_path / "my courses" / "S6_MNIST main"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", ".venv", "*cache*", ".ipynb_checkpoints"))
    monkeypatch.setenv("PATH", str(tmp_path))
    (printed,) = execute(folder, cells=9)
    assert "19,712 parameters" in printed
    assert "measured:  loss 2." in printed
