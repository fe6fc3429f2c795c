"""Measure how fast training is: beside the conventional pipeline, beside the hardware's limit, and to 99.4 %.

    python benchmarks/speed.py                      # everything, half an hour or more on two cores
    python benchmarks/speed.py pipelines profile    # some parts of it, a few minutes

What is measured takes the place of the last measurement in results/speed.json. Compared pipelines take turns, each in a
process of its own, so that a change of the machine's speed affects all alike.
"""

import argparse
import json
import math
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

start = time.perf_counter()  # the import of PyTorch is a part of the start-up

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils.data import DataLoader, Subset  # noqa: E402
from torchvision import transforms  # noqa: E402
from torchvision.datasets import MNIST  # noqa: E402
from tqdm import tqdm  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import utils  # noqa: E402
from benchmarks.accuracy import config_of, settings_of  # noqa: E402
from benchmarks.evidence import environment  # noqa: E402
from benchmarks.figures import plot_scaling, save_figure  # noqa: E402
from checkpoint import write_whole  # noqa: E402
from model import WIDTH, Net  # noqa: E402
from utils import MAX_EPOCHS, MEAN, STD, TARGET, Config, Loader  # noqa: E402

NO_BARS = mock.patch.dict(os.environ, TQDM_DISABLE="1")  # for the time in which processes start: they inherit it
IMPORT_SECONDS = time.perf_counter() - start
RESULTS = ROOT / "benchmarks" / "results" / "speed.json"
TRAINING, TEST = 60_000, 10_000  # images of an epoch and of its evaluation
SIZES = {  # what `measure_scaling` varies, and the options of `Ours` that go with each size
    "batch size": {n: {"images": 6_000, "config": Config(epochs=1, batch_size=n)} for n in (16, 32, 64, 128, 256, 512)},
    "training images": {n: {"images": n} for n in (15_000, 30_000, 60_000)},
    "width": {n: {"images": 6_000, "width": n} for n in (8, 16, 32, 64)},
}


class Conventional:
    """A common pipeline: a DataLoader reads one PIL image at a time, by default in the main process; float32, SGD."""

    def __init__(self, images: int, tests: int, workers: int = 0) -> None:
        self.config = config_of(settings_of("original"))
        normalise = [transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))]
        rotate = transforms.RandomRotation((-self.config.rotation, self.config.rotation))
        self.loaders = []
        for train, number, steps in (True, images, [rotate, *normalise]), (False, tests, normalise):
            dataset = Subset(MNIST(ROOT / "data", train, transforms.Compose(steps), download=True), range(number))
            self.loaders.append(DataLoader(dataset, self.config.batch_size, shuffle=train, num_workers=workers,
                                           persistent_workers=workers > 0))
        self.device = utils.get_device()
        self.model = Net(dropout=self.config.dropout).to(self.device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), self.config.learning_rate, self.config.momentum)

    def train(self) -> None:
        self.model.train()
        for images, labels in self.loaders[0]:
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(images.to(self.device)), labels.to(self.device))
            loss.backward()
            self.optimizer.step()

    def evaluate(self) -> float:
        self.model.eval()
        with torch.no_grad():
            right = sum((self.model(images.to(self.device)).argmax(1).cpu() == labels).sum().item()
                        for images, labels in self.loaders[1])
        return 100 * right / len(self.loaders[1].dataset)


class Ours:
    """An epoch as `utils.fit` makes it: augmentation, training, the weights' average, evaluation."""

    training_loader = Loader

    def __init__(self, images: int, tests: int, config: Config | None = None, width: int = WIDTH) -> None:
        self.config, device = config or Config(epochs=1), utils.get_device()
        utils.reuse_memory()
        self.loaders = [loader(*(t[:number].clone() for t in utils.load_mnist(train)), self.config, device, train)
                        for loader, train, number in ((self.training_loader, True, images), (Loader, False, tests))]
        self.model = Net(width, self.config.dropout).to(device, memory_format=utils.layout(device))
        self.optimizers = utils.make_optimizers(self.model, self.config, 100 * len(self.loaders[0]))
        self.average = [(value.clone(), value) for value in self.model.state_dict().values()]

    def train(self) -> None:
        utils.train_epoch(self.model, self.loaders[0], self.optimizers, self.average)

    def evaluate(self) -> float:
        return utils.evaluate(self.model, self.loaders[1])[1]


class Resident(Loader):
    """The same images in every step, made once: no data work at all."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not hasattr(self, "batch"):
            self.batch = next(super().__iter__())
        full, rest = divmod(len(self.labels), self.batch_size)
        return iter([self.batch] * full + [tuple(part[:rest] for part in self.batch)] * (rest > 0))


class Limit(Ours):
    """The optimiser's steps of ours, without data work."""

    training_loader = Resident


