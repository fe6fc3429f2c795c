"""Training does what its recipe says, the same every time, and stops in good order; runs are kept whole."""

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

import utils
from model import Net
from utils import Config, evaluate, fit, load_run, make_optimizers, predict, save_run, set_seed

SHORT = Config(epochs=2, batch_size=50)


def train(loaders, **options):
    set_seed(0)
    model = Net()
    return model, fit(model, *loaders, **options)


def same(first, second):
    """Whether two models hold the same numbers, the statistics of BatchNorm included."""
    return all(map(torch.equal, utils.averaged_values(first), utils.averaged_values(second)))


def without_seconds(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


@pytest.fixture(scope="module")
def trained(small_loaders):
    """A model, its history, and what `on_epoch` was given; the progress bar is drawn in every step."""
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "tqdm", lambda **options: tqdm(**{**options, "mininterval": 0}))
        return *train(small_loaders(SHORT), on_epoch=lambda *call: calls.append(copy.deepcopy(call))), calls


@pytest.mark.parametrize(("name", "value", "limit"), [
    ("epochs", 0, "at least 1"), ("epochs", 2.5, "whole"), ("batch_size", math.inf, "number"), ("dropout", 1.1, "to 1"),
    ("dropout", -0.1, "from 0"), ("muon_lr", math.nan, "number"), ("degrees", "10", "number"),
    ("seed", -1, "at least 0"), ("optimizer", "adam", "'muon' or 'sgd'"), ("precision", 16, "'bfloat16'"),
])
def test_config_refuses_what_would_train_garbage(name, value, limit):
    with pytest.raises(ValueError, match=f"Config.{name} is {value!r}.*{limit}"):
        Config(**{name: value})


@pytest.mark.parametrize(("name", "value", "kind"), [
    ("muon_lr", np.logspace(-2, -1, 3)[1], float), ("scale", np.float32(0.5), float), ("epochs", np.int64(3), int),
    ("degrees", 15, float)])
def test_config_keeps_numbers_as_pythons_own(name, value, kind):
    kept = getattr(Config(**{name: value}), name)
    assert kept == value and type(kept) is kind


def test_epochs_from_the_environment(monkeypatch):
    for text, epochs in ("", Config().epochs), ("3", 3):
        monkeypatch.setenv("EPOCHS", text)
        assert utils.get_config() == Config(epochs=epochs)
    assert utils.get_config(2) == utils.get_config("2") == Config(epochs=2)  # what the caller says comes first
    for text in "0", str(Config().epochs + 1), "abc", "1.5":
        monkeypatch.setenv("EPOCHS", text)
        with pytest.raises(ValueError, match=f"EPOCHS={text} is not a whole number from 1 to {Config().epochs}"):
            utils.get_config()


def test_seeding_leaves_every_flag_readable():
    set_seed(0)
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    assert (cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, matmul.allow_tf32) == (False, True, False, False)
    for flags in cudnn, cudnn.conv, cudnn.rnn, matmul:
        assert flags.fp32_precision != "tf32"


def test_same_seed_same_run_from_the_first_epoch_on(small_loaders, trained):
    loaders = small_loaders(SHORT)
    list(loaders[0])  # a look at the images must not shift the epochs
    model, history = train(loaders)
    assert without_seconds(history) == without_seconds(trained[1]) and same(model, trained[0])
    _, other = train(small_loaders(Config(epochs=1, batch_size=50, seed=1)))
    assert other[0]["train_loss"] != history[0]["train_loss"]


def test_history_is_of_the_averaged_weights(small_loaders, trained):
    model, history, calls = trained
    assert [row["epoch"] for row in history] == [1, 2]
    assert history[1]["train_loss"] < history[0]["train_loss"]
    assert [call[:2] for call in calls] == [(row, SHORT) for row in history]
    for row, _, averaged in calls:
        assert evaluate(averaged, small_loaders(SHORT)[1]) == (row["val_loss"], row["val_accuracy"])
    assert same(model, calls[-1][2])
    assert not model.training


def test_loop_by_hand_ends_in_the_weights_of_fit(small_loaders):
    config = Config(epochs=2, batch_size=50, precision="float32")
    expected, _ = train(small_loaders(config))
    loader, _ = small_loaders(config)
    set_seed(0)
    model = Net().to(memory_format=torch.channels_last)
    averaged, optimizers = copy.deepcopy(model), make_optimizers(model, config, config.epochs * len(loader))
    averages, values = utils.averaged_values(averaged), utils.averaged_values(model)
    for epoch in range(config.epochs):
        for step, (images, labels) in enumerate(loader):
            model.zero_grad()
            F.cross_entropy(model(images), labels, label_smoothing=config.label_smoothing).backward()
            for action in itertools.chain(*optimizers):
                action.step()
            utils.update_ema(averages, values, epoch * len(loader) + step, config.ema_decay)
    assert same(averaged, expected)


