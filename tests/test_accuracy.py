"""The records of many runs are kept, read and summarised as they should be."""

import json

import pytest
import torch
from torch import nn

from benchmarks import accuracy
from model import IMAGE_SHAPE, Net, count_parameters

SETTINGS = accuracy.settings_of("chosen")


def record(seed, last, recipe="chosen", train_images=60_000, **changes):
    return {"recipe": recipe, "settings": SETTINGS, "seed": seed, "train_images": train_images, "parameters": 19_712,
            "test_accuracy": [98.0, 99.0, last], "seconds": 1.0, "device": "cpu", "versions": {}, **changes}


def test_summary_of_a_small_record():
    result = accuracy.summarise([record(0, 99.6), record(1, 99.5), record(2, 99.7)])
    assert result == pytest.approx((3, 99.6, 0.1, 99.5, 99.7))
    assert accuracy.sampling_error(99.6) == pytest.approx(0.126, abs=0.001)


def test_selection_takes_one_run_a_seed_of_the_present_recipe():
    stale = {**SETTINGS, "learning_rate": 0.5}
    records = [record(1, 99.6), record(0, 99.5), record(2, 99.9, settings=stale), record(3, 99.9, train_images=50_000),
               record(4, 99.9, settings=accuracy.settings_of("original")), record(1, 99.7, "candidate")]
    runs = accuracy.select(records, "chosen", 60_000)
    assert [(r["seed"], r["test_accuracy"][-1]) for r in runs] == [(0, 99.5), (1, 99.7)]


def test_damaged_line_loses_no_other_run(tmp_path, capsys):
    path = tmp_path / "records.jsonl"
    for seed in range(2):
        accuracy.append_record(record(seed, 99.5), path)
    with path.open("a") as file:
        file.write(json.dumps(record(2, 99.5))[:50])  # killed in the middle of a line
    assert [r["seed"] for r in accuracy.read_records(path)] == [0, 1]
    assert "line 3: not a whole record" in capsys.readouterr().err
    accuracy.append_record(record(3, 99.5), path)
    assert [r["seed"] for r in accuracy.read_records(path)] == [0, 1, 3]
    assert accuracy.read_records(tmp_path / "none.jsonl") == []


def test_split_is_fixed_stratified_and_whole(train_set):
    labels = train_set[1]
    kept, held_out = accuracy.split_training(labels)
    assert (len(kept), len(held_out)) == (50_000, 10_000)
    assert torch.equal(torch.cat([kept, held_out]).sort().values, torch.arange(60_000))
    assert (labels[held_out].bincount() - labels.bincount() / 6).abs().max() <= 1
    assert torch.equal(held_out, accuracy.split_training(labels)[1])


@pytest.mark.parametrize("recipe", accuracy.RECIPES)
def test_every_recipe_builds_its_network(recipe):
    settings = accuracy.settings_of(recipe)
    model = accuracy.build(settings)
    assert model(torch.rand(4, *IMAGE_SHAPE)).shape == (4, 10)
    network = Net(int(recipe.removeprefix("width "))) if recipe.startswith("width ") else Net()
    changed = count_parameters(model) - count_parameters(network)
    assert changed == {"without BatchNorm": -288, "fully connected for GAP": 2_510}.get(recipe, 0)
    assert model.stage1[0][3].p == settings["dropout"] == accuracy.config_of(settings).dropout
    expected = {"without BatchNorm": (nn.ReLU, nn.Identity), "BatchNorm before ReLU": (nn.BatchNorm2d, nn.ReLU)}
    assert (type(model.stage1[0][1]), type(model.stage1[0][2])) == expected.get(recipe, (nn.ReLU, nn.BatchNorm2d))


def test_frontier_groups_runs_by_size_and_by_epochs():
    sizes = {"width 6": 2_952, "width 16": 19_712, "10 epochs": 19_712, "express": 19_712, "chosen": 19_712}
    runs = [record(seed, 99.0, name, parameters=parameters, settings=accuracy.settings_of(name))
            for name, parameters in sizes.items() for seed in (1, 0)]
    widths, epochs = accuracy.frontier(runs)
    assert [(size, [(r["recipe"], r["seed"]) for r in group]) for size, group in widths.items()] == [
        (2_952, [("width 6", 0), ("width 6", 1)]), (19_712, [("width 16", 0), ("width 16", 1)])]
    assert [(n, group[0]["recipe"]) for n, group in epochs.items()] == [
        (2, "express"), (10, "10 epochs"), (19, "width 16")]


def test_candidates_change_a_recipe():
    settings = accuracy.settings_of("original, dropout=0.25, muon=true")
    assert (settings["dropout"], settings["muon"], settings["learning_rate"]) == (0.25, True, 0.01)
    with pytest.raises(ValueError, match=r"Config\.dropout is 2"):
        accuracy.settings_of("chosen, dropout=2")


@pytest.mark.parametrize(("options", "message"), [
    (["chosn"], "'chosn' is no recipe"),
    (["chosen", "--set", "dropout"], "--set dropout: write FIELD=VALUE with a value in JSON"),
    (["chosen", "--set", "dropout=high"], "--set dropout=high: write FIELD=VALUE"),
    (["chosen", "--set", "droput=0.1"], "droput"),
    (["chosen", "--set", "seed=5"], "--first-seed and --seeds choose seeds"),
    (["chosen", "--set", 'network="none"'], "network is 'none'; it takes None, 'without BatchNorm'"),
    (["chosen", "--set", "width=-3"], "width is -3; it takes a whole number from 1"),
    (["chosen", "--seeds", "0"], "--seeds is 0; it must be at least 1"),
    (["chosen", "--first-seed", "-1"], "--first-seed is -1; it must be at least 0"),
    (["chosen", "--processes", "0"], "--processes is 0; it must be at least 1"),
])
def test_wrong_options_are_named(options, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["accuracy.py", *options])
    with pytest.raises(SystemExit, match="2"):
        accuracy.main()
    assert message in capsys.readouterr().err


def test_a_run_is_recorded_whole(monkeypatch, train_set, test_set, capsys):
    monkeypatch.setitem(accuracy.RECIPES, "tiny", {"epochs": 2, "batch_size": 100})
    small = {True: [t[:1200] for t in train_set], False: [t[:500] for t in test_set]}
    monkeypatch.setattr(accuracy, "load_mnist", lambda train: small[train])
    done = accuracy.run("tiny", 0, split=True)
    assert (done["recipe"], done["seed"], done["train_images"], done["parameters"]) == ("tiny", 0, 1000, 19_712)
    assert len(done["test_accuracy"]) == len(done["validation_accuracy"]) == 2
    assert done["settings"]["epochs"] == 2
    assert json.loads(json.dumps(done)) == done
    assert "tiny, seed 0: epoch 2/2" in capsys.readouterr().out