PIPELINES = {"conventional": Conventional, "ours": Ours, "limit": Limit}


def clock() -> float:
    """The time in seconds, when the device has done all it was asked for."""
    device = utils.get_device()
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
    return time.perf_counter()


def timed(act: Callable) -> float:
    """The seconds that a call takes."""
    start = clock()
    act()
    return clock() - start


def peak_memory() -> int | None:
    """The most memory, in MiB, that this process has held so far; None where there is no Linux to tell it."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), None)


def serve(name: str, options: dict, threads: int, pipe) -> None:
    """Run a pipeline in a process of its own: a turn whenever asked for one, until told to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one, and ends it
    torch.set_num_threads(threads)
    made = []
    data_seconds = timed(lambda: made.append(PIPELINES[name](**options)))
    pipeline = made[0]
    first = PIPELINES[name](**{**options, "images": pipeline.config.batch_size, "tests": 64})
    pipe.send({"import": IMPORT_SECONDS, "data and network": data_seconds, "first step": timed(first.train)})
    del first
    while pipe.recv():
        pipe.send({"train": timed(pipeline.train), "evaluate": timed(pipeline.evaluate)})
    pipe.send(peak_memory())


def take_turns(jobs: dict[str, tuple[str, dict]], repetitions: int, title: str) -> dict[str, dict]:
    """Let pipelines, given by name and options, run in turn; return the start-up, the seconds and the peak of each."""
    context, processes, results = multiprocessing.get_context("spawn"), {}, {}
    try:
        for key, (name, options) in jobs.items():
            pipe, other = context.Pipe()
            process = context.Process(target=serve, args=(name, options, torch.get_num_threads(), other))
            with NO_BARS:
                process.start()
            processes[key] = pipe, process
            other.close()  # so that a process that dies is noticed
            results[key] = {"start": pipe.recv(), "train": [], "evaluate": []}
        for turn in tqdm(range(repetitions + 1), desc=title, file=sys.stdout):
            for key, (pipe, _) in processes.items():
                pipe.send(True)
                seconds = pipe.recv()
                if turn:  # the first turn warms up
                    for part, value in seconds.items():
                        results[key][part].append(round(value, 4))
        for key, (pipe, process) in processes.items():
            pipe.send(False)
            results[key]["peak_memory"] = pipe.recv()
            process.join()
    except EOFError as error:
        raise RuntimeError(f"the process of the pipeline {key!r} ended before its turn: see above why") from error
    finally:
        for _, process in processes.values():
            process.kill()  # what an error or Ctrl-C has left
            process.join()
    return results


def take_tenths(jobs: dict[str, tuple[str, dict]], repetitions: int, title: str) -> dict[str, dict]:
    """The results of turns that last a tenth of an epoch, as seconds of whole epochs."""
    tenth = {"images": TRAINING // 10, "tests": TEST // 10}
    jobs = {key: (name, {**tenth, **options}) for key, (name, options) in jobs.items()}
    results = take_turns(jobs, repetitions, title)
    for result in results.values():
        for part in "train", "evaluate":
            result[part] = [10 * seconds for seconds in result[part]]
    return results


def measure_pipelines(repetitions: int) -> dict:
    """Seconds of an epoch of each pipeline, in training and evaluation."""
    return take_tenths({name: (name, {}) for name in PIPELINES}, repetitions, "pipelines")


def measure_workers(repetitions: int) -> dict:
    """The conventional pipeline as it is, and with as many workers to read the images as PyTorch has threads."""
    jobs = {"without": ("conventional", {}), "with": ("conventional", {"workers": torch.get_num_threads()})}
    return {"workers": torch.get_num_threads(), **take_tenths(jobs, repetitions, "workers")}


def measure_profile(repetitions: int) -> dict:
    """Milliseconds (medians) of the parts of a step of ours, and of each layer run by itself on the step's images."""
    ours = Ours(images=Config().batch_size * repetitions, tests=64, config=Config(epochs=1, plain=0))
    device, batches = next(ours.model.parameters()).device, iter(ours.loaders[0])
    precision = torch.autocast(device.type, dtype=torch.bfloat16, enabled=utils.has_bfloat16(device))
    chain = [layer for layer in ours.model.modules() if not list(layer.children())]
    layers = {f"{type(layer).__name__}-{number}": ([], []) for number, layer in enumerate(chain, start=1)}
    parts = {name: [] for name in ("data", "forward", "backward", "optimisers", "average")}
    for step in tqdm(range(repetitions), desc="profile", file=sys.stdout):
        stamps = [clock()]
        images, labels = next(batches)
        stamps.append(clock())
        with precision:
            logits = ours.model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=ours.config.label_smoothing)
        stamps.append(clock())
        ours.model.zero_grad()
        loss.backward()
        stamps.append(clock())
        for optimizer, scheduler in ours.optimizers:
            optimizer.step()
            scheduler.step()
        stamps.append(clock())
        utils.update_average(ours.average, step, ours.config.average_decay)
        stamps.append(clock())
        for seconds, before, after in zip(parts.values(), stamps[:-1], stamps[1:], strict=True):
            seconds.append(after - before)
        for layer, (forward, backward) in zip(chain, layers.values(), strict=True):  # the network is one chain
            images = images.detach().requires_grad_(layer is not chain[0])
            given = images.clone()  # since ReLU works in place
            start = clock()
            with precision:
                images = layer(given)
            forward.append(clock() - start)
            gradient = torch.ones_like(images)
            backward.append(timed(lambda output=images, gradient=gradient: output.backward(gradient)))

    def median(seconds: list[float]) -> float:
        return round(1000 * statistics.median(seconds), 4)

    return {"parts": {name: median(seconds) for name, seconds in parts.items()},
            "layers": {name: [median(forward), median(backward)] for name, (forward, backward) in layers.items()}}