@pytest.mark.parametrize(("optimizer", "reached"), [("muon", 80), ("sgd", 40)])
def test_training_learns_and_decays_weights_but_no_biases(small_loaders, optimizer, reached):
    config = Config(epochs=3, batch_size=20, optimizer=optimizer)
    model, history = train(small_loaders(config))
    assert history[-1]["val_accuracy"] > reached  # from 600 images; by chance 10
    groups = [o.param_groups[0] for o, _ in make_optimizers(model, config, 10)]
    rates = [getattr(config, f"{optimizer}_lr") * config.start_factor, config.sgd_lr * config.start_factor]
    assert [(g["lr"], g["weight_decay"]) for g in groups] == list(zip(rates, [config.weight_decay, 0], strict=True))
    assert {p.ndim for p in groups[0]["params"]} == {4}
    assert sum(p.numel() for group in groups for p in group["params"]) == 19_712


@pytest.mark.parametrize(("precision", "instructions", "used"), [
    ("float32", 1, "float32"), ("bfloat16", 0, "bfloat16"), ("auto", 1, "bfloat16"), ("auto", 0, "float32")])
def test_precision_is_for_the_layers_of_training_alone(small_loaders, monkeypatch, precision, instructions, used):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": instructions}, raising=False)
    config, seen, model = Config(epochs=1, batch_size=100, precision=precision), set(), Net()
    model.head[0].register_forward_hook(lambda layer, _, output: seen.add((layer.training, output.dtype)))
    history = fit(model, *small_loaders(config))
    assert seen == {(True, getattr(torch, used)), (False, torch.float32)}
    assert math.isfinite(history[0]["train_loss"]) and {p.dtype for p in model.parameters()} == {torch.float32}
    assert utils.training_precision(Config(), torch.device("mps")) == "float32"


def test_evaluation_counts_exactly_in_any_order_and_leaves_the_model_as_it_was(small_loaders, trained):
    model, (loader, _) = copy.deepcopy(trained[0]), small_loaders(Config(no_aug_fraction=1))
    images = utils.normalise(loader.images.float() / 255)
    with torch.no_grad():
        logits = model.eval()(images)
    correct = (logits.argmax(1) == loader.labels).sum().item()
    model.train().stage1.eval()  # a mixed mode, as where some BatchNorm is frozen
    before, modes = copy.deepcopy(model), [m.training for m in model.modules()]
    plain = DataLoader(TensorDataset(images, loader.labels), batch_size=64, shuffle=True)
    for batches in loader, plain:  # both shuffle
        loss, accuracy = evaluate(model, batches)
        assert accuracy == 100 * correct / 600 > 20
        assert loss == pytest.approx(F.cross_entropy(logits, loader.labels).item(), rel=1e-4)
        assert predict(model, batches)[0].dtype == torch.float32
    with pytest.raises(ValueError, match="28"):
        predict(model, [(torch.zeros(1, 1, 32, 32), torch.zeros(1))])
    assert same(model, before) and [m.training for m in model.modules()] == modes


def test_schedule_rises_and_falls_in_every_step():
    config, rates = Config(warmup_fraction=0.25, muon_lr=0.2, sgd_lr=0.4, end_factor=0.1), []
    (first, schedule), (second, other) = make_optimizers(Net(), config, steps=100)
    for _ in range(101):
        rates.append(first.param_groups[0]["lr"])
        assert second.param_groups[0]["lr"] == pytest.approx(2 * rates[-1])
        for action in first, second, schedule, other:
            action.step()
    expected = np.interp(range(101), [0, 25, 100], [0.2 * config.start_factor, 0.2, 0.2 * 0.1])
    assert rates == pytest.approx(expected.tolist())


def test_average_keeps_a_share_that_rises_to_the_decay():
    average, last, ones = torch.zeros(1), torch.zeros(1), torch.ones(1)
    utils.update_ema([average], [ones], step=0, decay=0.5)
    assert average.item() == pytest.approx(0.9)
    utils.update_ema([average, last], [2 * ones, ones], step=100, decay=0.5)
    assert average.item() == pytest.approx(1.45) and last.item() == 0.5
    utils.update_ema([last], [ones], step=100, decay=0)
    assert last.item() == 1


def in_step(number, model, happens):
    """Have the output of the model's last layer replaced in one step of training."""
    steps = itertools.count(1)
    model.head.register_forward_hook(
        lambda layer, _, output: happens(output) if layer.training and next(steps) == number else output)


def interrupt(_output):
    raise KeyboardInterrupt


