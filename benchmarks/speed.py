"""Measure how fast training is: beside a common pipeline, beside one without data work, and to 99.4 %.

    python -m benchmarks.speed                      # everything, half an hour or more on two cores
    python -m benchmarks.speed pipelines profile    # some parts of it, a few minutes

What is measured takes the place of the last measurement in results/speed.json. Compared pipelines run in turn, each in
a process of its own, so that a change of the machine's speed affects all alike.
"""

import argparse
import copy
import json
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import MNIST
from tqdm import tqdm

import utils
from benchmarks.accuracy import build, read_recipe
from model import Net
from utils import MAX_EPOCHS, MEAN, ROOT, STD, TARGET, Config, Loader, load_mnist, training_precision

RESULTS = Path(__file__).with_name("results") / "speed.json"
TRAINING, TEST = 60_000, 10_000  # images of an epoch and of its evaluation


class DataLoaderPipeline:
    """A common pipeline: a DataLoader reads one PIL image at a time, by default in the main process; float32, SGD."""

    def __init__(self, images: int, tests: int, device: torch.device, workers: int = 0) -> None:
        self.config, network = read_recipe("baseline")
        normalise = [transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))]
        augment = [transforms.RandomRotation(self.config.degrees), *normalise]
        self.loaders = [
            DataLoader(Subset(MNIST(ROOT / "data", train, transforms.Compose(steps), download=True), range(number)),
                       self.config.batch_size, shuffle=train, num_workers=workers, persistent_workers=workers > 0)
            for train, number, steps in ((True, images, augment), (False, tests, normalise))]
        self.device, self.model = device, build(**network).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), self.config.sgd_lr, self.config.momentum)

    def train(self) -> None:
        self.model.train()
        for images, labels in self.loaders[0]:
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(images.to(self.device)), labels.to(self.device))
            loss.backward()
            self.optimizer.step()

    def evaluate(self) -> float:
        return utils.evaluate(self.model, self.loaders[1])[1]


class TensorPipeline:
    """An epoch as `utils.fit` makes it: augmentation, training, the weights' average, evaluation."""

    def __init__(self, images: int, tests: int, device: torch.device, config: Config | None = None,
                 train_loader: type[Loader] = Loader) -> None:
        self.config = config or Config(epochs=1)
        utils.reuse_memory()
        self.loaders = [loader(*(t[:number].clone() for t in load_mnist(train)), self.config, device, train)
                        for loader, train, number in ((train_loader, True, images), (Loader, False, tests))]
        self.model = Net(dropout=self.config.dropout).to(device, memory_format=utils.memory_format_for(device))
        self.optimizers = utils.make_optimizers(self.model, self.config, 100 * len(self.loaders[0]))
        self.ema_model = copy.deepcopy(self.model)

    def train(self) -> None:
        self.loaders[0].epoch = 1  # every turn has the same work: past the last epoch no image is augmented
        utils.train_epoch(self.model, self.loaders[0], self.optimizers, self.ema_model)

    def evaluate(self) -> float:
        return utils.evaluate(self.model, self.loaders[1])[1]


class CachedBatchLoader(Loader):
    """The same images in every step, made once: no data work at all."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not hasattr(self, "batch"):
            self.batch = next(super().__iter__())
        full, rest = divmod(len(self.labels), self.batch_size)
        return iter([self.batch] * full + [tuple(part[:rest] for part in self.batch)] * (rest > 0))


# "limit" makes the training steps of "ours" on a cached batch: the difference is the cost of loading the data.
PIPELINES = {"conventional": DataLoaderPipeline, "ours": TensorPipeline,
             "limit": partial(TensorPipeline, train_loader=CachedBatchLoader)}
KEPT = []  # in a process of `run_interleaved`: its pipeline


def clock(device: torch.device) -> float:
    """The time in seconds, when the device has done all it was asked for."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
    return time.perf_counter()


@contextmanager
def timed(seconds: list[float], device: torch.device) -> Iterator[None]:
    """Append the seconds that the block takes."""
    start = clock(device)
    yield
    seconds.append(clock(device) - start)


@contextmanager
def own_processes(names: Iterable[str]) -> Iterator[Callable]:
    """A function `call(name, act, *args)`, which returns act(*args) from a new process kept for that name.

    RuntimeError names a process that fails or dies. No process is left, even after an error or Ctrl-C.
    """
    pools = {name: ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) for name in names}

    def call(name: str, act: Callable, *args):
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a new process inherits it: Ctrl-C is for this one
        try:
            try:
                future = pools[name].submit(act, *args)
            finally:
                signal.signal(signal.SIGINT, handler)
            return future.result()
        except Exception as error:
            raise RuntimeError(f"the process of the pipeline {name!r} failed: see above why") from error

    try:
        yield call
        for pool in pools.values():
            pool.shutdown()
    finally:
        for process in multiprocessing.active_children():
            process.kill()
            process.join()


