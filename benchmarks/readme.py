"""Fill the marked blocks of README.md from the records, so that no result in it is typed by hand.

    python benchmarks/readme.py
"""

import contextlib
import functools
import io
import re
import sys
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from model import count_parameters  # noqa: E402
from utils import load_run, print_epoch, requirements  # noqa: E402

README = ROOT / "README.md"


@functools.cache
def stored_run():
    """Model, config and record of the run in the notebook."""
    return load_run(ROOT / "S6_MNIST.pt")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def claim() -> str:
    model, _, run = stored_run()
    seconds = sum(row["seconds"] for row in run["history"])
    time = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    return (f"**{run['history'][-1]['val_accuracy']:.2f} % after the last of {len(run['history'])} epochs, with "
            f"{count_parameters(model):,} parameters**, in {time} on {run['environment']['device']}.")


def requirements_table() -> str:
    model, _, run = stored_run()
    rows = [[name, asked, measured, "yes" if passed else "**no**"]
            for name, asked, measured, passed in requirements(model, run["history"])]
    return table(["", "asked for", "measured", "met"], rows)


def architecture() -> str:
    return "```\n" + (ROOT / "tests" / "summary.txt").read_text(encoding="utf-8") + "```"


def recipe() -> str:
    _, config, _ = stored_run()
    rows = [[f"`{f.name}`", str(getattr(config, f.name)), f.metadata["meaning"]] for f in fields(config)]
    return table(["setting", "value", "meaning"], rows)


def log() -> str:
    model, config, run = stored_run()
    lines = io.StringIO()
    with contextlib.redirect_stdout(lines):
        for row in run["history"]:
            print_epoch(row, config, model)
    return "```\n" + lines.getvalue() + "```"


def environment() -> str:
    _, config, run = stored_run()
    made = run["environment"]
    return (f"Device: {made['device']}, {made['precision']}. Python {made['python']}, torch {made['torch']}, "
            f"torchvision {made['torchvision']}. Seed {config.seed}.")


BLOCKS = {f.__name__: f for f in (claim, requirements_table, architecture, recipe, log, environment)}


def render(text: str) -> str:
    """Replace what stands between `<!-- name -->` and `<!-- end -->` by what the records say now."""
    for name, write in BLOCKS.items():
        pattern = rf"(?<=<!-- {name} -->\n).*?(?=\n<!-- end -->)"
        text, count = re.subn(pattern, lambda _, write=write: write(), text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"README.md has {count} blocks between '<!-- {name} -->' and '<!-- end -->'; it needs one")
    return text


if __name__ == "__main__":
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