def measure_scaling(repetitions: int) -> dict:
    """Seconds and peak memory of a training epoch against batch size, number of images and width of the network."""
    results = {}
    for title, sizes in SIZES.items():
        jobs = {str(n): ("ours", {"tests": 64, **options}) for n, options in sizes.items()}
        results[title] = {n: {"seconds": turn["train"], "peak_memory": turn["peak_memory"]}
                          for n, turn in take_turns(jobs, repetitions, title).items()}
    return results


def reach_target(name: str, threads: int) -> list[dict]:
    """Train from scratch, the conventional pipeline until it reaches the target; accuracy and seconds of each epoch."""
    torch.set_num_threads(threads)
    utils.set_seed(0)
    epochs = []

    def note(accuracy: float, seconds: float) -> None:
        epochs.append({"accuracy": accuracy, "seconds": round(seconds, 2)})
        print(f"{name}, epoch {len(epochs)}: {accuracy:.2f} %, {seconds:.1f} s", flush=True)

    if name == "conventional":
        pipeline = Conventional(TRAINING, TEST)
        while len(epochs) < MAX_EPOCHS - 1 and (not epochs or epochs[-1]["accuracy"] < TARGET):
            start = time.perf_counter()
            pipeline.train()
            note(pipeline.evaluate(), time.perf_counter() - start)
    else:
        ours = Ours(TRAINING, TEST, config_of(settings_of(name)))
        utils.fit(ours.model, *ours.loaders, lambda row, *_: note(row["val_accuracy"], row["seconds"]))
    return epochs


def measure_target(_repetitions: int) -> dict:
    """The express recipe before and after a run of the conventional pipeline, one after another."""
    results = {"conventional": [], "express": []}
    for name in ("express", "conventional", "express"):
        with NO_BARS, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            results[name].append(pool.submit(reach_target, name, torch.get_num_threads()).result())
    return results


def ratio(over: list[float], under: list[float]) -> tuple[float, float, float]:
    """The median and the range of the quotients of two measurements that took turns."""
    quotients = [a / b for a, b in zip(over, under, strict=True)]
    return statistics.median(quotients), min(quotients), max(quotients)


def epoch_seconds(result: dict) -> list[float]:
    """Seconds of a whole epoch, evaluation included, in each repetition."""
    return [t + e for t, e in zip(result["train"], result["evaluate"], strict=True)]


def growth(group: dict) -> float:
    """The slope of seconds per epoch against size, both as logarithms: 1 is growth in proportion."""
    seconds = [math.log(statistics.median(point["seconds"])) for point in group.values()]
    return statistics.linear_regression([math.log(int(n)) for n in group], seconds).slope


def describe_pipelines(measured: dict) -> list[str]:
    """A table of the pipelines, and their ratios turn by turn."""
    lines = [f"{'pipeline':14}{'epoch (s)':>10}{'range':>16}{'training/s':>12}{'evaluation/s':>14}{'start (s)':>11}"
             f"{'peak (MiB)':>12}"]
    for name in PIPELINES:
        result = measured[name]
        epoch, train, evaluate = (statistics.median(seconds) for seconds in
                                  (epoch_seconds(result), result["train"], result["evaluate"]))
        span = f"{min(epoch_seconds(result)):.1f} to {max(epoch_seconds(result)):.1f}"
        lines.append(f"{name:14}{epoch:10.1f}{span:>16}{TRAINING / train:12,.0f}{TEST / evaluate:14,.0f}"
                     f"{sum(result['start'].values()):11.1f}{result['peak_memory'] or 'unknown':12}")
    return [*lines, *ratios(measured)]


