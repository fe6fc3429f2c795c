"""The measurements of speed are of whole pipelines, and their summary computes what it says."""

import multiprocessing
import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import utils
from benchmarks import speed
from utils import ROOT, Config, Loader, evaluate


def pipeline(train, evaluate):
    return {"start": {"import": 1.0, "data and network": 0.5, "first step": 0.25}, "train": train,
            "evaluate": evaluate, "peak_memory": 500}


def test_ratios_are_those_of_turns():
    measured = {"conventional": pipeline([40.0, 80.0, 50.0], [10.0, 20.0, 10.0]),
                "ours": pipeline([9.0, 18.0, 10.0], [1.0, 2.0, 2.0]), "limit": pipeline([8.0, 18.0, 8.0], [1.0] * 3)}
    fast, near = speed.ratios(measured)
    assert "5.0 times as fast as a conventional one (5.0 to 5.0)" in fast
    assert "takes 112 % of the time of the limit (100 to 125 %)" in near
    rows = speed.describe_pipelines(measured)
    assert rows[2].split() == ["ours", "12.0", "10.0", "to", "20.0", "6,000", "5,000", "1.8", "500"]


def test_workers_are_compared_with_none():
    measured = {"workers": 2, "without": pipeline([40.0, 80.0], [10.0, 20.0]),
                "with": pipeline([30.0, 70.0], [10.0, 20.0])}
    (line,) = speed.describe_workers(measured)
    assert line.startswith("With 2 worker processes")
    assert "a conventional epoch takes 65.0 s instead of 75.0 s: 85 % (80 to 90 %)" in line


def test_growth_is_a_slope():
    def points(seconds):
        return {n: {"seconds": [seconds(int(n))] * 3, "peak_memory": 1} for n in ("10", "20", "80")}

    assert speed.growth(points(lambda n: 3 * n)) == pytest.approx(1)
    assert speed.growth(points(lambda n: n**2)) == pytest.approx(2)


def test_time_to_the_target():
    def epochs(*accuracies, seconds):
        return [{"accuracy": accuracy, "seconds": seconds} for accuracy in accuracies]

    measured = {"conventional": [epochs(99.1, 99.3, 99.41, seconds=60.0)],
                "express": [epochs(99.2, 99.4, seconds=5.0), epochs(99.2, 99.4, seconds=7.0)]}
    (line,) = speed.describe_target(measured)
    assert "first reaches 99.4 % in 3 epochs, which take 180 s" in line
    assert "ends at 99.40 % after 2 epochs and 12 s: 15.0 times as fast, with 1.5 times fewer epochs, each 10.0" in line
    measured["conventional"][0].pop()
    assert "does not reach 99.4 % in 2 epochs" in speed.describe_target(measured)[0]


@pytest.mark.parametrize("name", speed.PIPELINES)
def test_pipelines_train_and_evaluate(name, test_set):
    """All train the network, and score it alike."""
    raw = ROOT / "data" / "MNIST" / "raw"
    if name == "conventional" and not os.access(raw, os.W_OK) and len(list(raw.glob("*-ubyte"))) < 4:
        pytest.skip("torchvision's MNIST unpacks the archives into data/, which is read-only")
    torch.manual_seed(0)
    pipeline = speed.PIPELINES[name](images=300, tests=500)
    before = [p.detach().clone() for p in pipeline.model.parameters()]
    pipeline.train()
    assert not any(torch.equal(a, b) for a, b in zip(before, pipeline.model.parameters(), strict=True))
    images, labels = (t[:500] for t in test_set)
    loader = Loader(images, labels, pipeline.config, utils.get_device(), train=False)
    assert pipeline.evaluate() == evaluate(pipeline.model, loader)[1]


def test_limit_does_no_data_work():
    class Copies(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function in (torch.ops.aten.index.Tensor, torch.ops.aten.grid_sampler_2d.default)
            return function(*args, **(kwargs or {}))

    counts = []
    for name in ("ours", "limit"):
        made = speed.PIPELINES[name](images=256, tests=64, config=Config(epochs=1, batch_size=64, plain=0))
        with Copies() as copies:
            made.train()
        counts.append(copies.count)
    assert counts[0] > 8
    assert counts[1] <= 3


def test_limit_has_as_many_images():
    made = speed.PIPELINES["limit"](images=300, tests=64, config=Config(batch_size=128))
    steps = list(made.loaders[0])
    assert [len(labels) for _, labels in steps] == [len(images) for images, _ in steps] == [128, 128, 44]


def test_profile_has_every_part_and_layer():
    measured = speed.measure_profile(2)
    assert list(measured["parts"]) == ["data", "forward", "backward", "optimisers", "average"]
    assert len(measured["layers"]) == 32
    assert min(*measured["parts"].values(), *(ms for layer in measured["layers"].values() for ms in layer)) > 0
    assert len(speed.describe_profile(measured)) == 5 + 32


def test_pipelines_take_turns_in_processes_of_their_own(capfd):
    small = {"images": 128, "tests": 64}
    jobs = {"first": ("limit", small), "second": ("conventional", {**small, "workers": 1})}
    results = speed.take_turns(jobs, 2, "turns")
    assert list(results) == ["first", "second"]
    for result in results.values():
        assert len(result["train"]) == len(result["evaluate"]) == 2
        assert min(result["train"]) > 0
        assert set(result["start"]) == {"import", "data and network", "first step"}
    assert capfd.readouterr().err == ""
    assert os.environ.get("TQDM_DISABLE") is None


def test_pipeline_that_fails_takes_the_others_along(capfd):
    small = {"images": 128, "tests": 64}
    jobs = {"good": ("limit", small), "bad": ("limit", {**small, "width": -1})}
    with pytest.raises(RuntimeError, match="the process of the pipeline 'bad' ended before its turn"):
        speed.take_turns(jobs, 1, "turns")
    assert "negative dimension" in capfd.readouterr().err
    assert multiprocessing.active_children() == []