def make_pipeline(device: torch.device, name: str, options: dict) -> None:
    """Make a pipeline, which this process keeps."""
    KEPT.append(PIPELINES[name](**options, device=device))


def run_turn(device: torch.device) -> tuple[float, float]:
    """The seconds that this process's pipeline takes in training and in evaluation."""
    seconds = []
    for act in KEPT[0].train, KEPT[0].evaluate:
        with timed(seconds, device):
            act()
    return tuple(round(s, 4) for s in seconds)


def run_interleaved(jobs: dict[str, tuple[str, dict]], repetitions: int, device: torch.device, title: str) -> dict:
    """Run pipelines, given by name and options, in turn; return the seconds of each."""
    with own_processes(jobs) as call:
        for key, job in jobs.items():
            call(key, make_pipeline, device, *job)
        turns = [{key: call(key, run_turn, device) for key in jobs}
                 for _ in tqdm(range(repetitions + 1), desc=title, file=sys.stdout)][1:]  # the first turn warms up
        return {key: {"train": [turn[key][0] for turn in turns], "evaluate": [turn[key][1] for turn in turns]}
                for key in jobs}


def time_tenth_epochs(jobs: dict[str, tuple[str, dict]], *args) -> dict:
    """As `run_interleaved`, with turns that last a tenth of an epoch, given as seconds of whole epochs."""
    tenth = {"images": TRAINING // 10, "tests": TEST // 10}
    results = run_interleaved({key: (name, {**tenth, **options}) for key, (name, options) in jobs.items()}, *args)
    for result in results.values():
        result.update({part: [round(10 * seconds, 3) for seconds in result[part]] for part in ("train", "evaluate")})
    return results


def measure_pipelines(repetitions: int, device: torch.device) -> dict:
    """Seconds of an epoch of each pipeline, in training and evaluation."""
    return time_tenth_epochs({name: (name, {}) for name in PIPELINES}, repetitions, device, "pipelines")


def measure_workers(repetitions: int, device: torch.device) -> dict:
    """The conventional pipeline as it is, and with as many workers to read the images as PyTorch has threads."""
    workers = torch.get_num_threads()
    jobs = {"without": ("conventional", {}), "with": ("conventional", {"workers": workers})}
    return {"workers": workers, **time_tenth_epochs(jobs, repetitions, device, "workers")}


def measure_profile(repetitions: int, device: torch.device) -> dict:
    """Milliseconds (medians) of the parts of a step of ours."""
    config = Config(epochs=repetitions, no_aug_fraction=0)  # enough epochs for all steps, and all images augmented
    ours = TensorPipeline(TRAINING, 64, device, config)
    batches = (batch for _ in range(repetitions) for batch in ours.loaders[0])
    bfloat16 = training_precision(config, device) == "bfloat16"
    precision = torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16)
    parts = defaultdict(list)
    averages, values = utils.averaged_values(ours.ema_model), utils.averaged_values(ours.model)
    for step in tqdm(range(repetitions), desc="profile", file=sys.stdout):
        with timed(parts["data"], device):
            images, labels = next(batches)
        with timed(parts["forward"], device):
            with precision:
                logits = ours.model(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
        with timed(parts["backward"], device):
            ours.model.zero_grad()
            loss.backward()
        with timed(parts["optimisers"], device):
            for optimizer_or_scheduler in chain(*ours.optimizers):
                optimizer_or_scheduler.step()
        with timed(parts["average"], device):
            utils.update_ema(averages, values, step, config.ema_decay)
    return {"parts": {name: round(1000 * statistics.median(seconds), 4) for name, seconds in parts.items()}}


def time_to_accuracy(name: str, seed: int, device: torch.device) -> list[dict]:
    """Train the recipe of two epochs, or a conventional pipeline until it reaches the target, from scratch.

    Returns the accuracy in percent and the seconds, evaluation included, of each epoch.
    """
    utils.set_seed(seed)
    epochs = []

    def note(row: dict, *_) -> None:
        epochs.append({"accuracy": row["val_accuracy"], "seconds": round(row["seconds"], 2)})
        print(f"{name}, seed {seed}, epoch {len(epochs)}: {row['val_accuracy']:.2f} %, {row['seconds']:.1f} s",
              flush=True)

    if name == "two epochs":
        ours = TensorPipeline(TRAINING, TEST, device, replace(read_recipe(name)[0], seed=seed))
        utils.fit(ours.model, *ours.loaders, note)
        return epochs
    workers = torch.get_num_threads() if name == "conventional, workers" else 0
    pipeline = DataLoaderPipeline(TRAINING, TEST, device, workers)
    while len(epochs) < MAX_EPOCHS - 1 and (not epochs or epochs[-1]["accuracy"] < TARGET):
        start = time.perf_counter()
        pipeline.train()
        note({"val_accuracy": pipeline.evaluate(), "seconds": time.perf_counter() - start})
    return epochs


def measure_time_to_accuracy(_repetitions: int, device: torch.device) -> dict:
    """Three runs of two epochs, and between them one of the conventional pipeline without and one with workers."""
    results = defaultdict(list)
    for name in ("two epochs", "conventional", "two epochs", "conventional, workers", "two epochs"):
        with own_processes([name]) as call:
            results[name].append(call(name, time_to_accuracy, name, len(results[name]), device))
    return results


# How each part is measured, and in how many turns.
PARTS = {"pipelines": (measure_pipelines, 10), "workers": (measure_workers, 20), "profile": (measure_profile, 50),
         "time to accuracy": (measure_time_to_accuracy, 1)}


def ratio(over: list[float], under: list[float]) -> tuple[float, float, float]:
    """The median, the minimum and the maximum of the turn-by-turn quotients of two measurements."""
    quotients = [a / b for a, b in zip(over, under, strict=True)]
    return statistics.median(quotients), min(quotients), max(quotients)


def epoch_seconds(result: dict) -> list[float]:
    """Seconds of a whole epoch of a pipeline, evaluation included, in each turn."""
    return [t + e for t, e in zip(result["train"], result["evaluate"], strict=True)]


def seconds_to_accuracy(measured: dict, name: str) -> float:
    """The median of the seconds that the runs of a pipeline took, as `time_to_accuracy` makes them."""
    return statistics.median(sum(epoch["seconds"] for epoch in run) for run in measured["time to accuracy"][name])


def table(part: str, measured: dict) -> list[tuple]:
    """Rows of a name and of what was measured, sums or medians, below their headings."""
    if part == "profile":
        return [("part", "ms"), *measured["parts"].items()]
    if part == "time to accuracy":
        return [("run", "epochs", "seconds", "accuracy %")] + [
            (name, len(run), sum(epoch["seconds"] for epoch in run), run[-1]["accuracy"])
            for name, runs in measured.items() if name != "environment" for run in runs]
    seconds = {name: epoch_seconds(measured[name]) for name in (*PIPELINES, "without", "with") if name in measured}
    return [("pipeline", "s an epoch", "minimum", "maximum")] + [
        (name, statistics.median(values), min(values), max(values)) for name, values in seconds.items()]


def read_results(path: Path | None = None) -> dict[str, dict]:
    """The last measurement of each part, with its environment; the precision is that of training."""
    path = path or RESULTS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of: {', '.join(map(repr, PARTS))} (default: all)")
    parser.add_argument("--repetitions", type=int, help="turns of each measurement but the time to accuracy")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), default=utils.get_device().type,
                        help="default: the fastest")
    options = parser.parse_args()
    if options.repetitions is not None and options.repetitions < 1:
        parser.error(f"--repetitions is {options.repetitions}; a measurement needs 1 at least")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: there is no such part, but {', '.join(map(repr, PARTS))}")
    os.environ["TQDM_DISABLE"] = "1"  # in the processes: only this one draws a bar
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"  # says that it cleans up what a killed process has left
    device = torch.device(options.device)
    for part in options.parts or PARTS:
        measure, turns = PARTS[part]
        try:
            measured = measure(options.repetitions or turns, device)
        except KeyboardInterrupt:
            sys.exit(f"stopped; {part!r} and what follows it are not measured, and the results before are on record")
        precision = "float32" if part == "workers" else training_precision(Config(), device)
        environment = {**utils.describe_environment(device), "precision": precision}
        print(f"{part}, on {environment['device']}:")
        for name, *cells in table(part, measured):
            print(f"{name:24}", *(f"{cell:>12}" if isinstance(cell, str) else f"{cell:12.2f}" for cell in cells))
        text = json.dumps({**read_results(), part: {**measured, "environment": environment}}, indent=1) + "\n"
        utils.atomic_write(RESULTS, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
