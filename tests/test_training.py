"""Training does what its recipe says, the same every time, and stops in good order."""

import math

import matplotlib
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

import utils
from model import Net
from utils import (
    Config,
    Loader,
    evaluate,
    fit,
    load_run,
    make_optimizer,
    plot_confusion,
    plot_digits,
    plot_history,
    predict,
    rate_factor,
    save_run,
    set_seed,
)

matplotlib.use("agg")
SHORT = Config(epochs=2, batch_size=50)


def train(loaders, config=SHORT, **options):
    set_seed(config.seed)
    model = Net(dropout=config.dropout)
    return model, fit(model, *loaders(config), **options)


def without_seconds(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


@pytest.mark.parametrize(("name", "value", "limit"), [
    ("epochs", 0, "from 1 to 19"), ("epochs", 20, "from 1 to 19"), ("epochs", 2.5, "int"), ("dropout", 1.0, "0.99"),
    ("dropout", -0.1, "from 0"), ("learning_rate", math.nan, "from 0 to 10"), ("batch_size", 0, "from 1"),
    ("rotation", "10", "float"), ("epochs", True, "int"), ("nesterov", 1, "bool"),
])
def test_config_refuses_what_is_out_of_range(name, value, limit):
    with pytest.raises(ValueError, match=f"Config.{name} is {value!r}") as error:
        Config(**{name: value})
    assert limit in str(error.value)


def test_epochs_from_the_environment(monkeypatch):
    monkeypatch.delenv("EPOCHS")
    assert utils.config_from_environment() == Config()
    monkeypatch.setenv("EPOCHS", "3")
    assert utils.config_from_environment() == Config(epochs=3)
    for text in ("0", "25", "abc", "1.5"):
        monkeypatch.setenv("EPOCHS", text)
        with pytest.raises(ValueError, match=f"EPOCHS={text} is not a whole number from 1 to 19"):
            utils.config_from_environment()


def test_same_seed_same_history(small_loaders):
    (first, history), (second, again) = train(small_loaders), train(small_loaders)
    assert without_seconds(history) == without_seconds(again)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    _, other = train(small_loaders, Config(epochs=2, batch_size=50, seed=1))
    assert without_seconds(other) != without_seconds(history)


def test_history_and_bar(small_loaders, capsys, monkeypatch):
    monkeypatch.setattr(utils, "tqdm", lambda **options: tqdm(**{**options, "mininterval": 0}))  # draws in every step
    model, history = train(small_loaders)
    assert [row["epoch"] for row in history] == [1, 2]
    assert set(history[0]) == {"epoch", "learning_rate", "train_loss", "train_accuracy", "val_loss", "val_accuracy",
                               "seconds"}
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert evaluate(model, small_loaders(SHORT)[1]) == (history[-1]["val_loss"], history[-1]["val_accuracy"])
    output = capsys.readouterr()
    assert output.err == ""
    lines = [line.split("\r")[-1] for line in output.out.splitlines()]
    assert [line[:10] for line in lines if " | validation" in line] == ["epoch  1/2", "epoch  2/2"]
    assert all(text in output.out for text in ("loss=", "accuracy=", " images/s"))


def test_steps_do_not_read_from_the_device(small_loaders, monkeypatch):
    """Nothing in a step makes the host wait for the device: an epoch reads as often in 60 steps as in 6."""
    monkeypatch.setattr(utils, "tqdm", lambda **options: tqdm(**{**options, "disable": True}))

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function is torch.ops.aten._local_scalar_dense.default
            return function(*args, **(kwargs or {}))

    counts = []
    for batch_size in (10, 100):
        loader, _ = small_loaders(Config(batch_size=batch_size))
        model = Net()
        optimizer, scheduler = make_optimizer(model, loader.config, len(loader))
        with Reads() as reads:
            utils.train_epoch(model, loader, optimizer, scheduler, [])
        counts.append(reads.count)
    assert counts[0] == counts[1] <= 3


def test_training_learns(small_loaders):
    config = Config(epochs=8, batch_size=20)
    _, history = train(small_loaders, config)
    assert history[-1]["val_accuracy"] > 85  # from 600 images


def test_evaluation_counts_exactly(small_loaders):
    _, loader = small_loaders(SHORT)
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits, (loss, accuracy) = predict(model, loader), evaluate(model, loader)
    right = sum(int(row.argmax()) == int(label) for row, label in zip(logits, loader.labels, strict=True))
    assert accuracy == 100 * right / 500
    picked = logits.log_softmax(1)[torch.arange(500), loader.labels]
    assert loss == pytest.approx(-picked.mean().item(), rel=1e-5)
    assert logits.dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_schedule_rises_and_falls_in_every_step():
    config, steps, rates = Config(warmup=0.25, learning_rate=0.2), 100, []
    optimizer, scheduler = make_optimizer(Net(), config, steps)
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    weights, others = zip(*rates, strict=True)
    assert weights == others
    assert weights[0] == pytest.approx(0.2 * config.first_rate)
    assert max(weights) == weights[25] == pytest.approx(0.2)
    assert list(weights[:26]) == sorted(weights[:26])
    assert list(weights[25:]) == sorted(weights[25:], reverse=True)
    assert scheduler.get_last_lr()[0] == pytest.approx(0.2 * config.last_rate)
    assert weights[-1] == pytest.approx(0.2 * rate_factor(0.99, config))


def test_schedule_steps_while_fitting(small_loaders):
    _, history = train(small_loaders)
    expected = [SHORT.learning_rate * rate_factor(share, SHORT) for share in (0.5, 1)]
    assert [row["learning_rate"] for row in history] == pytest.approx(expected)


def test_weight_decay_spares_biases_and_batchnorm():
    optimizer, _ = make_optimizer(Net(), Config(), 10)
    decayed, spared = optimizer.param_groups
    assert all(p.ndim == 4 for p in decayed["params"])
    assert (decayed["weight_decay"], spared["weight_decay"]) == (Config().weight_decay, 0)
    assert sum(p.numel() for group in (decayed, spared) for p in group["params"]) == 19_712


def test_average_of_weights():
    """Without decay the average is the last value; with decay it is the recursion written out."""
    value, average, last, expected = torch.tensor(1.0), torch.tensor(1.0), torch.tensor(1.0), 1.0
    for step in range(20):
        value += 1
        kept = min(0.5, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * value.item()
        utils.update_average([(average, value)], step, 0.5)
        utils.update_average([(last, value)], step, 0)
    assert average.item() == pytest.approx(expected, rel=1e-5)
    assert last.item() == value.item()


def test_validation_uses_averaged_weights(small_loaders):
    seen = []

    def spy(row, config, averaged):
        seen.append([p.clone() for p in averaged.parameters()])

    model, _ = train(small_loaders, on_epoch=spy)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), seen[-1], strict=True))
    plain, _ = train(small_loaders, Config(epochs=2, batch_size=50, average_decay=0))
    assert not torch.equal(next(plain.parameters()), seen[-1][0])


