"""Runs are recorded whole, selected and compared rightly; pipelines train."""

import json
import sys

import numpy as np
import pytest
import torch

import utils
from benchmarks import accuracy, robustness, speed
from utils import ROOT

CPU = torch.device("cpu")


def test_split_is_in_proportion_and_always_the_same(train_set):
    kept, held_out = accuracy.split_training(train_set[1])
    assert torch.equal(torch.cat([kept, held_out]).sort()[0], torch.arange(60_000)) and len(held_out) == 10_000
    shares = train_set[1][held_out].bincount() / train_set[1].bincount()
    assert torch.allclose(shares, torch.tensor(1 / 6), atol=1e-3)
    assert torch.equal(accuracy.split_training(train_set[1])[1], held_out)


def test_every_recipe_can_be_built():
    for recipe in accuracy.RECIPES:
        config, network = accuracy.read_recipe(recipe)
        assert config.epochs < utils.MAX_EPOCHS
        assert accuracy.build(**network)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_candidates_take_numbers_and_bare_words():
    config, network = accuracy.read_recipe("final, optimizer=sgd, dropout=0.5, width=8")
    assert (config.optimizer, config.dropout, network["width"]) == ("sgd", 0.5, 8)


def test_runs_are_recorded_whole_and_found_again(monkeypatch, tmp_path, train_set, test_set):
    small = {True: [t[:600] for t in train_set], False: [t[:500] for t in test_set]}
    monkeypatch.setattr(accuracy, "load_mnist", lambda train: small[train])
    monkeypatch.setattr(accuracy, "NETWORKS", tmp_path)
    path, recipe = tmp_path / "accuracy.jsonl", "final, epochs=1, batch_size=100"
    whole = accuracy.run(recipe, 7, False, CPU, keep=True)
    half = accuracy.run(recipe, 7, True, CPU)
    for record in whole, half, {**whole, "seed": 3}, {**whole, "precision": "another"}:
        accuracy.append_record(record, path)
    with path.open("a") as file:
        file.write('5\n{}\n{"half": ')
    records = accuracy.read_records(path)
    assert len(records) == 4
    where = accuracy.platform(whole)
    found = accuracy.select(records, recipe, on=where)
    assert [r["seed"] for r in found] == [3, 7] and found[1] == json.loads(json.dumps(whole))
    assert accuracy.select(records, recipe, split=True, on=where)[0]["train_images"] == 500
    assert accuracy.select(records, "final", on=where) == []
    _, run = utils.load_run(tmp_path / f"{recipe}-7.pt")
    assert run["history"][-1]["val_accuracy"] == whole["accuracy"][-1]
    assert whole["distorted"].keys() == {f"{name} {strength}" for name, strength in robustness.SAMPLE}


def record(seed, last, commit):
    return {"seed": seed, "accuracy": [50.0, last], "commit": commit}


def test_summaries_take_the_last_epoch_and_name_every_commit():
    summary = accuracy.summarise([record(0, 99.0, "a"), record(1, 99.2, "b"), record(2, 99.4, "a")])
    assert summary[:5] == pytest.approx((3, 99.2, 0.2, 99.0, 99.4)) and summary.commits == ["a", "b"]
    assert "a and b" in str(summary)
    with pytest.raises(ValueError):
        accuracy.summarise([])


def test_differences_are_paired_by_seed():
    runs = [record(seed, 99.0 + 0.1 * seed, "a") for seed in range(4)]
    others = [record(seed, 98.9 + 0.1 * seed + 0.01 * (seed % 2), "a") for seed in (3, 2, 1, 9)]
    mean, half = accuracy.paired_difference(runs, others, lambda run: run["accuracy"][-1])
    assert mean == pytest.approx((0.09 + 0.1 + 0.09) / 3) and half == pytest.approx(4.30 * 0.005774 / 3**0.5, rel=0.01)


@pytest.mark.parametrize("arguments", [["unknown"], ["final", "--split", "--keep"], ["without BatchNorm", "--keep"]])
def test_commands_that_would_train_in_vain_are_refused(monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["accuracy", *arguments])
    with pytest.raises(SystemExit):
        accuracy.parse_arguments()


def test_digits_in_mnists_form_keep_it(test_set):
    digits = test_set[0][:100].float() / 255
    again = torch.stack([robustness.mnist_form(digit[0].numpy()) for digit in digits])
    assert (again - digits).abs().mean() < 0.03


def test_mnist_c_is_read_in_its_public_layout(tmp_path, test_set):
    (tmp_path / "fog").mkdir()
    np.save(tmp_path / "fog" / "test_images.npy", test_set[0][:50, 0, :, :, None].numpy())
    np.save(tmp_path / "fog" / "test_labels.npy", test_set[1][:50].numpy())
    model, _ = utils.load_run(ROOT / "S6_MNIST.pt")
    assert robustness.accuracy(model, *robustness.read_mnist_c(tmp_path)["fog"]) > 95


@pytest.mark.parametrize("pipeline", [speed.Conventional, speed.Ours, speed.Limit])
def test_pipelines_train_and_evaluate(pipeline):
    made = pipeline(300, 500, CPU)
    before = [p.detach().clone() for p in made.model.parameters()]
    made.train()
    assert not any(torch.equal(a, b) for a, b in zip(before, made.model.parameters(), strict=True))
    assert 0 <= utils.evaluate(made.model, made.test_loader)[1] <= 100
