"""Train the network with many seeds and record every run: what a recipe is worth beyond one lucky seed.

    python -m benchmarks.accuracy final --seeds 20                 # on all 60,000 training images
    python -m benchmarks.accuracy parts --split --seeds 8          # without each part: on 50,000, scored on 10,000
    python -m benchmarks.accuracy final --split --set dropout=0.1  # a candidate for a better recipe

A run that is on record is not repeated, so a command that was stopped goes on when it is given again.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor, nn

import utils
from benchmarks.robustness import NETWORKS, measure_sample
from mnist import Loader, augment, load_mnist
from model import NUM_CLASSES, Net, count_parameters
from utils import ROOT, Config

RECORDS = Path(__file__).with_name("results") / "accuracy.jsonl"
NO_SHAPE = {"degrees": 0, "translate": 0, "scale": 0, "shear": 0}
PLAIN_LOOK = {"light_fraction": 0, "look_fraction": 0, "outlier_fraction": 0}

# What each recipe changes in `Config`, the final recipe; "network" and "width" change the network instead.
ABLATIONS = {
    "final": {},
    "without BatchNorm": {"network": "without BatchNorm"},
    "without Dropout": {"dropout": 0},
    "without changes of shape": NO_SHAPE,
    "without changes of light": {"light_fraction": 0},
    "without other looks": {"look_fraction": 0},
    "without outliers": {"outlier_fraction": 0},
    "with a constant learning rate": {"end_factor": 1},
    "with SGD for Muon": {"optimizer": "sgd", "weight_decay": 0.0002},  # decays weights as much in a step as Muon
    "with a fully connected layer for GAP": {"network": "fully connected for GAP"},
}
RECIPES = {
    **ABLATIONS,
    # As such assignments are usually solved: SGD at a constant rate, rotation alone.
    "baseline": {"epochs": 10, "batch_size": 128, "optimizer": "sgd", "sgd_lr": 0.01, "end_factor": 1, "momentum": 0.9,
                 "weight_decay": 0, "dropout": 0.1, **NO_SHAPE, "degrees": 10, **PLAIN_LOOK, "plain_epochs": 0},
}


def build(network: str, width: int, dropout: float) -> nn.Module:
    """The assignment's network, of any width, or one of other structure; ValueError for an unknown one."""
    model = Net(width, dropout)
    if network == "without BatchNorm":
        for block in [*model.stage1, *model.stage2]:
            block[2] = nn.Identity()
            block[0].bias = nn.Parameter(torch.zeros(block[0].out_channels))  # in place of BatchNorm's
    elif network == "fully connected for GAP":
        model.head[1] = nn.Sequential(nn.Flatten(), nn.Linear(NUM_CLASSES * 5 * 5, NUM_CLASSES))
    elif network != "Net":
        raise ValueError(f"the network is {network!r}, which is not known")
    return model


def read_recipe(recipe: str) -> tuple[Config, dict]:
    """A recipe's `Config`, and the network that it asks for, as arguments of `build`.

    A recipe is named by a key of `RECIPES`, or by one and what a candidate changes in it: "final, dropout=0.1".
    """
    name, *candidate = recipe.split(", ")
    changes = dict(RECIPES[name])
    for change in candidate:
        field, _, value = change.partition("=")
        try:
            changes[field] = json.loads(value)
        except json.JSONDecodeError:  # a bare word
            changes[field] = value
    network = {"network": changes.pop("network", "Net"), "width": changes.pop("width", 16)}
    config = Config(**changes)
    return config, {**network, "dropout": config.dropout}


def split_training(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of 50,000 images to train on and of 10,000 to choose by: always the same, each digit in proportion."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    order = order[labels[order].argsort(stable=True)]
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[order[::6]] = True
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]