class Disturbed(Loader):
    """A training loader in which something happens at one step of one epoch."""

    def __iter__(self):
        for step, (images, labels) in enumerate(super().__iter__(), start=1):
            yield self.happens(images) if (self.epoch, step) == self.when else images, labels


def disturb(loader, when, happens):
    loader.__class__, loader.when, loader.happens = Disturbed, when, happens


def interrupt(images):
    raise KeyboardInterrupt


@pytest.mark.parametrize(("when", "finished"), [((1, 3), 0), ((2, 3), 1)])
def test_interrupt_keeps_what_there_is(small_loaders, capsys, when, finished):
    train_loader, val_loader = small_loaders(SHORT)
    disturb(train_loader, when, interrupt)
    set_seed(0)
    model = Net()
    start = evaluate(model, val_loader)
    history = fit(model, train_loader, val_loader)
    assert [row["epoch"] for row in history] == list(range(1, finished + 1))
    assert f"Interrupted in epoch {finished + 1} of 2" in capsys.readouterr().out
    assert evaluate(model, val_loader) != start
    assert not utils.requirements(model, history)[0][-1]
    plot_history(history)
    matplotlib.pyplot.close("all")


def test_loss_that_is_not_finite_stops_training(small_loaders):
    train_loader, val_loader = small_loaders(SHORT)
    disturb(train_loader, (2, 3), lambda images: images * math.nan)
    with pytest.raises(FloatingPointError, match=r"nan in epoch 2, step 3 of 12: .* than 0\.\d"):
        fit(Net(), train_loader, val_loader)


def test_weights_survive_saving(small_loaders, tmp_path):
    model, history = train(small_loaders)
    save_run(tmp_path / "run.pt", model, SHORT, history)
    loaded, config, run = load_run(tmp_path / "run.pt")
    assert config == SHORT
    assert run["history"] == history
    assert torch.equal(predict(loaded, small_loaders(SHORT)[1]), predict(model, small_loaders(SHORT)[1]))
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "old.txt"
    path.write_text("old")

    def write(part):
        part.write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left") as error:
        utils.write_whole(path, write)
    assert str(path) in str(error.value)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["old.txt"]


def test_figures(small_loaders, test_set):
    _, history = train(small_loaders)
    loss, accuracy, rate = plot_history(history).axes
    assert [len(line.get_xdata()) for line in rate.lines] == [2]
    assert list(loss.lines[1].get_ydata()) == [row["val_loss"] for row in history]
    assert any(set(line.get_ydata()) == {99.4} for line in accuracy.lines)
    assert all(axis.get_xlabel() and axis.get_ylabel() for axis in (loss, accuracy, rate))

    confusion = plot_confusion(torch.tensor([1, 1, 2]), torch.tensor([1, 7, 2])).axes[0]
    assert sorted((text.get_position(), text.get_text()) for text in confusion.texts) == [
        ((1, 1), "1"), ((2, 2), "1"), ((7, 1), "1")]

    digits = plot_digits(test_set[0][:12], [str(int(label)) for label in test_set[1][:12]])
    assert [axis.get_title() for axis in digits.axes[:12]] == [str(int(label)) for label in test_set[1][:12]]
    assert len(digits.axes) == 20
    matplotlib.pyplot.close("all")
