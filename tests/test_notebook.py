"""The stored notebook is one clean full run of the code beside it, and the pages around it hold together."""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

from benchmarks import notebook as runner
from benchmarks.evidence import fingerprint
from utils import ROOT, Config

NOTEBOOK = ROOT / "S6_MNIST.ipynb"
PAGES = sorted(path for pattern in ("*.md", "data/*.md", "benchmarks/*.md") for path in ROOT.glob(pattern))


@pytest.fixture(scope="module")
def notebook():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def code(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(cells):
    return "".join("".join(out.get("text", "")) for cell in cells for out in cell["outputs"])


def test_stored_outputs_come_from_this_code(code):
    assert f"recipe: {Config().epochs} of {Config().epochs} epochs, code {fingerprint()}" in printed(code), (
        "the notebook's outputs are those of other code: run 'python benchmarks/notebook.py', then "
        "'python benchmarks/readme.py'")


def test_cells_ran_once_in_order(code):
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))


def test_outputs_are_plain(notebook, code):
    assert "widgets" not in notebook["metadata"]
    outputs = [out for cell in code for out in cell["outputs"]]
    assert {out["output_type"] for out in outputs} <= {"stream", "display_data"}
    assert {out["name"] for out in outputs if out["output_type"] == "stream"} == {"stdout"}
    assert {kind for out in outputs for kind in out.get("data", {})} == {"text/plain", "image/png"}
    assert not re.search(r"[\r\x1b]| at 0x", printed(code))
    assert not any(len([o for o in cell["outputs"] if o["output_type"] == "stream"]) > 1 for cell in code)
    assert NOTEBOOK.stat().st_size < 1_000_000


def test_every_epoch_is_shown(code):
    epochs = re.findall(r"^epoch +(\d+)/(\d+) \|", printed(code), re.MULTILINE)
    assert [int(number) for number, _ in epochs] == list(range(1, Config().epochs + 1))


def test_cells_are_short(code):
    assert all(len("".join(cell["source"]).splitlines()) <= 12 for cell in code)


def test_deterministic_cells_are_compared(code):
    checked = printed(c for c in code if "nbval-check-output" in c["metadata"].get("tags", []))
    for text in ("19,712 parameters", "Total params: 19,712", "receptive field", "5923", "0.1307"):
        assert text in checked


def links(text):
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", text)


def anchors(text):
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, NOTEBOOK], ids=lambda path: str(path.relative_to(ROOT)))
def test_local_links_and_images(page):
    text = page.read_text(encoding="utf-8")
    if page == NOTEBOOK:
        text = "\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    assert "![](" not in text, "an image without alternative text"
    for link in links(text):
        if not re.match(r"https?://", link):
            target, _, anchor = link.partition("#")
            assert (page.parent / target).exists(), f"{page.name} links to {link}, which is not there"
            assert not anchor or anchor in anchors(text if not target else (page.parent / target).read_text("utf-8"))


def test_repository_is_named_alike(code):
    slug = re.search(r'REPOSITORY = "(.+?)"', "".join(code[0]["source"])).group(1)
    badge = "https://colab.research.google.com/github/{}/blob/main/S6_MNIST.ipynb"
    for page in (NOTEBOOK, ROOT / "README.md"):
        named = re.findall(re.escape(badge).replace(r"\{\}", "(.+?)"), page.read_text(encoding="utf-8"))
        assert named == [slug], f"{page.name} opens another repository in Colab than {slug}"
    home = os.environ.get("GITHUB_REPOSITORY", slug)
    assert home == slug, (f"this is {home}, but the notebook fetches its files from {slug}; to change that: "
                          f"perl -pi -e 's#{slug}#{home}#g' S6_MNIST.ipynb README.md")


def test_ci_runs_the_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    command = next(line for line in script.splitlines() if line.startswith("python3 -m venv"))
    assert f"```\n{command}\n```" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "bash .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["accuracy", "notebook", "readme", "robustness", "speed"])
def test_help_starts_nothing(command, monkeypatch, capsys):
    module = importlib.import_module(f"benchmarks.{command}")
    monkeypatch.setattr("sys.argv", [f"{command}.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        module.main()
    assert f"usage: {command}.py" in capsys.readouterr().out


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Where the runner looks for the assignment's notebook."""
    monkeypatch.setattr(runner, "NOTEBOOK", tmp_path / "S6_MNIST.ipynb")
    monkeypatch.setattr("sys.argv", ["notebook.py"])
    return runner.NOTEBOOK


def write_notebook(path, *sources):
    """Write a notebook of these code cells and return its text."""
    cells = [{"cell_type": "code", "id": f"c{number}", "metadata": {}, "outputs": [], "source": source,
              "execution_count": None} for number, source in enumerate(sources)]
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path.read_text()


def test_failed_run_keeps_the_notebook(path, monkeypatch, capfd):
    monkeypatch.delenv("EPOCHS")
    stored = write_notebook(path, "print('first')", "1 / 0", "print('third')")
    with pytest.raises(SystemExit, match=r"left as it was, since a cell failed:\n(.|\n)*ZeroDivisionError"):
        runner.main()
    assert capfd.readouterr().out == "first\n"
    assert path.read_text() == stored


def test_only_a_full_run_replaces_the_notebook(path, monkeypatch, capfd):
    stored = write_notebook(path, "print('first')", "for i in range(3):\n    print(i, flush=True)")
    runner.main()
    assert "left as it was, since EPOCHS=1 shortened this run: unset it for the full run" in capfd.readouterr().out
    assert path.read_text() == stored

    monkeypatch.setenv("EPOCHS", "25")
    with pytest.raises(SystemExit, match=f"EPOCHS=25 is not a whole number from 1 to {Config().epochs}"):
        runner.main()

    monkeypatch.delenv("EPOCHS")
    runner.main()
    printed = capfd.readouterr()
    assert printed.out.startswith("first\n0\n1\n2\n")
    assert "WARNING" not in printed.out + printed.err
    assert [len(cell["outputs"]) for cell in json.loads(path.read_text())["cells"]] == [1, 1]


@pytest.mark.skipif(sys.platform == "win32", reason="sends the signal of Ctrl-C, which Windows does not know")
def test_interrupted_run_keeps_the_notebook(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    command = [sys.executable, shutil.copy(ROOT / "benchmarks" / "notebook.py", tmp_path / "benchmarks")]
    path = tmp_path / "S6_MNIST.ipynb"
    stored = write_notebook(path, "import time\nprint('started', flush=True)\ntime.sleep(60)")
    full = {name: value for name, value in os.environ.items() if name != "EPOCHS"}
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                           env={**full, "PYTHONPATH": str(ROOT)})
    assert run.stdout.readline() == "started\n"
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "left as it was, since the run was interrupted" in errors
    assert path.read_text() == stored