@pytest.mark.parametrize(("step", "finished"), [(3, 0), (15, 1)])
def test_interrupt_keeps_what_there_is(small_loaders, trained, capsys, step, finished):
    set_seed(0)
    start = copy.deepcopy(model := Net())
    in_step(step, model, interrupt)
    history = fit(model, *small_loaders(SHORT))
    assert without_seconds(history) == without_seconds(trained[1])[:finished]
    assert f"Interrupted after {finished} of 2 epochs" in capsys.readouterr().out
    assert not same(model, start)


def test_loss_that_is_not_finite_stops_training(small_loaders):
    in_step(15, model := Net(), lambda output: output * math.nan)
    with pytest.raises(FloatingPointError, match=r"nan in epoch 2, step 3 of 12: .*muon_lr than 0\.\d"):
        fit(model, *small_loaders(SHORT))


ROW, POOR = {"val_accuracy": 99.4}, {"val_accuracy": 99.39}


@pytest.mark.parametrize(("model", "history", "expected"), [
    (Net(), [POOR, ROW] * 9, [1, 1, 1, 1, 1, 1]), (Net(), [ROW] * 20, [1, 1, 0, 1, 1, 1]),
    (Net(), [], [0, 1, 0, 1, 1, 1]), (Net(dropout=0), [ROW, POOR], [0, 1, 1, 1, 0, 1]),
    (nn.Sequential(nn.Flatten(), nn.Linear(784, 30), nn.Linear(30, 10)), [ROW], [1, 0, 1, 0, 0, 0])])
def test_assignment_is_checked(model, history, expected):
    assert [met for *_, met in utils.check_assignment(model, history)] == expected


def test_calibration_compares_confidence_and_accuracy():
    confidence, correct = torch.tensor([0.95, 0.85, 1.0, 0.3]), torch.tensor([True, False, True, False])
    rows, error = utils.calibration(confidence, correct, bins=5)
    assert rows == [pytest.approx((0.3, 0, 1)), pytest.approx((2.8 / 3, 2 / 3, 3))]
    assert error == pytest.approx(100 * (0.3 + 0.8) / 4)


class Harm:
    def __reduce__(self):
        return exec, ("raise SystemExit('code from a file was run')",)


def test_run_survives_saving_and_an_unfit_one_is_refused(trained, tmp_path):
    path = tmp_path / "new" / "run.pt"
    with pytest.raises(FileNotFoundError):
        load_run(path)
    save_run(path, trained[0], SHORT, trained[1])
    model, config, run = load_run(path)
    assert (config, run["history"], run["code"]) == (SHORT, trained[1], utils.code_hash())
    assert same(model, trained[0]) and not model.training
    assert list(path.parent.iterdir()) == [path]
    save_run(path, Net(width=8), SHORT, [])
    narrow = path.read_bytes()
    for content in narrow, narrow[:5000], b"", pickle.dumps({}, protocol=2), pickle.dumps(Harm(), protocol=2):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"run\.pt does not hold a run"):
            load_run(path)


@pytest.mark.parametrize(("error", "message", "stuck"), [
    (RuntimeError("full"), r"old\.txt was not written \(full\)", False),  # torch.save's, on a full disk
    (OSError("read-only"), r"old\.txt was not written \(read-only\)", True), (KeyboardInterrupt(), None, False)])
def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch, error, message, stuck):
    def fail(temporary, **_):
        temporary.write_text("half")
        raise error

    (path := tmp_path / "old.txt").write_text("old")
    if stuck:  # as on a read-only file system, where nothing can be removed
        monkeypatch.setattr(utils.Path, "unlink", fail)
    with pytest.raises(OSError if message else KeyboardInterrupt, match=message):
        utils.atomic_write(path, fail)
    assert path.read_text() == "old" and (stuck or list(tmp_path.iterdir()) == [path])


CODE = 'def f(a):\n    if a:\n        a = f"{a} {{}} "\n    return a\n'


@pytest.mark.parametrize(("old", "new", "alike"), [
    ("def f(a):\n", '"""New."""\n\n# new\ndef f(a):  # new\n    """New,\n    and long."""\n\n', True),
    ("        a =", "        # new\n\n        a  =", True), ("\n", "\r\n", True), ("if a", "if not a", False),
    ("    return", "        return", False), ('f"{a}', 'f"{f}', False), ('"{a}', '"a', False)])
def test_hash_changes_with_the_code_alone(tmp_path, monkeypatch, old, new, alike):
    assert utils.strip_comments(CODE).count('=f"{a}{{}}"\n') == 1  # in every version of Python
    monkeypatch.setattr(utils, "ROOT", tmp_path)
    paths = [tmp_path / name for name in ("model.py", "muon.py", "utils.py")]
    for path in paths:
        path.write_bytes(CODE.encode())
    stored = utils.code_hash()
    for path in paths:
        path.write_bytes(CODE.replace(old, new).encode())
        assert (utils.code_hash() == stored) is alike
        path.write_bytes(CODE.encode())
