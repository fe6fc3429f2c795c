"""The stored notebooks are clean full runs of the code beside them, and the pages around them hold together."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

import run_notebook
from utils import ROOT, Config, code_hash

LESSON, REPORT = ROOT / "S6_MNIST.ipynb", ROOT / "benchmarks" / "report.ipynb"
PAGES = sorted([LESSON, REPORT, *(page for pattern in ("*.md", "*/*.md") for page in ROOT.glob(pattern))])


def read_cells(path, kind="code"):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind]


def printed(cells):
    return "".join("".join(out.get("text", "")) for cell in cells for out in cell["outputs"])


def test_stored_outputs_come_from_this_code():
    text = printed(read_cells(LESSON))
    assert f"code {code_hash()}" in text, "the stored run is one of other code: run 'python run_notebook.py'"
    assert f'CODE = "{code_hash()}"' in "".join(read_cells(LESSON)[0]["source"])
    epochs = re.findall(r"^epoch +(\d+)/\d+ \|", text, re.MULTILINE)
    assert [int(number) for number in epochs] == list(range(1, Config().epochs + 1))


@pytest.mark.parametrize("path", [LESSON, REPORT], ids=lambda path: path.name)
def test_stored_outputs_are_clean(path):
    cells = read_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert "widgets" not in json.loads(path.read_text(encoding="utf-8"))["metadata"]
    outputs = [out for cell in cells for out in cell["outputs"]]
    assert {out["output_type"] for out in outputs} <= {"stream", "display_data"}
    assert {out["name"] for out in outputs if out["output_type"] == "stream"} == {"stdout"}
    assert {kind for out in outputs for kind in out.get("data", {})} == {"text/plain", "image/png"}
    assert not re.search(r"[\r\x1b]| at 0x", printed(cells))
    assert path.stat().st_size < 1_000_000


def text_of(page):
    """The text of a page, or of a notebook's Markdown cells, without code blocks."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        text = "\n\n".join("".join(cell["source"]) for cell in read_cells(page, "markdown"))
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them; in a notebook they keep capitals and punctuation."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    if page.suffix == ".ipynb":
        return {heading.replace(" ", "-") for heading in headings}
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_local_links_and_images(page):
    assert "![](" not in text_of(page), "an image without alternative text"
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if not re.match(r"https?://", link):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), f"{page.name} links to {link}, which is not there"
            assert not anchor or anchor in anchors(target), f"{page.name} links to {link}: no such heading"


def test_every_image_stands_on_a_page():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [path.name for path in (ROOT / "images").iterdir() if f"images/{path.name}" not in text] == []


def test_notebook_and_readme_name_one_repository():
    (slug,) = re.findall(r'REPOSITORY = "(.+?)"', "".join(read_cells(LESSON)[0]["source"]))
    badge = r"https://colab\.research\.google\.com/github/(.+?)/blob/main/S6_MNIST\.ipynb"
    for page in LESSON, ROOT / "README.md":
        assert re.findall(badge, page.read_text(encoding="utf-8")) == [slug]


def test_ci_runs_the_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    command = next(line for line in script.splitlines() if line.startswith("python3 -m venv"))
    assert f"```\n{command}\n```" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "bash .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")


def test_snippets_of_the_readme_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert snippets
    for snippet in snippets:
        exec(snippet, {})


def write_notebook(path, *sources):
    """Write a notebook of these code cells and return its text."""
    cells = [{"cell_type": "code", "id": f"c{number}", "metadata": {}, "outputs": [], "source": source,
              "execution_count": None} for number, source in enumerate(sources)]
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path.read_text()


def test_only_a_full_run_without_failure_replaces_the_notebook(tmp_path, monkeypatch, capfd):
    path = tmp_path / "lesson.ipynb"
    monkeypatch.setattr("sys.argv", ["run_notebook.py", str(path)])
    stored = write_notebook(path, 'CODE = ""\nprint(CODE)', "for i in range(3):\n    print(i, flush=True)")
    with pytest.raises(SystemExit, match="EPOCHS=1 shortened"):
        run_notebook.main()
    monkeypatch.setenv("EPOCHS", "250")
    with pytest.raises(SystemExit, match="EPOCHS=250 is not a whole number"):
        run_notebook.main()
    assert path.read_text() == stored

    monkeypatch.delenv("EPOCHS")
    capfd.readouterr()
    run_notebook.main()
    output = capfd.readouterr()
    assert output.out.startswith(f"{code_hash()}\n0\n1\n2\n")
    assert "WARNING" not in output.out + output.err
    assert [len(cell["outputs"]) for cell in read_cells(path)] == [1, 1]

    stored = write_notebook(path, "print('first')", "1 / 0", "print('third')")
    with pytest.raises(SystemExit, match=r"a cell failed:\n(.|\n)*ZeroDivisionError"):
        run_notebook.main()
    assert path.read_text() == stored


@pytest.mark.skipif(sys.platform == "win32", reason="sends the signal of Ctrl-C, which Windows does not know")
def test_interrupted_run_keeps_the_notebook(tmp_path):
    path = tmp_path / "lesson.ipynb"
    stored = write_notebook(path, "import time\nprint('started', flush=True)\ntime.sleep(60)")
    full = {name: value for name, value in os.environ.items() if name != "EPOCHS"}
    run = subprocess.Popen([sys.executable, ROOT / "run_notebook.py", path], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True, env=full)
    assert run.stdout.readline() == "started\n"
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "interrupted" in errors
    assert path.read_text() == stored


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="asks git")
def test_line_ends_survive_a_checkout_on_windows(tmp_path):
    clone = ["git", "clone", "-q", "-c", "core.autocrlf=true", "--depth=1", f"file://{ROOT}", tmp_path / "clone"]
    if subprocess.run(clone, capture_output=True).returncode:
        pytest.skip("this checkout cannot be cloned")
    for name in ".ci/run", "README.md", "S6_MNIST.ipynb":
        assert b"\r\n" not in (tmp_path / "clone" / name).read_bytes()
