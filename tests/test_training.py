"""Training does what its recipe says, the same every time, and stops in good order; runs are kept whole."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import utils
from mnist import Loader, augment, normalise
from model import Net
from utils import Config, evaluate, fit, load_run, make_optimizers, save_run, set_seed

SHORT = Config(epochs=2, batch_size=50)


@pytest.fixture(scope="module")
def loaders(train_set, test_set):
    """A function that makes a training loader of 600 real images and an evaluation loader of 500."""

    def make(config):
        transform = partial(augment, config=config)
        return (Loader(train_set[0][:600], train_set[1][:600], config.batch_size, shuffle=True, transform=transform),
                Loader(test_set[0][:500], test_set[1][:500], 200))

    return make


def train(loaders, config):
    set_seed(config.seed)
    model = Net()
    return model, fit(model, *loaders(config), config)


def same(first, second):
    """Whether two models hold the same numbers, the statistics of BatchNorm included."""
    return all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


@pytest.mark.parametrize("changes", [{"epochs": 0}, {"optimizer": "adam"}, {"precision": 16}])
def test_config_refuses_what_would_train_something_else(changes):
    with pytest.raises(AssertionError):
        Config(**changes)


def test_loop_by_hand_ends_in_the_weights_of_fit(loaders):
    config = Config(epochs=2, batch_size=50, precision="float32", plain_epochs=1)
    expected, history = train(loaders, config)
    assert [row["epoch"] for row in history] == [1, 2] and history[1]["train_loss"] < history[0]["train_loss"]
    loader, val_loader = loaders(config)
    assert evaluate(expected, val_loader) == (history[1]["val_loss"], history[1]["val_accuracy"])
    set_seed(0)
    model = Net().to(memory_format=torch.channels_last)
    optimizers = make_optimizers(model, config, config.epochs * len(loader))
    for epoch in range(2):
        if epoch == 1:
            loader.transform = None
        for images, labels in loader:
            model.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            for optimizer, schedule in optimizers:
                optimizer.step()
                schedule.step()
    assert same(model, expected)


@pytest.mark.parametrize(("optimizer", "reached"), [("muon", 80), ("sgd", 40)])
def test_training_learns_and_decays_weights_but_no_biases(loaders, optimizer, reached):
    config = Config(epochs=3, batch_size=20, optimizer=optimizer, precision="float32")
    model, history = train(loaders, config)
    assert history[-1]["val_accuracy"] > reached  # from 600 images; by chance 10
    groups = [o.param_groups[0] for o, _ in make_optimizers(model, config, 10)]
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [
        (getattr(config, f"{optimizer}_lr"), config.weight_decay), (config.sgd_lr, 0)]
    assert {p.ndim for p in groups[0]["params"]} == {4}
    assert sum(p.numel() for group in groups for p in group["params"]) == 19_712


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_is_for_the_layers_of_training_alone(test_set, precision):
    config = Config(epochs=1, precision=precision)
    loader = Loader(test_set[0][:50], test_set[1][:50], 50)
    model, seen = Net(), set()
    model.head[0].register_forward_hook(lambda layer, _, output: seen.add((layer.training, output.dtype)))
    fit(model, loader, loader, config)
    assert seen == {(True, getattr(torch, precision)), (False, torch.float32)}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_probabilities_serve_as_targets_and_non_digits_count_in_no_accuracy():
    logits = torch.eye(10)[:4]
    labels = torch.tensor([0, 1, 3, 3])
    assert [n.item() for n in utils.count_right(logits, labels)] == [3, 4]
    targets = F.one_hot(labels, 10).float()
    targets[1] = 0.1
    assert [n.item() for n in utils.count_right(logits, targets)] == [2, 3]


def test_evaluation_counts_exactly_from_any_loader(train_set):
    images, labels = normalise(train_set[0][:600].float() / 255), train_set[1][:600]
    model = Net().eval()
    before = copy.deepcopy(model)
    with torch.no_grad():
        logits = model(images)
    correct = (logits.argmax(1) == labels).sum().item()
    for loader in Loader(train_set[0][:600], labels, 64, shuffle=True), DataLoader(TensorDataset(images, labels), 64):
        loss, accuracy = evaluate(model.train(), loader)
        assert accuracy == 100 * correct / 600
        assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
    assert same(model, before)


def test_learning_rate_falls_linearly_and_ends_in_an_error():
    optimizers = make_optimizers(Net(), Config(muon_lr=0.2, sgd_lr=0.4, end_factor=0.1), steps=10)
    rates = [[optimizer.param_groups[0]["lr"] for optimizer, _ in optimizers]]
    for _ in range(10):
        for optimizer, schedule in optimizers:
            optimizer.step()
            schedule.step()
        rates.append([optimizer.param_groups[0]["lr"] for optimizer, _ in optimizers])
    assert np.allclose(rates, np.linspace([0.2, 0.4], [0.02, 0.04], 11))
    with pytest.raises(ValueError):
        optimizers[0][1].step()


def test_interrupt_keeps_what_there_is(loaders):
    steps = []

    def interrupt(layer, _inputs, _output):
        steps.append(layer.training)
        if steps.count(True) == 15:
            raise KeyboardInterrupt

    loader, val_loader = loaders(SHORT)
    model = Net()
    start, transform = copy.deepcopy(model), loader.transform
    model.head.register_forward_hook(interrupt)
    assert len(fit(model, loader, val_loader, SHORT)) == 1
    assert not model.training and not same(model, start) and loader.transform is transform


class Recurrent(nn.Module):
    """A layer that returns a tuple, and a Dropout that is defined but not used."""

    def __init__(self):
        super().__init__()
        self.rows, self.last, self.unused = nn.LSTM(28, 20, batch_first=True), nn.Linear(20, 10), nn.Dropout(0.5)

    def forward(self, images):
        return self.last(self.rows(images[:, 0])[0][:, -1])


ROW, POOR = {"val_accuracy": 99.4}, {"val_accuracy": 99.39}


@pytest.mark.parametrize(("model", "history", "expected"), [
    (Net(), [POOR, ROW] * 9, [1, 1, 1, 1, 1, 1]),
    (Net(), [ROW] * 20, [1, 1, 0, 1, 1, 1]),
    (Net(dropout=0), [], [0, 1, 0, 1, 0, 1]),
    (Net(32).requires_grad_(False), [ROW, POOR], [0, 0, 1, 1, 1, 1]),
    (Recurrent(), [ROW], [1, 1, 1, 0, 0, 0]),
])
def test_assignment_is_checked(model, history, expected):
    assert [met for *_, met in utils.check_assignment(model, history)] == expected


def test_calibration_compares_confidence_and_accuracy():
    confidence, correct = torch.tensor([0.95, 0.85, 1.0, 0.3]), torch.tensor([True, False, True, False])
    rows, error = utils.calibration(confidence, correct, bins=5)
    assert rows == [pytest.approx((0.3, 0, 1)), pytest.approx((2.8 / 3, 2 / 3, 3))]
    assert error == pytest.approx(100 * (0.3 + 0.8) / 4)


@pytest.mark.parametrize("make", [Net, lambda: Net(dropout=0.3), lambda: nn.DataParallel(Net(8)),
                                  lambda: torch.compile(Net())])
def test_what_is_saved_can_be_loaded(tmp_path, make):
    model = make()
    history = [{"epoch": np.int64(1), "val_accuracy": np.float32(99.5)}]
    save_run(tmp_path / "run.pt", model, SHORT, history)
    loaded, run = load_run(tmp_path / "run.pt")
    assert same(loaded, model) and not loaded.training
    assert run["history"] == [{"epoch": 1, "val_accuracy": 99.5}] and Config(**run["config"]) == SHORT
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    model = Net()
    model.head[1] = nn.Sequential(nn.Flatten(), nn.Linear(250, 10))
    with pytest.raises(RuntimeError):
        save_run(tmp_path / "run.pt", model, SHORT, [])
    assert not list(tmp_path.iterdir())


def test_damaged_file_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(FileNotFoundError):
        load_run(path)
    save_run(path, Net(), SHORT, [])
    whole = path.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 96193\n"
    for content in whole[:5000], b"", pointer, pickle.dumps({}, 2), pickle.dumps(print, 2):
        path.write_bytes(content)
        with pytest.raises(ValueError) as error:
            load_run(path)
        assert error.value.__suppress_context__  # what PyTorch says of it would only confuse
