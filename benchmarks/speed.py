"""Measure how fast training is, beside a common pipeline and beside one without data work: python -m benchmarks.speed.

What is measured takes the place of the last measurement in results/speed.json. Compared pipelines run in turn, so that
a change of the machine's speed affects all alike.
"""

import argparse
import json
import statistics
import sys
import time
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
from utils import Config

RESULTS = Path(__file__).with_name("results") / "speed.json"


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


class Limit(Ours):
    """The steps of `Ours` on one batch that is there already: the difference is the cost of making the batches."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        batch = next(iter(self.train_loader))
        self.train_loader = [batch] * len(self.train_loader)


def now(device: torch.device) -> float:
    """The time, in seconds, when the device has done what it was asked for."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
    return time.perf_counter()


def measure_pipelines(device: torch.device, turns: int = 10) -> dict[str, list[float]]:
    """Seconds of an epoch, evaluation included, of each pipeline in each turn, which lasts a tenth of an epoch."""
    size = 6000, 1000, device
    workers = torch.get_num_threads()
    pipelines = {"conventional": Conventional(*size), f"conventional, {workers} workers": Conventional(*size, workers),
                 "ours": Ours(*size), "limit": Limit(*size)}
    results = {name: [] for name in pipelines}
    for turn in tqdm(range(turns + 1), desc="pipelines", file=sys.stdout):
        for name, pipeline in pipelines.items():
            start = now(device)
            pipeline.train()
            utils.evaluate(pipeline.model, pipeline.test_loader)
            if turn > 0:  # the first one warms up
                results[name].append(round(10 * (now(device) - start), 3))
    return results


def ratio(over: list[float], under: list[float]) -> tuple[float, float, float]:
    """The median, the minimum and the maximum of the turn-by-turn quotients of two measurements."""
    quotients = [a / b for a, b in zip(over, under, strict=True)]
    return statistics.median(quotients), min(quotients), max(quotients)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", default=utils.get_device().type, help="default: the fastest")
    device = torch.device(parser.parse_args().device)
    environment = {**utils.describe_environment(device), "commit": describe_commit(),
                   "precision": utils.training_precision(Config(), device)}
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    results["pipelines"] = {"measured": measure_pipelines(device), "environment": environment}
    RESULTS.write_text(json.dumps(results) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
