"""The records of many runs are made, kept, selected and summarised as they should be."""

import functools
import json
import multiprocessing
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import pytest
import torch
from torch import nn

from benchmarks import accuracy
from model import IMAGE_SHAPE, Net, count_parameters


def record(seed, last=99.5, recipe="final", precision="float32", train_images=60_000, device="CPU (x)", **changes):
    config, network = accuracy.read_recipe(recipe)
    settings = {**asdict(config), **network, "precision": precision, **changes}
    del settings["seed"]
    return {"recipe": recipe, "settings": settings, "seed": seed, "train_images": train_images, "seconds": 1.0,
            "test_accuracy": [98.0, last], "device": device}


def test_selection_takes_the_latest_run_of_a_seed_and_pools_no_two_places():
    records = [record(1), record(0, 99.6), record(2, muon_lr=0.5), record(3, train_images=50_000), record(1, 99.7),
               record(4, recipe="baseline"), record(5, recipe="final, dropout=0.01"), record(1, device="CUDA (x)"),
               record(6, precision="bfloat16"), record(0, 99.1, precision="bfloat16")]
    runs = accuracy.select(records, "final", 60_000)
    assert [(r["seed"], r["test_accuracy"][-1]) for r in runs] == [(0, 99.6), (1, 99.7), (5, 99.5)]
    assert accuracy.summarise(runs) == pytest.approx((3, 99.6, 0.1, 99.5, 99.7))
    assert [r["seed"] for r in accuracy.select(records, "final", 60_000, "CPU, bfloat16")] == [0, 6]
    assert [r["seed"] for r in accuracy.select(records, "final", 60_000, "CUDA, float32")] == [1]


def test_two_writers_lose_no_run_not_even_after_a_torn_line(tmp_path, capsys):
    path = tmp_path / "records.jsonl"
    assert accuracy.read_records(path) == []
    path.write_text(json.dumps(record(0)) + "\n" + json.dumps(record(1))[:50])  # killed in the middle of a line
    accuracy.append_record(record(2), path)
    with multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn").Pool(2) as pool:
        pool.map(functools.partial(accuracy.append_record, path=path), map(record, range(3, 103)), chunksize=1)
    assert sorted(r["seed"] for r in accuracy.read_records(path)) == [0, *range(2, 103)]
    assert "line 2: not a whole record" in capsys.readouterr().err


def test_split_is_fixed_stratified_and_whole(train_set):
    labels = train_set[1]
    kept, held_out = accuracy.split_training(labels)
    assert (len(kept), len(held_out)) == (50_000, 10_000)
    assert torch.equal(torch.cat([kept, held_out]).sort().values, torch.arange(60_000))
    assert (labels[held_out].bincount() - labels.bincount() / 6).abs().max() <= 1
    assert torch.equal(held_out, accuracy.split_training(labels)[1])


@pytest.mark.parametrize("recipe", accuracy.RECIPES)
def test_every_recipe_builds_its_network(recipe):
    config, network = accuracy.read_recipe(recipe)
    model = accuracy.build(**network)
    assert model(torch.rand(4, *IMAGE_SHAPE)).shape == (4, 10)
    changed = count_parameters(model) - count_parameters(Net(network["width"]))
    assert changed == {"without BatchNorm": -288, "fully connected for GAP": 2_510}.get(recipe, 0)
    assert model.stage1[0][3].p == config.dropout
    expected = {"without BatchNorm": (nn.ReLU, nn.Identity), "BatchNorm before ReLU": (nn.BatchNorm2d, nn.ReLU)}
    assert (type(model.stage1[0][1]), type(model.stage1[0][2])) == expected.get(recipe, (nn.ReLU, nn.BatchNorm2d))


@pytest.mark.parametrize("options", [
    ["finl"], *(["final", "--set", text] for text in (
        "dropout", "dropout=high", "dropout=2", "droput=0.1", "seed=5", 'network="none"', "width=-3", "width=true")),
    *(["final", option, value] for option, value in (
        ("--seeds", "0"), ("--first-seed", "-1"), ("--first-seed", str(2**31)), ("--processes", "0"))),
])
def test_wrong_options_are_named(options, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["accuracy", *options])
    with pytest.raises(SystemExit, match="2"):
        accuracy.main()
    assert options[-1].split("=")[0].strip("-") in capsys.readouterr().err


def test_failed_run_fails_the_command_which_then_goes_on_from_there(monkeypatch, tmp_path):
    made, path = [], tmp_path / "records.jsonl"

    def run(recipe, seed, *_):
        made.append(seed)
        return record(seed, recipe=recipe) if seed != 1 or len(made) > 3 else 1 / 0

    for name, value in {
            "run": run, "RECORDS": path, "ProcessPoolExecutor": lambda *_: ThreadPoolExecutor(1),
            "append_record": functools.partial(accuracy.append_record, path=path),
            "read_records": functools.partial(accuracy.read_records, path=path)}.items():
        monkeypatch.setattr(accuracy, name, value)
    monkeypatch.setattr(accuracy.signal, "signal", lambda *_: None)
    monkeypatch.setenv("TQDM_DISABLE", "")  # so that what the command sets is undone
    monkeypatch.setattr("sys.argv", ["accuracy", "final", "--set", 'precision="float32"', "--device", "cpu"])
    with pytest.raises(SystemExit, match="1 of 3 runs failed"):
        accuracy.main()
    accuracy.main()
    assert made == [0, 1, 2, 1]
    monkeypatch.setattr(accuracy, "RECORDS", path / "none")
    monkeypatch.setattr("sys.argv", [*sys.argv, "--seeds", "9"])
    with pytest.raises(SystemExit, match="cannot be written"):
        accuracy.main()
    assert len(made) == 4  # what cannot be recorded is not trained


def test_run_is_recorded_whole(monkeypatch, train_set, test_set):
    monkeypatch.setitem(accuracy.RECIPES, "tiny", {"epochs": 2, "batch_size": 100})
    small = {True: [t[:1200] for t in train_set], False: [t[:500] for t in test_set]}
    monkeypatch.setattr(accuracy, "load_mnist", lambda train: small[train])
    for split, images, scored in ((True, 1000, "validation_accuracy"), (False, 1200, "test_accuracy")):
        done = accuracy.run("tiny", 7, split, "cpu", keep=False)
        assert (done["seed"], done["train_images"], done["parameters"], len(done[scored])) == (7, images, 19_712, 2)
        assert accuracy.select([json.loads(json.dumps(done))], "tiny", images) == [done]
        assert len(done["distorted"]) == len(accuracy.SAMPLE)
