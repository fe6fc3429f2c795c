"""Train the network with many seeds and record every run: what a recipe is worth beyond one lucky seed.

    python -m benchmarks.accuracy final --seeds 20                 # on all 60,000 training images
    python -m benchmarks.accuracy parts --split --seeds 8          # without each part: on 50,000, scored on 10,000
    python -m benchmarks.accuracy frontier --seeds 5               # smaller networks, and fewer epochs
    python -m benchmarks.accuracy final --split --set dropout=0.1  # a candidate for a better recipe

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
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import utils
from benchmarks.robustness import NETWORKS, SAMPLE, measure
from model import NUM_CLASSES, WIDTH, Net, count_parameters
from utils import MAX_EPOCHS, Config, Loader, load_mnist, training_precision

RECORDS = Path(__file__).with_name("results") / "accuracy.jsonl"
CONSTANT_RATE = {"warmup_fraction": 0, "start_factor": 1, "end_factor": 1}
SAME_SHAPE = {"degrees": 0, "translate": 0, "scale": 0, "shear": 0}
SAME_LIGHT = {"light_fraction": 0, "blur": 0, "contrast": 0, "noise": 0}

# What each recipe changes in `Config`, the final recipe; "network" and "width" change the network instead.
PARTS = {
    "final": {},
    "without BatchNorm": {"network": "without BatchNorm"},
    "without Dropout": {"dropout": 0},
    "without shape augmentation": SAME_SHAPE,
    "without light augmentation": SAME_LIGHT,
    "without schedule": CONSTANT_RATE,
    "without label smoothing": {"label_smoothing": 0},
    "without weight average": {"ema_decay": 0},
    "SGD for Muon": {"optimizer": "sgd", "weight_decay": 0.0002},  # in a step the weights decay as much as with Muon
    "fully connected for GAP": {"network": "fully connected for GAP"},
    "BatchNorm before ReLU": {"network": "BatchNorm before ReLU"},
}
# As such assignments are usually solved: SGD at a constant rate, rotation alone, no average.
BASELINE = {
    "epochs": 10, "batch_size": 128, "optimizer": "sgd", "muon_lr": 0, "sgd_lr": 0.01, **CONSTANT_RATE,
    "momentum": 0.9, "weight_decay": 0, "label_smoothing": 0, "ema_decay": 0, "dropout": 0.1,
    **SAME_SHAPE, "degrees": 10, **SAME_LIGHT, "no_aug_fraction": 0,
}
# Small batches and no changes of light: for small networks, and for few or many epochs.
SMALL_BATCHES = {
    "epochs": 10, "batch_size": 64, "optimizer": "muon", "muon_lr": 0.02, "sgd_lr": 0.05, "warmup_fraction": 0.2,
    "start_factor": 0.04, "end_factor": 0, "momentum": 0.95, "weight_decay": 0.01, "label_smoothing": 0.05,
    "ema_decay": 0.999, "dropout": 0.005, "degrees": 10, "translate": 0.08, "scale": 0.14, "shear": 10,
    **SAME_LIGHT, "no_aug_fraction": 0.2,
}
FASTER = {**SMALL_BATCHES, "muon_lr": 0.03, "sgd_lr": 0.1, "ema_decay": 0.98}
FEW_EPOCHS = {
    "two epochs": {**FASTER, "epochs": 2},
    "one epoch": {**FASTER, "epochs": 1, "muon_lr": 0.04, "sgd_lr": 0.05, "warmup_fraction": 0.1, "momentum": 0.9,
                  "dropout": 0.001, "degrees": 2, "translate": 0.02, "scale": 0.03, "shear": 2},
}
# Small networks have no capacity to spare: weaker augmentation, hardly any regularisation.
SMALL = {"degrees": 7, "translate": 0.05, "scale": 0.08, "shear": 6, "label_smoothing": 0, "dropout": 0.001}
LONG = {**SMALL_BATCHES, "epochs": MAX_EPOCHS - 1}
FRONTIER = {
    **{f"width {width}": {**LONG, **SMALL, "width": width} for width in (4, 6, 8, 12)},
    f"width {WIDTH}": LONG,
    **{f"{epochs} epochs": {**SMALL_BATCHES, "epochs": epochs} for epochs in (3, 4, 5, 8, 10, 12)},
}
RECIPES = {**PARTS, "baseline": BASELINE, **FEW_EPOCHS, **FRONTIER}
GROUPS = {"parts": PARTS, "frontier": FRONTIER}


def build(network: str, width: int, dropout: float) -> nn.Module:
    """The assignment's network, of any width, or one of other structure; ValueError for an unknown one."""
    model = Net(width, dropout)
    blocks = [*model.stage1, *model.stage2]
    if network == "without BatchNorm":
        for block in blocks:
            block[2] = nn.Identity()
    elif network == "BatchNorm before ReLU":
        for block in blocks:
            block[1], block[2] = block[2], block[1]
    elif network == "fully connected for GAP":
        model.head[1] = nn.Sequential(nn.Flatten(), nn.Linear(NUM_CLASSES * 5 * 5, NUM_CLASSES))
    elif network != "Net":
        raise ValueError(f"the network is {network!r}, which is not known")
    return model


