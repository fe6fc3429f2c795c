"""Train the network with many seeds and record every run: what a recipe is worth beyond one lucky seed.

    python benchmarks/accuracy.py chosen --seeds 20          # on all 60,000 training images
    python benchmarks/accuracy.py --split --seeds 3          # the ablation, on 50,000, scored on the other 10,000
    python benchmarks/accuracy.py frontier --seeds 5         # smaller networks, and fewer or more epochs
    python benchmarks/accuracy.py chosen --split --set dropout=0.1 batch_size=128      # a candidate for a better one

A run that is on record is not repeated, so a command that was stopped goes on when it is given again.
"""

import argparse
import json
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.evidence import environment  # noqa: E402
from model import CLASSES, WIDTH, Net, count_parameters  # noqa: E402
from utils import MAX_EPOCHS, Config, Loader, evaluate, fit, load_mnist, set_seed  # noqa: E402

RECORDS = ROOT / "benchmarks" / "results" / "accuracy.jsonl"
PUBLIC = ROOT / "benchmarks" / "results" / "public.json"
NETWORKS = None, "without BatchNorm", "fully connected for GAP", "BatchNorm before ReLU"  # None: the assignment's
CONSTANT_RATE = {"warmup": 0, "first_rate": 1, "last_rate": 1}
NO_AUGMENTATION = {"rotation": 0, "shift": 0, "scale": 0, "shear": 0}

# What each recipe changes in `Config`, the chosen recipe; "network" and "width" change the network instead.
ABLATION = {
    "chosen": {},
    "original": {  # SGD at a constant rate and rotation alone, as such assignments are usually solved
        "epochs": 10, "batch_size": 128, "muon": False, "learning_rate": 0.01, "other_rate": 0.01, **CONSTANT_RATE,
        "momentum": 0.9, "weight_decay": 0, "label_smoothing": 0, "average_decay": 0, "dropout": 0.1,
        **NO_AUGMENTATION, "rotation": 10, "plain": 0,
    },
    "without BatchNorm": {"network": "without BatchNorm"},
    "without Dropout": {"dropout": 0},
    "without augmentation": NO_AUGMENTATION,
    "without schedule": CONSTANT_RATE,
    "without label smoothing": {"label_smoothing": 0},
    "fully connected for GAP": {"network": "fully connected for GAP"},
    "BatchNorm before ReLU": {"network": "BatchNorm before ReLU"},
}
# Four times the steps of the chosen recipe, for what is not about speed: small networks, and few or many epochs.
SMALL_BATCHES = {"batch_size": 64, "learning_rate": 0.02, "other_rate": 0.05, "momentum": 0.95, "average_decay": 0.999}
FASTER = {**SMALL_BATCHES, "learning_rate": 0.03, "other_rate": 0.1, "average_decay": 0.98}
FEW_EPOCHS = {  # the best of the candidates for two epochs, and for one
    "express": {"epochs": 2, **FASTER},
    "one epoch": {"epochs": 1, **FASTER, "rotation": 5, "shift": 0.04, "scale": 0.05, "shear": 4},
}
# Small networks have no capacity to spare: they are asked for less.
SMALL = {"rotation": 7, "shift": 0.05, "scale": 0.08, "shear": 6, "label_smoothing": 0, "dropout": 0.001}
WIDTHS = {4: SMALL, 6: SMALL, 8: SMALL, 12: SMALL, WIDTH: {}}
EPOCHS = (3, 4, 5, 8, 10, 12)
FRONTIER = {
    **{f"width {width}": {"width": width, "epochs": MAX_EPOCHS - 1, **SMALL_BATCHES, **changes}
       for width, changes in WIDTHS.items()},
    **{f"{epochs} epochs": {"epochs": epochs, **SMALL_BATCHES} for epochs in EPOCHS},
}
RECIPES = {**ABLATION, **FEW_EPOCHS, **FRONTIER}


def build(settings: dict) -> nn.Module:
    """The assignment's network, or the one of another width or structure that the settings ask for."""
    network, model = settings["network"], Net(settings.get("width", WIDTH), settings["dropout"])
    if network == "fully connected for GAP":
        model.head[1] = nn.Sequential(nn.Flatten(), nn.Linear(CLASSES * 5 * 5, CLASSES))
    elif network is not None:
        for block in (*model.stage1, *model.stage2):
            relu, norm = block[1], block[2]
            block[1], block[2] = (norm, relu) if network == "BatchNorm before ReLU" else (relu, nn.Identity())
    return model