def ratios(measured: dict) -> list[str]:
    """How ours compares with the conventional pipeline and with the limit, as medians and ranges over the turns."""
    quick = ratio(epoch_seconds(measured["conventional"]), epoch_seconds(measured["ours"]))
    near = (100 * quotient for quotient in ratio(measured["ours"]["train"], measured["limit"]["train"]))
    return ["An epoch of ours is {:.1f} times as fast as a conventional one ({:.1f} to {:.1f}).".format(*quick),
            "Training takes {:.0f} % of the time of the limit ({:.0f} to {:.0f} %).".format(*near)]


def describe_workers(measured: dict) -> list[str]:
    """What worker processes make of a conventional epoch."""
    seconds = [epoch_seconds(measured[key]) for key in ("with", "without")]
    share = (100 * quotient for quotient in ratio(*seconds))
    return ["With {} worker processes to read the images, a conventional epoch takes {:.1f} s instead of {:.1f} s: "
            "{:.0f} % ({:.0f} to {:.0f} %).".format(measured["workers"], *map(statistics.median, seconds), *share)]


def describe_profile(measured: dict) -> list[str]:
    """Milliseconds of each part of a step, and of each layer."""
    whole = sum(measured["parts"].values())
    parts = [f"{name:16}{ms:8.2f} ms {ms / whole:7.1%}" for name, ms in measured["parts"].items()]
    layers = [f"{name:16}{forward:8.2f} ms forward {backward:8.2f} ms backward"
              for name, (forward, backward) in measured["layers"].items()]
    return [*parts, *layers]


def describe_scaling(measured: dict) -> list[str]:
    """Seconds against size, with the slope."""
    lines = []
    for title in SIZES:
        points = [f"{n}: {statistics.median(point['seconds']):.2f} s" for n, point in measured[title].items()]
        lines.append(f"{title}: {', '.join(points)}; slope {growth(measured[title]):.2f}")
    return lines


def describe_target(measured: dict) -> list[str]:
    """The time to the target, and what the express recipe takes beside it; whether each of them is at the target."""
    slow, fast = (statistics.median(sum(epoch["seconds"] for epoch in run) for run in measured[name])
                  for name in ("conventional", "express"))
    run, short = measured["conventional"][0], measured["express"][0]
    reached = "first reaches" if run[-1]["accuracy"] >= TARGET else "does not reach"
    ends = " and ".join(sorted({f"{run[-1]['accuracy']:.2f} %" for run in measured["express"]}))
    fewer = len(run) / len(short)
    return [f"The conventional pipeline {reached} {TARGET} % in {len(run)} epochs, which take {slow:.0f} s; the "
            f"express recipe ends at {ends} after {len(short)} epochs and {fast:.0f} s: {slow / fast:.1f} times as "
            f"fast, with {fewer:.1f} times fewer epochs, each {slow / fast / fewer:.1f} times as fast."]


PARTS = {  # how each part is measured, in how many turns, and how it is told
    "pipelines": (measure_pipelines, 10, describe_pipelines),
    "workers": (measure_workers, 20, describe_workers),
    "profile": (measure_profile, 50, describe_profile),
    "scaling": (measure_scaling, 3, describe_scaling),
    "target": (measure_target, 1, describe_target),
}


def report(results: dict[str, dict], *parts: str) -> str:
    """What was measured, in all parts or the given ones, as text."""
    return "\n".join(line for part in parts or PARTS if part in results for line in PARTS[part][2](results[part]))


def read_results() -> dict[str, dict]:
    """The last measurement of each part, with the environment it was made in."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--repetitions", type=int, help="turns of each measurement but that of the target")
    options = parser.parse_args()
    if options.repetitions is not None and options.repetitions < 1:
        parser.error(f"--repetitions is {options.repetitions}; a measurement needs 1 at least")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: there is no such part, but {', '.join(PARTS)}")
    for part in options.parts or PARTS:
        measure, turns, _ = PARTS[part]
        try:
            measured = {**measure(options.repetitions or turns), "environment": environment(utils.get_device())}
        except KeyboardInterrupt:
            sys.exit(f"stopped; {part} and what follows it are not measured, and the results before are on record")
        text = json.dumps({**read_results(), part: measured}, indent=1) + "\n"
        write_whole(RESULTS, lambda path, text=text: path.write_text(text, encoding="utf-8"))
        print(report({part: measured}))
    if "scaling" in (options.parts or PARTS):
        groups = {title: read_results()["scaling"][title] for title in SIZES}
        save_figure(plot_scaling({title: (group, growth(group)) for title, group in groups.items()}), "scaling.png")


if __name__ == "__main__":
    main()
