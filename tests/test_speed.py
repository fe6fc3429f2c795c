"""What is measured are whole pipelines in processes of their own, and what is computed from it is right."""

import math
import multiprocessing
import os
import signal
import sys
from unittest import mock

import pytest
import torch

import utils
from benchmarks import speed
from utils import ROOT, Config, Loader

CPU, SMALL = torch.device("cpu"), {"images": 128, "tests": 64}


def test_quotients():
    slow = {"train": [40.0, 80.0, 54.0], "evaluate": [10.0, 20.0, 6.0]}
    assert speed.ratio(speed.epoch_seconds(slow), [10.0] * 3) == (6, 5, 10)


@pytest.mark.parametrize("part", speed.PARTS)
def test_record_has_every_part(part):
    measured = speed.read_results()[part]
    assert measured["environment"]["precision"] in ("float32", "bfloat16")
    numbers = [cell for row in speed.table(part, measured) for cell in row if not isinstance(cell, str)]
    assert numbers and all(math.isfinite(number) for number in numbers)


@pytest.mark.parametrize("name", speed.PIPELINES)
def test_pipelines_train_and_evaluate(name, test_set):
    raw = ROOT / "data" / "MNIST" / "raw"
    if name == "conventional" and not os.access(raw, os.W_OK) and len(list(raw.glob("*-ubyte"))) < 4:
        pytest.skip("torchvision's MNIST unpacks the archives into data/, which is read-only")
    pipeline = speed.PIPELINES[name](images=300, tests=500, device=CPU)
    before = [p.detach().clone() for p in pipeline.model.parameters()]
    pipeline.train()
    assert not any(torch.equal(a, b) for a, b in zip(before, pipeline.model.parameters(), strict=True))
    loader = Loader(*(t[:500] for t in test_set), pipeline.config, CPU, train=False)
    assert pipeline.evaluate() == utils.evaluate(pipeline.model, loader)[1]


@pytest.mark.parametrize("name, calls", [("ours", 10), ("limit", 1)])
def test_every_turn_loads_as_much_data_and_the_limit_none(name, calls):
    config = Config(epochs=1, batch_size=64, no_aug_fraction=0)
    pipeline = speed.PIPELINES[name](300, 64, CPU, config)
    with mock.patch.object(utils, "augment", wraps=utils.augment) as augment:
        for _turn in range(2):
            pipeline.train()
    assert augment.call_count == calls  # the limit makes its batch in the turn that warms up
    assert [len(labels) for _, labels in pipeline.loaders[0]] == [64] * 4 + [44]


def test_profile_has_every_part():
    measured = speed.measure_profile(2, CPU)
    assert list(measured["parts"]) == ["data", "forward", "backward", "optimisers", "average"]


def test_pipelines_run_in_processes_of_their_own(capfd):
    jobs = {"first": ("limit", SMALL), "second": ("conventional", {**SMALL, "workers": 1})}
    for result in speed.run_interleaved(jobs, 2, CPU, "turns").values():
        assert len(result["train"]) == len(result["evaluate"]) == 2  # the turn before these warmed up
    assert capfd.readouterr().err == ""
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("act, args", [(os._exit, [1]), (speed.make_pipeline, [CPU, "limit", {**SMALL, "unknown": 1}])])
def test_process_that_dies_or_fails_is_named(act, args):
    with pytest.raises(RuntimeError, match="'bad'"), speed.own_processes(["good", "bad"]) as call:
        call("good", os.getpid)
        call("bad", act, *args)
    assert multiprocessing.active_children() == []


def test_time_to_accuracy_counts_epochs(monkeypatch):
    for name, value in ("TRAINING", 600), ("TEST", 500), ("TARGET", 0):
        monkeypatch.setattr(speed, name, value)
    for name, number in ("two epochs", 2), ("conventional", 1), ("conventional, workers", 1):
        epochs = speed.time_to_accuracy(name, 0, CPU)
        assert len(epochs) == number  # the conventional ones stop once they are at the target
        assert all(epoch["seconds"] > 0 for epoch in epochs)


def test_interrupt_keeps_what_is_on_record(tmp_path, monkeypatch):
    workers = speed.read_results()["workers"]
    monkeypatch.setattr(speed, "PARTS", {"workers": (lambda *_: workers, 1),
                                         "profile": (lambda *_: signal.raise_signal(signal.SIGINT), 1)})
    monkeypatch.setattr(speed, "RESULTS", tmp_path / "speed.json")
    monkeypatch.setattr(sys, "argv", ["speed", "--device", "cpu"])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    speed.RESULTS.write_text('{"profile": "old"}')
    with pytest.raises(SystemExit, match="stopped"):
        speed.main()
    results = speed.read_results()
    assert results["profile"] == "old" and results["workers"]["with"] == workers["with"]
