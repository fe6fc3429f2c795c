"""The notebook runs alone, as Colab opens it: it fetches what belongs beside it, or says in a sentence what to do."""

import os
import re
import shutil
import subprocess

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from utils import ROOT, Config

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="fetches with git")
SMALL = shutil.ignore_patterns(".git", ".venv", "*cache*", ".ipynb_checkpoints", "tests", "benchmarks", "docs")


@pytest.fixture(scope="module")
def github(tmp_path_factory):
    """A folder that stands for github.com, with the repository in it."""
    folder = tmp_path_factory.mktemp("github")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=SMALL)
    slug = re.search(r'REPOSITORY = \\"(.+?)\\"', (source / "S6_MNIST.ipynb").read_text(encoding="utf-8")).group(1)
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    plain = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}  # the user's own rules stay out of it
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=source, check=True, env=plain)
    subprocess.run(["git", "clone", "-q", "--bare", source, folder / f"{slug}.git"], check=True, env=plain)
    return folder


@pytest.fixture
def colab(github, tmp_path, monkeypatch):
    """A folder with nothing but the notebook, and a stand-in for Google's package."""
    alone = tmp_path / "content"
    alone.mkdir()
    shutil.copy(ROOT / "S6_MNIST.ipynb", alone)
    package, startup = tmp_path / "site" / "google" / "colab", tmp_path / "ipython" / "profile_default" / "startup"
    package.mkdir(parents=True)
    startup.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    shutil.copy(ROOT / "images" / "photo.jpg", tmp_path / "mine.jpg")
    (package / "files.py").write_text(f"def upload():\n    return {{{str(tmp_path / 'mine.jpg')!r}: b''}}\n")
    (startup / "00-colab.py").write_text("import google.colab")
    for name, value in {"IPYTHONDIR": tmp_path / "ipython", "PYTHONPATH": tmp_path / "site", "GIT_CONFIG_COUNT": 1,
                        "GIT_CONFIG_KEY_0": f"url.{github.as_uri()}/.insteadOf", "GIT_CONFIG_GLOBAL": os.devnull,
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


def test_every_cell_runs(colab):
    (printed,) = execute(colab)
    assert "fetching https://github.com/" in printed
    assert f"1 of {Config().epochs} epochs" in printed
    assert re.search(r"mine\.jpg: \d, with a probability", printed)
    assert sorted(path.name for path in colab.iterdir()) == ["S6_MNIST", "S6_MNIST.ipynb"]
    status = subprocess.run(["git", "status", "--porcelain"], cwd=colab / "S6_MNIST", capture_output=True, text=True,
                            check=True)
    assert status.stdout == ""


def test_set_up_runs_twice_and_after_a_restart_beside_foreign_modules(colab):
    for name in "model.py", "utils.py":
        (colab / name).write_text("raise RuntimeError('a foreign module was imported')\n")
    first, again = execute(colab, cells=6, times=2)
    (restarted,) = execute(colab, cells=6)
    assert first.partition("\n")[2] == again == restarted
    assert not (colab / "S6_MNIST" / "S6_MNIST").exists()


def test_old_clone_is_named(colab):
    execute(colab, cells=1)
    with (colab / "S6_MNIST" / "utils.py").open("a") as file:
        file.write("\nMAX_EPOCHS = 21\n")
    assert "stored with other code" in execute(colab, cells=2)[0]
    (colab / "S6_MNIST" / "utils.py").write_text("ROOT = 'of long ago'\n")
    with pytest.raises(CellExecutionError) as error:
        execute(colab, cells=2)
    assert error.value.ename == "UsageError"
    assert "Remove the folder S6_MNIST" in error.value.evalue


@pytest.mark.parametrize("failure", ["unreachable", "no git", "half a clone"])
def test_failure_to_fetch_names_the_remedy(colab, monkeypatch, failure):
    if failure == "unreachable":
        monkeypatch.setenv("GIT_CONFIG_KEY_0", "url.file:///nowhere/.insteadOf")
    elif failure == "no git":
        monkeypatch.setenv("PATH", str(colab))
    else:
        (colab / "S6_MNIST" / ".git").mkdir(parents=True)
    with pytest.raises(CellExecutionError) as error:
        execute(colab, cells=1)
    assert error.value.ename == "UsageError"
    for remedy in "connect to the network", "https://github.com/", "remove the folder S6_MNIST":
        assert remedy in error.value.evalue


def test_failure_to_install_names_the_remedy(colab, monkeypatch):
    """Where torchsummary is missing, and no package index can be reached."""
    startup = colab.parent / "ipython" / "profile_default" / "startup" / "01-missing.py"
    startup.write_text("import importlib.util\nimportlib.util.find_spec = lambda name: None")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_TARGET", str(colab.parent / "target"))  # does not count what is installed already
    with pytest.raises(CellExecutionError) as error:
        execute(colab, cells=1)
    assert error.value.ename == "UsageError"
    assert "connect to the network" in error.value.evalue


def test_downloaded_archive_needs_no_git(tmp_path, monkeypatch):
    """The unpacked archive of the repository, in a path with spaces and accents, read-only, up to the network."""
    folder = tmp_path / "mes leçons" / "S6_MNIST main"
    shutil.copytree(ROOT, folder, ignore=SMALL)
    folder.chmod(0o555)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("LC_ALL", "C")
    (printed,) = execute(folder, cells=7)
    folder.chmod(0o755)
    assert "Total params: 19,712" in printed
