"""Fill the marked blocks of README.md from the records, so that no result in it is typed by hand.

    python benchmarks/readme.py
"""

import contextlib
import io
import re
import sys
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from utils import load_run, print_epoch, requirements  # noqa: E402

README = ROOT / "README.md"
MODEL, CONFIG, RUN = load_run(ROOT / "S6_MNIST.pt")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def claim() -> str:
    history, seconds = RUN["history"], sum(row["seconds"] for row in RUN["history"])
    return (f"**{history[-1]['val_accuracy']:.2f} % after the last of {len(history)} epochs, with "
            f"{sum(p.numel() for p in MODEL.parameters()):,} parameters**, in {seconds / 60:.0f} minutes on "
            f"{RUN['environment']['device']}.")


def requirements_table() -> str:
    rows = [[name, asked, measured, "yes" if passed else "**no**"]
            for name, asked, measured, passed in requirements(MODEL, CONFIG, RUN["history"])]
    return table(["", "asked for", "measured", "met"], rows)


def architecture() -> str:
    return "```\n" + (ROOT / "tests" / "summary.txt").read_text(encoding="utf-8") + "```"


def recipe() -> str:
    rows = [[f"`{f.name}`", str(getattr(CONFIG, f.name)), f.metadata["meaning"]] for f in fields(CONFIG)]
    return table(["setting", "value", "meaning"], rows)


def log() -> str:
    lines = io.StringIO()
    with contextlib.redirect_stdout(lines):
        for row in RUN["history"]:
            print_epoch(row, CONFIG, MODEL)
    return "```\n" + lines.getvalue() + "```"


def environment() -> str:
    run = RUN["environment"]
    return (f"Device {run['device']}, {run['precision']}, Python {run['python']}, torch {run['torch']}, "
            f"torchvision {run['torchvision']}, seed {CONFIG.seed}.")


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
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8")
