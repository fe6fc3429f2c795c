"""The stored notebooks are clean full runs, and the pages around them hold together."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import pytest

import run_notebook
from utils import ROOT, Config, load_run

LESSON, REPORT = ROOT / "S6_MNIST.ipynb", ROOT / "benchmarks" / "report.ipynb"
PAGES = [LESSON, REPORT, *ROOT.glob("*.md"), *(ROOT / "benchmarks").glob("*.md"), ROOT / "data" / "README.md"]


def read_cells(path, kind="code"):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind]


def printed(path):
    return "".join("".join(out.get("text", "")) for cell in read_cells(path) for out in cell["outputs"])


def test_stored_lesson_is_the_full_run_of_the_stored_weights():
    history = load_run(ROOT / "S6_MNIST.pt")[1]["history"]
    epochs = re.findall(r"^epoch +(\d+)/\d+ .* validation: .* accuracy ([\d.]+) %", printed(LESSON), re.MULTILINE)
    assert epochs == [(str(row["epoch"]), f"{row['val_accuracy']:.2f}") for row in history]
    assert len(epochs) == Config().epochs


@pytest.mark.parametrize("path", [LESSON, REPORT], ids=lambda path: path.name)
def test_stored_outputs_are_clean(path):
    cells = read_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert "widgets" not in json.loads(path.read_text(encoding="utf-8"))["metadata"]
    outputs = [out for cell in cells for out in cell["outputs"]]
    assert {out["output_type"] for out in outputs} <= {"stream", "display_data"}
    assert {out["name"] for out in outputs if out["output_type"] == "stream"} == {"stdout"}
    assert {kind for out in outputs for kind in out.get("data", {})} <= {"text/plain", "text/markdown", "image/png"}
    assert not re.search(r"[\r\x1b]| at 0x", printed(path))
    assert path.stat().st_size < 1_000_000
    pictures = [out for out in outputs if "image/png" in out.get("data", {})]
    assert pictures and all(out["metadata"]["image/png"]["alt"] for out in pictures)


def test_smoke_run_fails_if_nothing_is_learned():
    """The cell that judges the run, given the history of a network that guesses, and an interrupted one."""
    (judge,) = [source for cell in read_cells(LESSON) if "floor" in (source := "".join(cell["source"]))]
    names = {"config": Config(epochs=1), "Config": Config, "history": [{"val_accuracy": 98.4}]}
    with pytest.raises(AssertionError):
        exec(judge, dict(names))
    exec(judge, {**names, "history": [{"val_accuracy": 98.6}]})
    exec(judge, {**names, "history": []})  # interrupted
    with pytest.raises(AssertionError):
        exec(judge, {**names, "config": Config(), "history": [{"val_accuracy": 99.3}] * Config().epochs})


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_local_links_and_images(page):
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        text = "\n\n".join("".join(cell["source"]) for cell in read_cells(page, "markdown"))
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert "![](" not in text, "an image without alternative text"
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", text):
        assert (page.parent / link.partition("#")[0]).exists(), f"{page.name} links to {link}, which is not there"


def test_ci_runs_the_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    command = next(line for line in script.splitlines() if line.startswith("python3 -m venv"))
    assert f"```\n{command}\n```" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_snippets_of_the_readme_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert snippets
    for snippet in snippets:
        exec(snippet, {})


def write_notebook(path, *sources):
    """Write a notebook of these code cells and return its text."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells.append(nbformat.v4.new_markdown_cell("*A caption.*\n\nText."))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path.read_text()


def test_only_a_full_run_without_failure_replaces_the_notebook(tmp_path, monkeypatch, capsys):
    path = tmp_path / "lesson.ipynb"
    monkeypatch.setattr(sys, "argv", ["run_notebook.py", str(path)])
    plot = "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2]);"
    stored = write_notebook(path, "for i in range(3):\n    print(i, flush=True)", plot)
    run_notebook.main()  # EPOCHS is set
    assert path.read_text() == stored

    monkeypatch.delenv("EPOCHS")
    run_notebook.main()
    assert "0\n1\n2\n" in capsys.readouterr().out
    numbers, figure = read_cells(path)
    assert len(numbers["outputs"]) == 1 and figure["outputs"][0]["metadata"]["image/png"]["alt"] == "A caption."

    stored = write_notebook(path, "print('first')", "1 / 0")
    with pytest.raises(SystemExit, match="ZeroDivisionError"):
        run_notebook.main()
    assert path.read_text() == stored


@pytest.mark.skipif(sys.platform == "win32", reason="sends the signal of Ctrl-C, which Windows does not know")
def test_interrupted_run_keeps_the_notebook_and_shows_no_traceback(tmp_path, monkeypatch):
    """Ctrl-C in a terminal reaches the kernel as well; here it takes it for the end of the training, as `fit` does."""
    path = tmp_path / "lesson.ipynb"
    wait = "try:\n    print('started', flush=True)\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('kept')"
    stored = write_notebook(path, f"import time\n{wait}", "print('the end')")
    monkeypatch.delenv("EPOCHS")
    run = subprocess.Popen([sys.executable, ROOT / "run_notebook.py", path], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert run.stdout.readline() == "started\n"
    time.sleep(0.5)
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 1 and errors and "Traceback" not in errors
    assert path.read_text() == stored
