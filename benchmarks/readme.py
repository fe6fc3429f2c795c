"""Fill the marked blocks of the two README.md from the records, so that no result in them is typed by hand.

    python benchmarks/readme.py
"""

import contextlib
import functools
import io
import re
import sys
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from accuracy import read_records, settings_of, summarise  # noqa: E402

from model import count_parameters  # noqa: E402
from utils import load_run, print_epoch, requirements  # noqa: E402


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


def candidates() -> str:
    """What the recipes that were tried on the split change in the chosen one, and how they ended."""
    chosen, groups = settings_of("chosen"), defaultdict(list)
    for record in read_records():
        if record["train_images"] == 50_000:
            changes = [f"{name} {value}" for name, value in record["settings"].items() if value != chosen[name]]
            groups[", ".join(changes) or "(the chosen recipe)"].append(record)
    rows = []
    for name, runs in groups.items():
        n, mean, _, low, high = summarise(runs, "validation_accuracy")
        rows.append([f"{mean:.3f}", f"{low:.2f}–{high:.2f}", f"{n}", name])
    return table(["mean (%)", "range (%)", "runs", "change in the chosen recipe"], sorted(rows, reverse=True))


PAGES = {
    ROOT / "README.md": (claim, requirements_table, architecture, recipe, log, environment),
    ROOT / "benchmarks" / "README.md": (candidates,),
}


def render(page: Path) -> str:
    """The page with what the records say now between each `<!-- name -->` and `<!-- end -->`."""
    text = page.read_text(encoding="utf-8")
    for write in PAGES[page]:
        name = write.__name__
        block = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        text, count = block.subn(lambda match, write=write: match[1] + write() + match[2], text)
        if count != 1:
            raise ValueError(f"{page} has {count} blocks between '<!-- {name} -->' and '<!-- end -->'; it needs one")
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(render(page), encoding="utf-8", newline="\n")
