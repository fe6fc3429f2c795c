"""Measure how fast training is: beside a common pipeline, beside one without data work, and to 99.4 %.

    python -m benchmarks.speed                      # everything, an hour or more on two cores
    python -m benchmarks.speed pipelines profile    # some parts of it, a few minutes

What is measured takes the place of the last measurement in results/speed.json. Compared pipelines run in turn, so that
a change of the machine's speed affects all alike.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import MNIST
from tqdm import tqdm

import utils
from benchmarks.accuracy import describe_commit, read_recipe
from mnist import DATA, MEAN, STD, Loader, augment, load_mnist
from model import Net
from utils import MAX_EPOCHS, TARGET, Config

RESULTS = Path(__file__).with_name("results") / "speed.json"
TRAINING, TEST = 60_000, 10_000  # images of an epoch and of its evaluation


class Conventional:
    """A common pipeline: a DataLoader reads and rotates one PIL image at a time; float32, SGD at a constant rate."""

    def __init__(self, images: int, tests: int, device: torch.device, workers: int = 0) -> None:
        config, _ = read_recipe("baseline")
        plain = [transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))]
        rotated = [transforms.RandomRotation(config.degrees), *plain]
        options = {"batch_size": config.batch_size, "num_workers": workers, "persistent_workers": workers > 0}
        training = Subset(MNIST(DATA, True, transforms.Compose(rotated), download=True), range(images))
        test = Subset(MNIST(DATA, False, transforms.Compose(plain), download=True), range(tests))
        self.train_loader = DataLoader(training, shuffle=True, **options)
        self.test_loader = DataLoader(test, **options)
        self.device = device
        self.model = Net(dropout=config.dropout).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), config.sgd_lr, config.momentum)

    def train(self) -> None:
        self.model.train()
        for images, labels in self.train_loader:
            loss = F.cross_entropy(self.model(images.to(self.device)), labels.to(self.device))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def evaluate(self) -> float:
        return utils.evaluate(self.model, self.test_loader)[1]


class Ours:
    """Training and evaluation as `utils.fit` does them."""

    def __init__(self, images: int, tests: int, device: torch.device) -> None:
        self.config = Config()
        training = [tensor[:images] for tensor in load_mnist(train=True)]
        test = [tensor[:tests] for tensor in load_mnist(train=False)]
        self.train_loader = Loader(*training, self.config.batch_size, shuffle=True, device=device,
                                   transform=partial(augment, config=self.config))
        self.test_loader = Loader(*test, 200, device=device)
        self.model = Net(dropout=self.config.dropout).to(device)
        utils.make_fast(self.model)
        self.optimizers = utils.make_optimizers(self.model, self.config, steps=10**6)

    def train(self) -> None:
        utils.train_epoch(self.model, self.train_loader, self.optimizers, self.config)

    def evaluate(self) -> float:
        return utils.evaluate(self.model, self.test_loader)[1]


class Limit(Ours):
    """The steps of `Ours` on one batch that is there already: the difference is the cost of making the batches."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        batch = next(iter(self.train_loader))
        self.train_loader = [batch] * len(self.train_loader)


def seconds_of(act: Callable, device: torch.device) -> float:
    """The seconds until the device has done what it was asked for."""
    start = time.perf_counter()
    act()
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
    return time.perf_counter() - start


def measure_pipelines(device: torch.device, turns: int = 10) -> dict:
    """Seconds of an epoch, evaluation included, of each pipeline in each turn, which lasts a tenth of an epoch."""
    size = TRAINING // 10, TEST // 10, device
    workers = torch.get_num_threads()
    pipelines = {"conventional": Conventional(*size), f"conventional, {workers} workers": Conventional(*size, workers),
                 "ours": Ours(*size), "limit": Limit(*size)}
    results = {name: [] for name in pipelines}
    for turn in tqdm(range(turns + 1), desc="pipelines", file=sys.stdout):
        for name, pipeline in pipelines.items():
            seconds = seconds_of(pipeline.train, device) + seconds_of(pipeline.evaluate, device)
            if turn > 0:  # the first one warms up
                results[name].append(round(10 * seconds, 3))
    return results


def measure_profile(device: torch.device, steps: int = 60) -> dict:
    """Milliseconds (medians) of the parts of a training step of ours."""
    ours = Ours(TRAINING, 64, device)
    batches = iter(ours.train_loader)
    ours.model.train()
    bfloat16 = utils.training_precision(ours.config, device) == "bfloat16"
    now = {}

    def data() -> None:
        now["images"], now["labels"] = next(batches)

    def forward() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
            logits = ours.model(now["images"])
        now["loss"] = F.cross_entropy(logits.float(), now["labels"])

    def backward() -> None:
        ours.model.zero_grad()
        now["loss"].backward()

    def step() -> None:
        for optimizer, schedule in ours.optimizers:
            optimizer.step()
            schedule.step()

    results = {"data": [], "forward": [], "backward": [], "step": []}
    for number in tqdm(range(steps), desc="profile", file=sys.stdout):
        for part in data, forward, backward, step:
            milliseconds = 1000 * seconds_of(part, device)
            if number >= 10:  # the first ones warm up
                results[part.__name__].append(milliseconds)
    return {name: round(statistics.median(values), 3) for name, values in results.items()}


def measure_time_to_accuracy(device: torch.device, runs: int = 3) -> dict:
    """Accuracy (percent) and seconds of each epoch, in several runs of the conventional pipeline up to the target."""
    results = []
    for seed in range(runs):
        utils.set_seed(seed)
        pipeline, epochs = Conventional(TRAINING, TEST, device), []
        while len(epochs) < MAX_EPOCHS - 1 and (not epochs or epochs[-1]["accuracy"] < TARGET):
            start = time.perf_counter()
            pipeline.train()
            accuracy = pipeline.evaluate()
            epochs.append({"accuracy": accuracy, "seconds": round(time.perf_counter() - start, 2)})
            print(f"run {seed + 1}, epoch {len(epochs)}: {accuracy:.2f} %", flush=True)
        results.append(epochs)
    return {"conventional": results}


PARTS = {"pipelines": measure_pipelines, "profile": measure_profile, "time to accuracy": measure_time_to_accuracy}


def ratio(over: list[float], under: list[float]) -> tuple[float, float, float]:
    """The median, the minimum and the maximum of the turn-by-turn quotients of two measurements."""
    quotients = [a / b for a, b in zip(over, under, strict=True)]
    return statistics.median(quotients), min(quotients), max(quotients)


def read_results(path: Path = RESULTS) -> dict[str, dict]:
    """The last measurement of each part, with its environment."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of: {', '.join(map(repr, PARTS))} (default: all)")
    parser.add_argument("--device", default=utils.get_device().type, help="default: the fastest")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}, but {', '.join(map(repr, PARTS))}")
    device = torch.device(options.device)
    for part in options.parts or PARTS:
        environment = {**utils.describe_environment(device), "commit": describe_commit(),
                       "precision": utils.training_precision(Config(), device)}
        measured = PARTS[part](device)
        results = {**read_results(), part: {"measured": measured, "environment": environment}}
        RESULTS.write_text(json.dumps(results) + "\n", encoding="utf-8")
        print(f"{part}: recorded in {RESULTS.name}")


if __name__ == "__main__":
    main()
