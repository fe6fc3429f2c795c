"""Fill the marked blocks of the two README.md from the records, so that no result in them is typed by hand.

    python benchmarks/readme.py
"""

import argparse
import contextlib
import functools
import io
import json
import re
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import accuracy, robustness  # noqa: E402
from benchmarks import speed as measurements  # noqa: E402
from benchmarks.accuracy import ABLATION, read_records, sampling_error, select, settings_of, summarise  # noqa: E402
from benchmarks.evidence import requirements  # noqa: E402
from checkpoint import write_whole  # noqa: E402
from model import count_parameters  # noqa: E402
from utils import MAX_EPOCHS, TARGET, load_run, print_epoch  # noqa: E402

LONG = 5  # epochs: candidates for shorter trainings stand in a table of their own
DOUBLED = "chosen, learning_rate=0.04, other_rate=0.1, momentum=0.95"  # the candidate that was first taken for the best


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


def printed(words: str) -> str:
    """What the notebook's cell that says these words printed."""
    cells = json.loads((ROOT / "S6_MNIST.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = ["".join(output.get("text", "")) for cell in cells for output in cell.get("outputs", [])]
    found = [text for text in outputs if words in text]
    if not found:
        raise ValueError("the notebook holds no outputs: run 'python benchmarks/notebook.py' first")
    return "```\n" + found[0] + "```"


def digits() -> str:
    """How well each digit is read."""
    return printed("images are read correctly")


def confidence() -> str:
    """How far the probabilities are off, and how many images would have to be rejected."""
    return printed("expected calibration error")


def runs_of(recipe: str, train_images: int = 60_000) -> list[dict]:
    """The recorded runs of a recipe on all training images, or on the 50,000 that are not held out."""
    return select(read_records(), recipe, train_images)


def places(runs: list[dict]) -> str:
    """Where runs were made: device, precision and version of PyTorch, each with the number of its runs."""
    counts = Counter((re.sub(r",.*\)", ")", r["device"]), r["versions"]["precision"], r["versions"]["torch"])
                     for r in runs)  # without the number of threads, which is 1 in all
    made = {f"{device}, {precision}, torch {torch}": n for (device, precision, torch), n in counts.most_common()}
    if len(made) == 1:
        return f"All these runs were made on {next(iter(made))}."
    return f"Of these runs, {'; '.join(f'{n} on {place}' for place, n in made.items())}."


def by_precision(runs: list[dict]) -> dict[str, list[dict]]:
    """The runs that were trained in each precision."""
    groups = defaultdict(list)
    for run in runs:
        groups[run["versions"]["precision"].split()[0]].append(run)
    return dict(groups)


def precision(runs: list[dict]) -> str:
    """The precision that runs were trained in, with the number of runs in each if there are two."""
    groups = by_precision(runs)
    return ", ".join(f"{name} ({len(group)})" if len(groups) > 1 else name for name, group in groups.items())


def precisions() -> str:
    """What the recipes that were run in both precisions are worth in each."""
    header, rows = ["recipe", "trained on", "scored on", "bfloat16", "float32"], []
    for recipe, images, scored, key in (("10 epochs", 60_000, "the test images", "test_accuracy"),
                                        ("8 epochs", 60_000, "the test images", "test_accuracy"),
                                        ("original", 60_000, "the test images", "test_accuracy"),
                                        ("original", 50_000, "the held-out images", "validation_accuracy")):
        groups = {name: select(runs, recipe, images) for name, runs in by_precision(read_records()).items()}
        results = [summarise(groups[name], key) for name in header[-2:]]
        rows.append([recipe, f"{images:,}", scored, *(f"{r.mean:.3f} ± {r.sd:.3f} ({r.n})" for r in results)])
    return table(header, rows)


def seeds() -> str:
    """Many seeds of the recipes that are trained on all images and scored on the test images."""
    rows, everything = [], []
    for recipe in ("chosen", "original", "express", "one epoch"):
        runs = runs_of(recipe)
        everything += runs
        n, mean, sd, low, high = summarise(runs)
        rows.append([recipe, f"{runs[0]['settings']['epochs']}", precision(runs), f"{n}", f"**{mean:.3f} ± {sd:.3f}**",
                     f"{low:.2f}", f"{high:.2f}"])
    header = ["recipe", "epochs", "in", "seeds", "mean ± standard deviation (%)", "lowest", "highest"]
    return f"{table(header, rows)}\n\n{places(everything)}"


def spread() -> str:
    """What these runs say of the next one: where the stored run is, and the two kinds of uncertainty."""
    _, mean, sd, *_ = summarise(runs_of("chosen"))
    lowest = min(min(run["test_accuracy"][-3:]) for run in runs_of("chosen"))
    error, run = sampling_error(mean), stored_run()[2]
    return (f"The stored run is not among these: it was made on {run['environment']['device']}, "
            f"{run['environment']['precision']}, and ends at {run['history'][-1]['val_accuracy']:.2f} %. No run of the "
            f"chosen recipe is below {lowest:.2f} % in any of its last three epochs. From seed to seed its accuracy "
            f"varies by {sd:.3f} points (standard deviation). Apart from that, the 10,000 test images are themselves a "
            f"sample: another 10,000 such digits could move all its runs together by ±{error:.2f} points (two binomial "
            "standard errors), which no number of seeds makes smaller.")


def held_out() -> str:
    """What a choice on 10,000 images flatters: validation and test of the same models, beside the full result."""
    split, full = runs_of("chosen", 50_000), runs_of("chosen")
    results = [("50,000", "10,000 held-out training images", split, "validation_accuracy"),
               ("50,000", "10,000 test images", split, "test_accuracy"),
               ("60,000", "10,000 test images", full, "test_accuracy")]
    rows = []
    for trained, scored, runs, key in results:
        n, mean, sd, low, _ = summarise(runs, key)
        rows.append([trained, scored, f"{n}", f"{mean:.3f} ± {sd:.3f}", f"{low:.2f}"])
    header = ["trained on", "scored on", "seeds", "mean ± standard deviation (%)", "lowest"]
    return f"{table(header, rows)}\n\n{places([*split, *full])}"


def ablation() -> str:
    """Each recipe on the split: how it ends, and what the chosen one is ahead of it."""
    chosen, rows, everything = summarise(runs_of("chosen", 50_000), "validation_accuracy"), [], []
    for recipe in ABLATION:
        if runs := runs_of(recipe, 50_000):
            everything += runs
            n, mean, sd, *_ = summarise(runs, "validation_accuracy")
            difference = "" if recipe == "chosen" else f"{mean - chosen.mean:+.3f}"
            rows.append([recipe, precision(runs), f"{n}", f"{mean:.3f} ± {sd:.3f}", difference])
    header = ["recipe", "in", "seeds", "mean ± standard deviation (%)", "difference"]
    return f"{table(header, rows)}\n\n{places(everything)}"


def candidates(wanted: Callable[[dict], bool]) -> str:
    """The wanted runs on the split, by what they change in the recipe for batches of 64, best first."""
    base, groups = settings_of("10 epochs"), {}
    for run in read_records():
        if run["train_images"] == 50_000 and wanted(run):
            changes = {key: value for key, value in run["settings"].items() if value != base.get(key)}
            groups.setdefault(", ".join(f"`{key}={value:g}`" for key, value in changes.items()), {})[run["seed"]] = run
    groups = {changes: list(runs.values()) for changes, runs in groups.items()}
    results = {changes: summarise(runs, "validation_accuracy") for changes, runs in groups.items()}
    rows = []
    for changes, (n, mean, sd, *_) in sorted(results.items(), key=lambda item: -round(item[1].mean, 3)):
        score = f"{mean:.3f} ± {sd:.3f}" if n > 1 else f"{mean:.3f}"
        rows.append([changes or "nothing", precision(groups[changes]), f"{n}", score])
    header = ["changed in the recipe for batches of 64", "in", "seeds", "validation (%)"]
    return f"{table(header, rows)}\n\n{places([run for runs in groups.values() for run in runs])}"


def batches() -> str:
    """The candidates for larger batches, and what the chosen one is worth beside the recipe that they start from."""
    tried = candidates(lambda run: run["recipe"].startswith("chosen") and run["settings"]["epochs"] >= LONG
                       and "width" not in run["settings"])
    recipes = {"batches of 64, ten epochs": "10 epochs", "batches of 64, eight epochs": "8 epochs",
               "rates twice as high": DOUBLED, "chosen": "chosen"}
    results = {(name, precision): summarise(runs) for name, recipe in recipes.items()
               for precision, runs in by_precision(runs_of(recipe)).items()}
    rows = []
    for (name, precision), (n, mean, sd, low, _) in results.items():
        new, change = results.get(("chosen", precision)), ""
        if new and name != "chosen":
            change = f"{new.mean - mean:+.3f} ± {(new.sd**2 / new.n + sd**2 / n) ** 0.5:.3f}"
        rows.append([name, precision, f"{n}", f"{mean:.3f} ± {sd:.3f}", f"{low:.2f}", change])
    header = ["trained on all images", "in", "seeds", "test: mean ± standard deviation (%)", "lowest",
              "chosen less this ± standard error"]
    return f"{tried}\n\n{table(header, rows)}"


def few_epochs() -> str:
    """The candidates for the recipes of few epochs."""
    large = runs_of("express, batch_size=128, average_decay=0.96")
    tested = accuracy.describe(large).strip()
    return (candidates(lambda run: run["settings"]["epochs"] < LONG) +
            f"\n\nOn all images, the better one with batches of 128 was tested too: {tested}.")


def small() -> str:
    """The candidates for the recipe of small networks."""
    return candidates(lambda run: "width" in run["settings"])


def frontier() -> str:
    """Accuracy by number of parameters, and by number of epochs."""
    tables, everything = [], {}
    for groups, unit in zip(accuracy.frontier(read_records()), ("parameters", "epochs"), strict=True):
        rows = []
        for number, runs in groups.items():
            everything.update({id(run): run for run in runs})  # one group is in both tables
            n, mean, sd, low, high = summarise(runs)
            rows.append([f"{number:,}", precision(runs), f"{n}", f"{mean:.3f} ± {sd:.3f}", f"{low:.2f}", f"{high:.2f}"])
        tables.append(table([unit, "in", "seeds", "mean ± standard deviation (%)", "lowest", "highest"], rows))
    return "\n\n".join([*tables, places(list(everything.values()))])


def least() -> str:
    """The least parameters, and the fewest epochs, whose mean reaches the target, and how near the next less come."""
    sentences = []
    for groups, what in zip(accuracy.frontier(read_records()), (
            f"Of the networks tried, all for {MAX_EPOCHS - 1} epochs, the smallest whose mean reaches {TARGET} % has "
            "{:,} parameters", "The assignment's network takes {} epochs"), strict=True):
        numbers = list(groups)
        first = next(i for i, runs in enumerate(groups.values()) if summarise(runs).mean >= TARGET)
        n, mean, sd, *_ = summarise(groups[numbers[first - 1]])
        sentences.append(f"{what.format(numbers[first])} ({accuracy.describe(groups[numbers[first]]).strip()}); with "
                         f"{numbers[first - 1]:,} it ends at {mean:.3f} %, with a standard error of {sd / n**0.5:.3f}.")
    return " ".join(sentences)


def public() -> str:
    """Other people's results, with their sources."""
    rows = []
    for number, p in enumerate(accuracy.read_public(), start=1):
        address = f"https://github.com/{p['repository']}/blob/{p['commit']}/{p['path']}"
        source = f"[{p['repository']}]({address})" + (f", {p['note']}" if p["note"] else "")
        rows.append([f"{number}", f"{p['parameters']:,}", f"{p['epochs']}", f"{p['last_accuracy']:.2f}",
                     f"{p['best_accuracy']:.2f}", source])
    return table(["number", "parameters", "epochs", "last epoch (%)", "best epoch (%)", "source"], rows)


def handwriting() -> str:
    """How the two networks read handwriting that is not MNIST."""
    percent = robustness.read_results()["load_digits"]
    return (f"Of 1,797 digits from another collection, reduced to 8×8 pixels, the stored network reads "
            f"{percent['chosen']:.1f} % correctly, the one of the original recipe {percent['original']:.1f} %.")


def measured_on(part: str) -> str:
    """Where a part of the speed was measured."""
    made = measurements.read_results()[part]["environment"]
    return f"measured on {made['device']}, ours with {made['precision']}"


def speed() -> str:
    """The pipelines beside each other, and the time to the target."""
    measured = measurements.read_results()
    pipelines, rows = measured["pipelines"], []
    for name in measurements.PIPELINES:
        epoch, train, evaluate = (statistics.median(seconds) for seconds in (
            measurements.epoch_seconds(pipelines[name]), pipelines[name]["train"], pipelines[name]["evaluate"]))
        rows.append([name, f"{epoch:.1f}", f"{measurements.TRAINING / train:,.0f}",
                     f"{measurements.TEST / evaluate:,.0f}"])
    header = ["pipeline", "seconds per epoch", "training (images/s)", "evaluation (images/s)"]
    return "\n".join([table(header, rows), "", *measurements.ratios(pipelines),
                      f"Medians, ranges in brackets; {measured_on('pipelines')}.", "",
                      *measurements.describe_workers(measured["workers"]),
                      f"This was measured on {measured['workers']['environment']['device']}.", "",
                      *measurements.describe_target(measured["target"]), f"This was {measured_on('target')}."])


def profile() -> str:
    """Where the time of a step goes: its parts, and the network's layers by kind."""
    measured = measurements.read_results()["profile"]
    whole, kinds = sum(measured["parts"].values()), {}
    for layer, (forward, backward) in measured["layers"].items():
        kind = kinds.setdefault(layer.split("-")[0], [0, 0])
        kind[0] += forward
        kind[1] += backward
    parts = [[name, f"{ms:.2f}", f"{ms / whole:.0%}"] for name, ms in measured["parts"].items()]
    layers = [[name, f"{forward:.2f}", f"{backward:.2f}"] for name, (forward, backward) in kinds.items()]
    return "\n\n".join([table(["part of a step", "ms", "share"], parts),
                        table(["kind of layer", "forward (ms)", "backward (ms)"], layers),
                        f"The step was {measured_on('profile')}."])


def scaling() -> str:
    """How seconds grow with each size."""
    lines = measurements.describe_scaling(measurements.read_results()["scaling"])
    return "\n".join(["```", *lines, "```", f"This was {measured_on('scaling')}."])


def trials() -> str:
    """The trials before the choice, best first."""
    records = read_records(ROOT / "benchmarks" / "results" / "trials.jsonl")
    rows = [[f"{r['validation_accuracy'][-1]:.2f}", f"{r['validation_accuracy'][2]:.2f}", r["optimizer"],
             *(str(r[key]) for key in ("learning_rate", "epochs", "seed", "changes"))]
            for r in sorted(records, key=lambda r: -r["validation_accuracy"][-1])]
    return table(["last epoch (%)", "epoch 3 (%)", "optimiser", "peak rate", "epochs", "seed", "recipe"], rows)


PAGES = {
    ROOT / "README.md": (claim, requirements_table, architecture, recipe, log, environment, seeds, spread, least,
                         speed, digits, confidence, handwriting),
    ROOT / "benchmarks" / "README.md": (precisions, held_out, ablation, batches, few_epochs, trials, small, frontier,
                                        public, profile, scaling),
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


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    pages = {page: render(page) for page in PAGES}
    for page, text in pages.items():
        write_whole(page, lambda part, text=text: part.write_text(text, encoding="utf-8", newline="\n"))


if __name__ == "__main__":
    main()