def split_training(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of 50,000 images to train on and of 10,000 to choose by: always the same, each digit in proportion."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    order = order[labels[order].argsort(stable=True)]
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[order[::6]] = True
    return (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]


def settings_of(recipe: str) -> dict:
    """Every setting of a recipe but the seed: the fields of its `Config`, and its network.

    A recipe is named by a key of `RECIPES`, or by one and what a candidate changes in it: "chosen, dropout=0.1".
    KeyError, TypeError or ValueError says what is wrong with a name.
    """
    name, *candidate = recipe.split(", ")
    changes = {**RECIPES[name], **{field: json.loads(value) for field, value in (c.split("=") for c in candidate)}}
    if "seed" in changes:
        raise ValueError("the seed is none of a recipe's settings: --first-seed and --seeds choose seeds")
    network = {"network": None, **{name: changes.pop(name) for name in ("network", "width") if name in changes}}
    if network["network"] not in NETWORKS:
        raise ValueError(f"network is {network['network']!r}; it takes {', '.join(map(repr, NETWORKS))}")
    if not isinstance(width := network.get("width", WIDTH), int) or width < 1:
        raise ValueError(f"width is {width!r}; it takes a whole number from 1")
    settings = asdict(Config(**changes))
    del settings["seed"]
    return {**settings, **network}


def config_of(settings: dict, seed: int = 0) -> Config:
    """The part of the settings that is a `Config`."""
    return Config(seed=seed, **{name: value for name, value in settings.items() if name not in ("network", "width")})


def run(recipe: str, seed: int, split: bool) -> dict:
    """Train once and return the record; all accuracies are percent, one per epoch."""
    start = time.perf_counter()
    settings, device = settings_of(recipe), torch.device("cpu")
    config = config_of(settings, seed)
    images, labels = load_mnist(train=True)
    test_loader = Loader(*load_mnist(train=False), config, device, train=False)
    kept, held_out = split_training(labels) if split else (torch.arange(len(labels)), None)
    loader = Loader(images[kept], labels[kept], config, device, train=True)
    val_loader = Loader(images[held_out], labels[held_out], config, device, train=False) if split else test_loader
    set_seed(seed)
    model, test_accuracy = build(settings), []

    def on_epoch(row: dict, config: Config, averaged: nn.Module) -> None:
        test_accuracy.append(evaluate(averaged, test_loader)[1] if split else row["val_accuracy"])
        print(f"{recipe}, seed {seed}: epoch {row['epoch']}/{config.epochs}, {row['val_accuracy']:.2f} %, "
              f"{row['seconds']:.0f} s", flush=True)
        starter = multiprocessing.parent_process()
        if starter is not None and not starter.is_alive():  # nobody is left to record this run
            raise KeyboardInterrupt

    history = fit(model, loader, val_loader, on_epoch)
    if len(history) < config.epochs:
        raise KeyboardInterrupt
    record = {"recipe": recipe, "settings": settings, "seed": seed, "train_images": len(kept),
              "parameters": count_parameters(model), "test_accuracy": test_accuracy}
    if split:
        record["validation_accuracy"] = [row["val_accuracy"] for row in history]
    versions = environment(device)
    return {**record, "seconds": round(time.perf_counter() - start, 1), "device": versions.pop("device"),
            "versions": versions}


def read_records(path: Path = RECORDS) -> list[dict]:
    """The finished runs on record; a damaged line, as a killed writer may leave it, is reported and passed over."""
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else [], start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{path.name}, line {number}: not a whole record, passed over: {line[:60]!r}", file=sys.stderr)
    return records


def append_record(record: dict, path: Path = RECORDS) -> None:
    """Add one line to the records, on a line of its own even if the last writer was killed in the middle of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("" if whole else "\n") + json.dumps(record) + "\n")


def select(records: Iterable[dict], recipe: str, train_images: int) -> list[dict]:
    """The records with a recipe's present settings, whatever it was called, one per seed, in the order of the seeds."""
    settings = settings_of(recipe)
    runs = {r["seed"]: r for r in records
            if r["train_images"] == train_images and r["settings"] == settings}
    return [runs[seed] for seed in sorted(runs)]


class Summary(NamedTuple):
    """Last-epoch accuracies of several runs, in percent; `sd` is the sample standard deviation between the runs."""

    n: int
    mean: float
    sd: float
    minimum: float
    maximum: float


def frontier(records: list[dict]) -> tuple[dict[int, list[dict]], dict[int, list[dict]]]:
    """The runs on all training images by number of parameters, and those of the assignment's network by epochs."""
    widths = [select(records, f"width {width}", 60_000) for width in WIDTHS]
    names = [*FEW_EPOCHS, *(f"{epochs} epochs" for epochs in EPOCHS), f"width {WIDTH}"]
    epochs = [runs for name in names if (runs := select(records, name, 60_000))]
    return ({runs[0]["parameters"]: runs for runs in widths if runs},
            dict(sorted((runs[0]["settings"]["epochs"], runs) for runs in epochs)))


def read_public() -> list[dict]:
    """Other people's published results with small networks, one run each, with their sources."""
    return json.loads(PUBLIC.read_text(encoding="utf-8"))


def summarise(runs: list[dict], key: str = "test_accuracy") -> Summary:
    """Summarise the last epochs of the runs; the standard deviation of a single one is nan. ValueError without any."""
    if not runs:
        raise ValueError("no run of the recipe as it is now is on record: 'python benchmarks/accuracy.py' makes some")
    last = [r[key][-1] for r in runs]
    sd = statistics.stdev(last) if len(last) > 1 else float("nan")
    return Summary(len(last), statistics.mean(last), sd, min(last), max(last))


def describe(runs: list[dict], key: str = "test_accuracy") -> str:
    """The summary of several runs, as text."""
    n, mean, sd, low, high = summarise(runs, key)
    return f"{n:2} seeds: mean {mean:.3f} %, standard deviation {sd:.3f}, from {low:.2f} to {high:.2f} %"


def sampling_error(accuracy: float, images: int = 10_000) -> float:
    """Two standard errors, in points, of an accuracy in percent that was measured on `images` drawn at random."""
    share = accuracy / 100
    return 200 * (share * (1 - share) / images) ** 0.5


def is_setting(text: str) -> bool:
    """Whether a text has the form FIELD=VALUE, with a value in JSON."""
    name, _, value = text.partition("=")
    try:
        json.loads(value)
    except json.JSONDecodeError:
        return False
    return bool(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("recipes", nargs="*", metavar="RECIPE",
                        help=f"of: {', '.join(RECIPES)}; frontier for all widths and epochs (default: the ablation)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N-1 (default: 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="start at another seed")
    parser.add_argument("--split", action="store_true", help="train on 50,000 images, hold 10,000 out")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE",
                        help="change fields of Config; the values are JSON, like 0.1 or true")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs side by side (default: all cores)")
    options = parser.parse_args()
    for name, least in ("seeds", 1), ("first_seed", 0), ("processes", 1):
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be at least {least}")
    if wrong := [text for text in options.set if not is_setting(text)]:
        parser.error(f"--set {wrong[0]}: write FIELD=VALUE with a value in JSON, like dropout=0.1 or muon=false")
    names = [name for recipe in options.recipes or ABLATION
             for name in (FRONTIER if recipe == "frontier" else [recipe])]
    recipes = [", ".join([recipe, *options.set]) for recipe in names]
    for recipe in recipes:
        try:
            settings_of(recipe)
        except (KeyError, TypeError, ValueError) as error:
            parser.error(f"{recipe!r} is no recipe ({error}); there are {', '.join(map(repr, RECIPES))}")
    images, records = 50_000 if options.split else 60_000, read_records()
    key = "validation_accuracy" if options.split else "test_accuracy"  # a choice must not see the test images
    todo = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for recipe in recipes:
            if seed not in {r["seed"] for r in select(records, recipe, images)}:
                todo.append((recipe, seed, options.split))
    print(f"{len(todo)} runs to do, {len(recipes) * options.seeds - len(todo)} on record")
    for train in (True, False):
        load_mnist(train)  # downloads what is missing once, before several processes read it
    os.environ["TQDM_DISABLE"] = "1"  # in the processes: their bars would overwrite each other
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # "kill" ends as Ctrl-C does
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, context, torch.set_num_threads, (1,)) as pool:
        try:
            for done, future in enumerate(as_completed([pool.submit(run, *job) for job in todo]), start=1):
                try:
                    record = future.result()
                except Exception as error:  # the other runs go on
                    print(f"{done}/{len(todo)} failed: {error!r}", file=sys.stderr)
                    continue
                append_record(record)
                print(f"{done}/{len(todo)} recorded: {record['recipe']}, seed {record['seed']}: "
                      f"{record[key][-1]:.2f} % in {record['seconds']:.0f} s", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            sys.exit("stopped; finished runs are on record, and the same command goes on from there")
    for recipe in recipes:
        if runs := select(read_records(), recipe, images):
            print(f"{recipe}: {describe(runs, key)}")


if __name__ == "__main__":
    main()
