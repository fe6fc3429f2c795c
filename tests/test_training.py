"""Training does what its recipe says, the same every time, and stops in good order."""

import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import matplotlib
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

import utils
from benchmarks.evidence import requirements, save_run
from benchmarks.figures import plot_history
from checkpoint import write_whole
from model import IMAGE_SHAPE, Net
from muon import Muon
from utils import (
    ROOT,
    Config,
    Loader,
    evaluate,
    fit,
    load_run,
    make_optimizers,
    predict,
    rate_factor,
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
    ("rotation", "10", "float"), ("epochs", True, "int"), ("muon", 1, "bool"),
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
    for text in ("0", str(Config().epochs + 1), "abc", "1.5"):
        monkeypatch.setenv("EPOCHS", text)
        with pytest.raises(ValueError, match=f"EPOCHS={text} is not a whole number from 1 to {Config().epochs}"):
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
    """No step fetches a number from the device: an epoch does so as often in 60 steps as in 6."""
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
        optimizers = make_optimizers(model, loader.config, len(loader))
        with Reads() as reads:
            utils.train_epoch(model, loader, optimizers, [])
        counts.append(reads.count)
    assert counts[0] == counts[1] <= 3


def test_data_are_made_on_the_device(train_set, monkeypatch):
    """Whatever a loader makes is on the device of its images: here on one that only knows shapes."""
    monkeypatch.setattr(torch, "Generator", lambda device: SimpleNamespace(manual_seed=lambda seed: None))
    config, device = Config(epochs=1, batch_size=64, plain=0), torch.device("meta")
    loader = Loader(train_set[0][:100], train_set[1][:100], config, device, train=True)
    batches = [(images.device.type, tuple(images.shape), labels.device.type) for images, labels in loader]
    assert batches == [("meta", (64, *IMAGE_SHAPE), "meta"), ("meta", (36, *IMAGE_SHAPE), "meta")]


def test_training_learns(small_loaders):
    config = Config(epochs=8, batch_size=20)
    _, history = train(small_loaders, config)
    assert history[-1]["val_accuracy"] > 85  # from 600 images


@pytest.mark.parametrize(("device", "features", "expected"), [
    ("cpu", {"avx512_bf16": True}, True), ("cpu", {"avx512_bf16": False}, False), ("cpu", {}, False),
    ("mps", {"avx512_bf16": True}, False),
])
def test_bfloat16_needs_instructions_for_it(device, features, expected, monkeypatch):
    monkeypatch.setattr(utils, "CPU_FEATURES", features)
    assert utils.has_bfloat16(torch.device(device)) is expected


def test_bfloat16_is_for_the_layers_of_training_alone(small_loaders, monkeypatch):
    """As on a processor that has it; others do so slowly. The loss, the weights and evaluation keep float32."""
    monkeypatch.setattr(utils, "has_bfloat16", lambda device: True)
    loaders, seen, cross_entropy = small_loaders(SHORT), set(), F.cross_entropy

    def float32_loss(logits, *args, **options):
        assert logits.dtype == torch.float32
        return cross_entropy(logits, *args, **options)

    monkeypatch.setattr(F, "cross_entropy", float32_loss)
    set_seed(0)
    model = Net()
    for layer in (model.stage1[1][0], model.head[0]):
        layer.register_forward_hook(lambda layer, images, output: seen.add((layer.training, output.dtype)))
    history = fit(model, *loaders)
    predict(model, loaders[1])
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert history[-1]["val_accuracy"] > 60


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
    config, steps, rates = Config(warmup=0.25, learning_rate=0.2, other_rate=0.4), 100, []
    model = Net()
    model(torch.rand(4, *IMAGE_SHAPE)).sum().backward()
    (first, first_schedule), (second, second_schedule) = make_optimizers(model, config, steps)
    for _ in range(steps):
        rates.append(first.param_groups[0]["lr"])
        assert second.param_groups[0]["lr"] == pytest.approx(2 * rates[-1])
        for optimizer in (first, second):
            optimizer.step()
        for schedule in (first_schedule, second_schedule):
            schedule.step()
    assert rates[0] == pytest.approx(0.2 * config.first_rate)
    assert max(rates) == rates[25] == pytest.approx(0.2)
    assert rates[:26] == sorted(rates[:26])
    assert rates[25:] == sorted(rates[25:], reverse=True)
    assert first_schedule.get_last_lr()[0] == pytest.approx(0.2 * config.last_rate)
    assert rates[-1] == pytest.approx(0.2 * rate_factor(0.99, config))


def test_schedule_is_followed_while_fitting(small_loaders, monkeypatch):
    made = []

    def remember(*args, **options):
        made.extend(make_optimizers(*args, **options))
        return made

    monkeypatch.setattr(utils, "make_optimizers", remember)
    rates = []
    _, history = train(small_loaders, on_epoch=lambda *_: rates.append([s.get_last_lr()[0] for _, s in made]))
    factors = [rate_factor(share, SHORT) for share in (0.5, 1)]
    assert [row["learning_rate"] for row in history] == pytest.approx([SHORT.learning_rate * f for f in factors])
    for (first, second), factor in zip(rates, factors, strict=True):
        assert (first, second) == pytest.approx((SHORT.learning_rate * factor, SHORT.other_rate * factor))


@pytest.mark.parametrize("muon", [True, False])
def test_weight_decay_spares_biases_and_batchnorm(muon):
    config = Config(muon=muon)
    (first, _), (second, _) = make_optimizers(Net(), config, 10)
    assert type(first).__name__ == ("Muon" if muon else "SGD")
    assert (first.param_groups[0]["weight_decay"], second.param_groups[0]["weight_decay"]) == (config.weight_decay, 0)
    weights, others = (optimizer.param_groups[0]["params"] for optimizer in (first, second))
    assert {p.ndim for p in weights} == {4}
    assert sum(p.numel() for p in [*weights, *others]) == 19_712


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_muon_makes_the_update_orthogonal(memory_format):
    """One step of Muon moves a convolution's weight, in either layout, by a matrix whose singular values are alike."""
    torch.manual_seed(0)
    model = Net().to(memory_format=memory_format)
    layer = model.stage2[0][0]
    (muon, _), _ = make_optimizers(model, Config(weight_decay=0, first_rate=1, warmup=0), 10)
    before = layer.weight.detach().clone()
    model(torch.rand(20, *IMAGE_SHAPE)).logsumexp(1).sum().backward()
    muon.step()
    sizes = torch.linalg.svdvals((layer.weight.detach() - before).flatten(1)) / Config().learning_rate
    assert layer.weight.is_contiguous(memory_format=memory_format)
    assert sizes.max() < 1.3
    assert sizes.min() > 0.5
    gradient = torch.linalg.svdvals(layer.weight.grad.flatten(1))
    assert gradient.max() > 20 * gradient.min()  # quite unlike it


def test_muon_agrees_with_the_one_of_pytorch():
    """Ten steps on matrices of all shapes that the network has; PyTorch's rounds to bfloat16."""
    torch.manual_seed(0)
    layers = [p for p in Net().parameters() if p.ndim > 1]
    gradients = [[torch.randn_like(p) for p in layers] for _ in range(10)]
    options = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    ours, theirs = ([p.detach().clone() for p in layers] for _ in range(2))
    matrices = [torch.nn.Parameter(p.flatten(1)) for p in theirs]
    first, second = Muon(ours, **options), torch.optim.Muon(matrices, **options)
    for step in gradients:
        for weight, matrix, gradient in zip(ours, matrices, step, strict=True):
            weight.grad, matrix.grad = gradient, gradient.flatten(1)
        first.step()
        second.step()
    assert set(first.state) <= set(ours)  # then a checkpoint's state is brought to their device
    for weight, matrix, before in zip(ours, matrices, layers, strict=True):
        moved = (weight - before).norm()
        assert moved > 0.1
        assert (weight.flatten(1) - matrix).norm() < 0.05 * moved


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


def interrupt(*_):
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
    assert f"Interrupted after {finished} of 2 epochs" in capsys.readouterr().out
    assert evaluate(model, val_loader) != start
    assert not requirements(model, history)[0][-1]
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


def test_unfit_run_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(ValueError, match=r"run\.pt does not hold a run .*No such file"):
        load_run(path)
    save_run(path, Net(width=8), SHORT, [])
    with pytest.raises(ValueError, match=r"size mismatch .* make it anew with 'python benchmarks/notebook.py'"):
        load_run(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"run\.pt does not hold a run"):
        load_run(path)


KILLED = """
import os, signal, sys, torch
from utils import Config, Loader, fit, load_mnist, print_epoch, set_seed
from model import Net

def stop(row, config, model):
    print_epoch(row, config, model)
    if row["epoch"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)

config = Config(epochs=4, batch_size=50, dropout=0.3)
images, labels = load_mnist(train=True)
loaders = [Loader(images[:600], labels[:600], config, torch.device("cpu"), train) for train in (True, False)]
set_seed(0)
fit(Net(dropout=0.3), *loaders, stop, checkpoint=sys.argv[1])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_killed_run_goes_on_as_if_nothing_had_happened(train_set, tmp_path, capsys):
    path, config = tmp_path / "run.checkpoint", Config(epochs=4, batch_size=50, dropout=0.3)

    def run(checkpoint):
        images, labels = train_set[0][:600], train_set[1][:600]
        loaders = [Loader(images, labels, config, torch.device("cpu"), train) for train in (True, False)]
        set_seed(0)
        model = Net(dropout=0.3)
        return model, fit(model, *loaders, checkpoint=checkpoint)

    expected, whole = run(None)
    killed = subprocess.run([sys.executable, "-c", KILLED, path], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL
    assert path.exists()
    capsys.readouterr()
    model, resumed = run(path)
    assert capsys.readouterr().out.lstrip().startswith("epoch  3/4")
    assert without_seconds(resumed) == without_seconds(whole)
    assert all(torch.equal(a, b) for a, b in
               zip(model.state_dict().values(), expected.state_dict().values(), strict=True))
    assert list(tmp_path.iterdir()) == []


def test_unfit_checkpoint_is_not_used(small_loaders, tmp_path, capsys):
    path = tmp_path / "run.checkpoint"

    train(small_loaders, on_epoch=interrupt, checkpoint=path)
    with pytest.raises(ValueError, match=r"run\.checkpoint is no checkpoint of .* \(epochs was 2 and is 3\): name an"):
        train(small_loaders, Config(epochs=3, batch_size=50), checkpoint=path)
    with pytest.raises(ValueError, match=r"run\.checkpoint is no checkpoint of .* \(.*size mismatch .*\): name an"):
        fit(Net(width=8), *small_loaders(SHORT), checkpoint=path)
    with pytest.raises(ValueError, match=r"S6_MNIST\.pt is no checkpoint of this recipe and network"):
        train(small_loaders, checkpoint=shutil.copy(ROOT / "S6_MNIST.pt", tmp_path))
    (tmp_path / "S6_MNIST.pt").unlink()

    class Harm:
        def __reduce__(self):
            return (tmp_path.joinpath("harm").mkdir, ())

    whole = path.read_bytes()
    _, expected = train(small_loaders)
    for number, content in enumerate((whole[:-2000], b"", pickle.dumps(Harm(), protocol=2))):
        path.write_bytes(content)
        capsys.readouterr()
        _, history = train(small_loaders, checkpoint=path)
        assert "run.checkpoint is damaged" in capsys.readouterr().out
        assert without_seconds(history) == without_seconds(expected)
        assert [p.name for p in tmp_path.iterdir()] == ["run.checkpoint.damaged"], number
        assert (tmp_path / "run.checkpoint.damaged").read_bytes() == content


FULL = """
import resource, sys
import matplotlib.pyplot as plt
from benchmarks import evidence, figures
from model import Net
from utils import Config

figures.ROOT = figures.Path(sys.argv[1])
figure = plt.figure()
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # no file may grow larger, as on a disk that is full
for write in (lambda: figures.save_figure(figure, "seeds.png"),
              lambda: evidence.save_run(sys.argv[1] + "/S6_MNIST.pt", Net(), Config(), [])):
    try:
        write()
    except OSError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_full_disk_keeps_figures_and_weights(tmp_path):
    files = [tmp_path / "images" / "seeds.png", tmp_path / "S6_MNIST.pt"]
    files[0].parent.mkdir()
    for path in files:
        path.write_text("old")
    run = subprocess.run([sys.executable, "-c", FULL, tmp_path], cwd=ROOT, capture_output=True, text=True,
                         env={**os.environ, "MPLBACKEND": "agg"})
    assert run.returncode == 0, run.stderr
    for path, line in zip(files, run.stdout.splitlines(), strict=True):
        assert line.startswith(f"{path} was not written (")
        assert line.endswith("free some space or make its folder writable")
        assert path.read_text() == "old"
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(files)


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "old.txt"
    path.write_text("old")

    def write(part):
        part.write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left") as error:
        write_whole(path, write)
    assert str(path) in str(error.value)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["old.txt"]