def describe_commit() -> str:
    """The commit of the code, "-dirty" if the files, but for the records, differ from it; empty without git."""
    try:
        found = subprocess.run(["git", "describe", "--always", "--exclude=*"], cwd=ROOT, capture_output=True, text=True,
                               check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    differ = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", ".", ":!benchmarks/results"], cwd=ROOT)
    return found.stdout.strip() + ("-dirty" if differ.returncode else "")


def run(recipe: str, seed: int, split: bool, device: torch.device, keep: bool = False) -> dict:
    """Train once and return the record; all accuracies are percent, `accuracy` has one for each epoch."""
    start = time.perf_counter()
    config, network = read_recipe(recipe)
    config = replace(config, seed=seed)
    images, labels = load_mnist(train=True)
    if split:
        kept, held_out = split_training(labels)
        scored = images[held_out], labels[held_out]
        images, labels = images[kept], labels[kept]
    else:
        scored = load_mnist(train=False)
    train_loader = Loader(images, labels, config.batch_size, shuffle=True, device=device,
                          transform=partial(augment, config=config))
    val_loader = Loader(*scored, batch_size=200, device=device)
    utils.set_seed(seed)
    model = build(**network).to(device)
    history = utils.fit(model, train_loader, val_loader, config)
    if len(history) < config.epochs:
        raise KeyboardInterrupt  # which `fit` takes for the end of the training
    if keep:
        utils.save_run(NETWORKS / f"{recipe}-{seed}.pt", model, config, history)
    logits, digits = utils.predict(model, val_loader)
    confidence, predicted = logits.softmax(1).max(1)
    settings = {name: value for name, value in asdict(config).items() if name not in ("seed", "precision")}
    return {
        "recipe": recipe, "settings": {**settings, **network}, "seed": seed, "train_images": len(labels),
        "scored": "held-out training images" if split else "test images", "parameters": count_parameters(model),
        "accuracy": [row["val_accuracy"] for row in history],
        "calibration_error": round(utils.calibration(confidence, predicted == digits)[1], 4),
        "least_logit": round(logits.amax(1).quantile(0.025).item(), 3),  # the largest logit of 97.5 % is above it
        **measure_sample(model, val_loader.images, val_loader.labels), "seconds": round(time.perf_counter() - start, 1),
        "commit": describe_commit(), "precision": utils.training_precision(config, device),
        **utils.describe_environment(device),
    }


def read_records(path: Path = RECORDS) -> list[dict]:
    """The finished runs on record; a damaged line, as a killed writer may leave it, is reported and passed over."""
    records = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if record["settings"] and record["accuracy"]:
                records.append(record)
        except (ValueError, TypeError, KeyError):
            print(f"{path.name}, line {number}: not a whole record, passed over: {line[:60]!r}", file=sys.stderr)
    return records


def append_record(record: dict, path: Path = RECORDS) -> None:
    """Add one line to the records, in one write, so that several programs may add to them at once."""
    with path.open("ab", buffering=0) as file:
        file.write(f"{json.dumps(record)}\n".encode())


def platform(record: dict) -> str:
    """The kind of device and the precision of a run: "CPU, bfloat16"."""
    return f"{record['device'].split()[0]}, {record['precision']}"


def select(records: list[dict], recipe: str, split: bool = False, on: str = "CPU, bfloat16") -> list[dict]:
    """The records with a recipe's present settings, made on one platform, the last of each seed, ordered by seed."""
    config, network = read_recipe(recipe)
    wanted = {**asdict(config), **network}
    del wanted["seed"], wanted["precision"]
    scored = "held-out training images" if split else "test images"
    found = {r["seed"]: r for r in records
             if r["settings"] == wanted and r["scored"] == scored and platform(r) == on}
    return [found[seed] for seed in sorted(found)]


class Summary(NamedTuple):
    """Last-epoch accuracies of several runs, in percent; `sd` is the sample standard deviation between the runs."""

    n: int
    mean: float
    sd: float
    minimum: float
    maximum: float
    commits: list[str]

    def __str__(self) -> str:
        return (f"{self.n:2} seeds: mean {self.mean:.3f} %, standard deviation {self.sd:.3f}, from {self.minimum:.2f} "
                f"to {self.maximum:.2f} %, commit {' and '.join(self.commits)}")


def summarise(runs: list[dict]) -> Summary:
    """Summarise the last epochs of the runs; the standard deviation of a single one is nan. ValueError without any."""
    if not runs:
        raise ValueError("no run of the recipe as it is now is on record: 'python -m benchmarks.accuracy' makes some")
    last = [r["accuracy"][-1] for r in runs]
    sd = statistics.stdev(last) if len(last) > 1 else float("nan")
    return Summary(len(last), statistics.mean(last), sd, min(last), max(last), sorted({r["commit"] for r in runs}))


def paired_difference(runs: list[dict], others: list[dict], value) -> tuple[float, float]:
    """The mean difference, over the seeds that both have, of `value(run)`, and half of its 95 % interval."""
    by_seed = {r["seed"]: value(r) for r in others}
    differences = [value(r) - by_seed[r["seed"]] for r in runs if r["seed"] in by_seed]
    student = round(stats.t.ppf(0.975, len(differences) - 1), 2)  # as printed tables have it
    return statistics.mean(differences), student * statistics.stdev(differences) / len(differences) ** 0.5


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """The options and the recipes of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("recipes", nargs="+", choices=["parts", *RECIPES], metavar="RECIPE",
                        help=f"of: {', '.join(RECIPES)}; 'parts' is the final recipe and it without each of its parts")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N-1 (default: 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="start at another seed")
    parser.add_argument("--split", action="store_true", help="train on 50,000 images, hold 10,000 out")
    parser.add_argument("--keep", action="store_true", help="keep the networks too, in results/networks")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="change fields of Config")
    parser.add_argument("--device", default=utils.get_device().type, help="default: the fastest")
    options = parser.parse_args()
    names = [name for given in options.recipes for name in (ABLATIONS if given == "parts" else [given])]
    recipes = [", ".join([name, *options.set]) for name in names]
    if options.keep and (options.split or any(read_recipe(recipe)[1]["network"] != "Net" for recipe in recipes)):
        parser.error("--keep is for networks of model.py that are trained on all images")
    return options, recipes


def expected_platform(recipe: str, device: torch.device) -> str:
    """The platform that a new run of the recipe will have."""
    return f"{device.type.upper()}, {utils.training_precision(read_recipe(recipe)[0], device)}"


def missing_seeds(recipe: str, options: argparse.Namespace, device: torch.device) -> list[int]:
    """The seeds that are asked for and not on record, or whose network is to be kept and is not there."""
    runs = select(read_records(), recipe, options.split, expected_platform(recipe, device))
    done = {run["seed"] for run in runs}
    if options.keep:
        done = {seed for seed in done if (NETWORKS / f"{recipe}-{seed}.pt").exists()}
    return [seed for seed in range(options.first_seed, options.first_seed + options.seeds) if seed not in done]


def main() -> None:
    options, recipes = parse_arguments()
    device = torch.device(options.device)
    for recipe in recipes:
        for seed in missing_seeds(recipe, options, device):
            record = run(recipe, seed, options.split, device, options.keep)
            append_record(record)
            print(f"{recipe}, seed {seed}: {record['accuracy'][-1]:.2f} % in {record['seconds']:.0f} s", flush=True)
        runs = select(read_records(), recipe, options.split, expected_platform(recipe, device))
        print(f"{recipe}: {summarise(runs)}")


if __name__ == "__main__":
    main()