def split_training(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of 50,000 images to train on and of 10,000 to choose by: always the same, each digit in proportion."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    order = order[labels[order].argsort(stable=True)]
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[order[::6]] = True
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]


def read_recipe(recipe: str) -> tuple[Config, dict]:
    """A recipe's `Config`, and the network that it asks for, as arguments of `build`.

    A recipe is named by a key of `RECIPES`, or by one and what a candidate changes in it: "final, dropout=0.1".
    KeyError, TypeError or ValueError says what is wrong with a name.
    """
    name, *candidate = recipe.split(", ")
    changes = {**RECIPES[name], **{field: json.loads(value) for field, value in (c.split("=") for c in candidate)}}
    if "seed" in changes:
        raise ValueError("the seed is none of a recipe's settings: --first-seed and --seeds choose seeds")
    network, width = changes.pop("network", "Net"), changes.pop("width", WIDTH)
    if type(width) is not int or width < 1:
        raise ValueError(f"width is {width!r}; it takes a whole number from 1")
    config = Config(**changes)
    build(network, width, config.dropout)
    return config, {"network": network, "width": width, "dropout": config.dropout}


def run(recipe: str, seed: int, split: bool, device_name: str, keep: bool) -> dict:
    """Train once and return the record; all accuracies are percent, `..._accuracy` with one for each epoch."""
    start, device = time.perf_counter(), torch.device(device_name)
    config, network = read_recipe(recipe)
    config = replace(config, seed=seed, precision=training_precision(config, device))
    images, labels = load_mnist(train=True)
    if split:
        kept, held_out = split_training(labels)
        (images, labels), scored = (images[kept], labels[kept]), (images[held_out], labels[held_out])
    else:
        scored = load_mnist(train=False)
    train_loader = Loader(images, labels, config, device, train=True)
    val_loader = Loader(*scored, config, device, train=False)
    utils.set_seed(seed)
    model = build(**network).to(device)

    def on_epoch(row: dict, config: Config, _model: nn.Module) -> None:
        print(f"{recipe}, seed {seed}: epoch {row['epoch']}/{config.epochs}, {row['val_accuracy']:.2f} %, "
              f"{row['seconds']:.0f} s", flush=True)
        starter = multiprocessing.parent_process()
        if starter is not None and not starter.is_alive():  # nobody is left to record this run
            raise KeyboardInterrupt

    history = utils.fit(model, train_loader, val_loader, on_epoch)
    if len(history) < config.epochs:
        raise KeyboardInterrupt
    if keep:
        utils.save_run(NETWORKS / f"{recipe}-{seed}.pt", model, config, history)
    logits, digits = utils.predict(model, val_loader)
    confidence, predicted = logits.softmax(1).max(1)
    (distorted,) = measure([model], val_loader.images[::4], val_loader.labels[::4], SAMPLE)  # a sample is enough here
    settings = {name: value for name, value in asdict(config).items() if name != "seed"}
    return {
        "recipe": recipe, "settings": {**settings, **network}, "seed": seed, "train_images": len(labels),
        "parameters": count_parameters(model),
        f"{'validation' if split else 'test'}_accuracy": [row["val_accuracy"] for row in history],
        "calibration_error": round(utils.calibration(confidence, predicted == digits)[1], 4),
        "distorted": {f"{name} {strength}": value for (name, strength), value in zip(SAMPLE, distorted, strict=True)},
        "seconds": round(time.perf_counter() - start, 1), **utils.describe_environment(device),
    }


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
    """Add one line to the records, in one write, so that several programs may add to them at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")  # or the last writer was killed in a line
    with path.open("ab", buffering=0) as file:
        line = (("" if whole else "\n") + json.dumps(record) + "\n").encode()
        if file.write(line) < len(line):
            raise OSError("the disk is full")


def select(records: Iterable[dict], recipe: str, train_images: int, where: str | None = None) -> list[dict]:
    """The records with a recipe's present settings, whatever it was called, one per seed, in the order of the seeds.

    All are of one kind of device and one precision: those given as `where`, "CPU, float32", or those of most seeds.
    """
    config, network = read_recipe(recipe)
    wanted = {**asdict(config), **network}
    del wanted["seed"], wanted["precision"]
    groups = {}
    for r in records:
        settings = {name: value for name, value in r["settings"].items() if name != "precision"}
        if r["train_images"] == train_images and settings == wanted:
            groups.setdefault(where_made(r), {})[r["seed"]] = r
    if where is None and groups:
        where = max(groups, key=lambda place: len(groups[place]))
    return [r for _, r in sorted(groups.get(where, {}).items())]


def where_made(record: dict) -> str:
    """The kind of device and the precision of a run: "CPU, bfloat16"."""
    return f"{record['device'].split()[0]}, {record['settings']['precision']}"


class Summary(NamedTuple):
    """Last-epoch accuracies of several runs, in percent; `sd` is the sample standard deviation between the runs."""

    n: int
    mean: float
    sd: float
    minimum: float
    maximum: float

    def __str__(self) -> str:
        if self.n == 1:
            return f" 1 seed:  {self.mean:.2f} %"
        return (f"{self.n:2} seeds: mean {self.mean:.3f} %, standard deviation {self.sd:.3f}, from {self.minimum:.2f} "
                f"to {self.maximum:.2f} %")


def summarise(runs: list[dict]) -> Summary:
    """Summarise the last epochs of the runs; the standard deviation of a single one is nan. ValueError without any."""
    if not runs:
        raise ValueError("no run of the recipe as it is now is on record: 'python -m benchmarks.accuracy' makes some")
    last = [r["validation_accuracy" if "validation_accuracy" in r else "test_accuracy"][-1] for r in runs]
    sd = statistics.stdev(last) if len(last) > 1 else float("nan")
    return Summary(len(last), statistics.mean(last), sd, min(last), max(last))


def read_public() -> list[dict]:
    """Other people's published results with small networks, one run each, with their sources."""
    return json.loads(RECORDS.with_name("public.json").read_text(encoding="utf-8"))


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """The options and the recipes of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help=f"of: {', '.join([*GROUPS, *RECIPES])}")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N-1 (default: 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="start at another seed")
    parser.add_argument("--split", action="store_true", help="train on 50,000 images, hold 10,000 out")
    parser.add_argument("--keep", action="store_true", help="keep the networks too, in results/networks")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE",
                        help='change fields of Config; the values are JSON, like 0.1 or "sgd"')
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), default=utils.get_device().type,
                        help="default: the fastest")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs side by side (default: all cores)")
    options = parser.parse_args()
    for name, least in ("seeds", 1), ("first_seed", 0), ("processes", 1):
        if not least <= (value := getattr(options, name)) < 2**31:
            parser.error(f"--{name.replace('_', '-')} is {value}; it must be at least {least} and below 2^31")
    recipes = [", ".join([name, *options.set]) for group in options.recipes for name in GROUPS.get(group, [group])]
    for recipe in recipes:
        try:
            read_recipe(recipe)
        except (KeyError, TypeError, ValueError) as error:
            parser.error(f"{recipe!r} is no recipe ({error}); there are {', '.join(map(repr, [*GROUPS, *RECIPES]))}, "
                         "and --set takes FIELD=VALUE with a value in JSON")
    return options, recipes


def main() -> None:
    options, recipes = parse_arguments()
    images, device, records = 50_000 if options.split else 60_000, torch.device(options.device), read_records()
    where = {recipe: f"{device.type.upper()}, {training_precision(read_recipe(recipe)[0], device)}"
             for recipe in recipes}
    todo, failed = [], 0
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for recipe in recipes:
            missing = options.keep and not (NETWORKS / f"{recipe}-{seed}.pt").exists()
            if missing or seed not in {r["seed"] for r in select(records, recipe, images, where[recipe])}:
                todo.append((recipe, seed, options.split, options.device, options.keep))
    print(f"{len(todo)} runs to do, {len(recipes) * options.seeds - len(todo)} on record")
    for train in (True, False):
        load_mnist(train)  # downloads what is missing once, before several processes read it
    os.environ["TQDM_DISABLE"] = "1"  # in the processes: their bars would overwrite each other
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # "kill" ends as Ctrl-C does
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, context, torch.set_num_threads, (1,)) as pool:
        try:
            RECORDS.open("ab").close()  # what cannot be recorded need not be trained
            for done, future in enumerate(as_completed([pool.submit(run, *job) for job in todo]), start=1):
                try:
                    record = future.result()
                except Exception as error:  # the other runs go on
                    failed += 1
                    print(f"{done}/{len(todo)} failed: {error!r}", file=sys.stderr)
                    continue
                append_record(record)
                print(f"{done}/{len(todo)} recorded: {record['recipe']}, seed {record['seed']}: "
                      f"{summarise([record]).mean:.2f} % in {record['seconds']:.0f} s", flush=True)
        except (KeyboardInterrupt, OSError) as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            reason = f"{RECORDS} cannot be written ({error})" if isinstance(error, OSError) else "stopped"
            sys.exit(f"{reason}; finished runs are on record, and the same command goes on from there")
    for recipe in recipes:
        if runs := select(read_records(), recipe, images, where[recipe]):
            print(f"{recipe} ({where_made(runs[0])}): {summarise(runs)}")
    if failed:
        sys.exit(f"{failed} of {len(todo)} runs failed")


if __name__ == "__main__":
    main()
