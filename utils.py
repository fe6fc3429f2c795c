"""Data, training, evaluation and figures for the MNIST assignment; every number of the recipe stands in `Config`."""

import copy
import hashlib
import json
import math
import os
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torchvision.datasets import MNIST
from torchvision.datasets.utils import calculate_md5, check_integrity
from tqdm import tqdm

from model import DROPOUT, Net

ROOT = Path(__file__).resolve().parent
MEAN, STD = 0.1307, 0.3081  # of the training pixels in [0, 1]; the notebook measures them
Row = dict[str, float]  # one epoch of the history; `fit` names its keys
TARGET = 99.4  # percent: the validation accuracy that the assignment asks for


# ---------------------------------------------------------------------------------------------------- the recipe


def number(default: float, low: float, high: float, meaning: str):
    """A `Config` field with its inclusive limits and its unit or reason."""
    return field(default=default, metadata={"low": low, "high": high, "meaning": meaning})


@dataclass(frozen=True)
class Config:
    """Every number of a training run; ValueError names a value that is not of its field's type or out of its limits."""

    epochs: int = number(15, 1, 19, "passes over the training images; the assignment asks for fewer than 20")
    batch_size: int = number(64, 1, 60_000, "images a step")
    learning_rate: float = number(0.1, 0, 10, "peak of the schedule")
    warmup: float = number(0.2, 0, 1, "share of all steps in which the rate rises linearly; then it falls linearly")
    first_rate: float = number(0.04, 0, 1, "learning rate of the first step, as a share of the peak")
    last_rate: float = number(0.0, 0, 1, "learning rate after the last step, as a share of the peak")
    momentum: float = number(0.9, 0, 0.9999, "share of the last update that the next one keeps")
    nesterov: bool = number(True, False, True, "look ahead along the momentum before the gradient is applied")
    weight_decay: float = number(3e-4, 0, 1, "L2 penalty on convolution weights; BatchNorm and biases have none")
    label_smoothing: float = number(0.05, 0, 0.99, "probability that the target spreads evenly over all classes")
    average_decay: float = number(0.999, 0, 0.999_999, "share of the averaged weights that a step keeps; 0: no average")
    dropout: float = number(DROPOUT, 0, 0.99, "probability that a channel is zeroed in training")
    rotation: float = number(10, 0, 180, "degrees either way")
    shift: float = number(0.08, 0, 1, "share of the image's side, either way, along each axis")
    scale: float = number(0.10, 0, 0.9, "share of the digit's size, either way")
    shear: float = number(5, 0, 80, "degrees either way")
    seed: int = number(0, 0, 2**31 - 1, "start of every random stream")

    def __post_init__(self) -> None:
        for f in fields(self):
            value, low, high = getattr(self, f.name), f.metadata["low"], f.metadata["high"]
            kinds = (int, float) if f.type is float else f.type
            if not isinstance(value, kinds) or not low <= value <= high:
                raise ValueError(f"Config.{f.name} is {value!r}; it takes {f.type.__name__} from {low} to {high}")


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and PyTorch, and have cuDNN choose deterministic algorithms."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


def get_device() -> torch.device:
    """The fastest device present: an NVIDIA GPU, Apple's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where `device` has instructions for it, else float32: emulated bfloat16 is slower than float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16", False)
    return torch.bfloat16 if native else torch.float32


# ------------------------------------------------------------------------------------------------------ the data

UNPACKED_MD5 = {  # of the files inside the archives; torchvision checks the archives, but not what it unpacked
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def load_mnist(train: bool, root: str | Path = ROOT / "data") -> tuple[Tensor, Tensor]:
    """Return the images (N, 1, 28, 28) as uint8 and the labels (N,) as int64, N being 60,000 or 10,000.

    The archives under `root` are verified and unpacked by torchvision, which downloads them if they are missing.
    RuntimeError names the file that is missing or damaged and cannot be replaced.
    """
    raw = Path(root) / "MNIST" / "raw"
    for name, md5 in UNPACKED_MD5.items():
        path = raw / name
        if path.exists() and calculate_md5(path) != md5:
            raise RuntimeError(f"{path} is damaged ({path.stat().st_size:,} bytes, wrong MD5 sum): delete it, and it "
                               f"is unpacked again from {name}.gz")
    try:
        dataset = MNIST(root, train=train, download=True)
    except (RuntimeError, OSError, EOFError) as error:
        broken = [f"{raw / name} is {'damaged' if (raw / name).exists() else 'missing'}"
                  for name, md5 in MNIST.resources if not check_integrity(raw / name, md5)]
        raise RuntimeError(f"MNIST cannot be read: {'; '.join(broken) or raw}, and downloading or unpacking failed "
                           f"({error}). Restore data/ with 'git checkout -- data', or connect to the network, and "
                           "run this again") from error
    return dataset.data[:, None], dataset.targets


def augment(images: Tensor, config: Config, generator: torch.Generator) -> Tensor:
    """Rotate, shear, scale and shift each of the float images (N, 1, H, W), whose background is 0, by its own amounts.

    The amounts are drawn evenly from ± the strengths in `config`; the whole batch is resampled in one call, after
    Jaderberg et al., "Spatial transformer networks", 2015.
    """
    draws = 2 * torch.rand(5, len(images), generator=generator, device=images.device) - 1
    angle, shear = draws[0] * math.radians(config.rotation), torch.tan(draws[1] * math.radians(config.shear))
    zoom, shift = 1 + draws[2] * config.scale, draws[3:] * 2 * config.shift  # the grid's unit is half a side
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    rows = [cos, cos * shear - sin, shift[0], sin, sin * shear + cos, shift[1]]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), images.shape, align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


class Loader:
    """Batches of normalised images and their labels, made on the device that holds the whole data set.

    A training loader shuffles and augments, differently in each `epoch` but always the same for the same epoch and
    seed; an evaluation loader does neither. ValueError names labels that do not fit the images.
    """

    def __init__(self, images: Tensor, labels: Tensor, config: Config, device: torch.device, train: bool) -> None:
        if len(images) != len(labels):
            raise ValueError(f"{len(images):,} images do not go with {len(labels):,} labels: each needs one")
        if labels.min() < 0 or labels.max() > 9:
            raise ValueError(f"labels run from {labels.min()} to {labels.max()}; digits run from 0 to 9")
        self.images, self.labels = images.to(device), labels.to(device)
        self.config, self.train, self.epoch = config, train, 0
        self.batch_size = config.batch_size if train else 500  # evaluation keeps no gradients: larger batches fit

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator(self.images.device).manual_seed(epoch_seed(self.config, self.epoch))
        order = torch.arange(len(self.labels), device=self.images.device)
        if self.train:
            order = torch.randperm(len(order), generator=generator, device=order.device)
        for chosen in order.split(self.batch_size):
            images = self.images[chosen].float() / 255
            if self.train:
                images = augment(images, self.config, generator)
            yield (images - MEAN) / STD, self.labels[chosen]


def epoch_seed(config: Config, epoch: int) -> int:
    """A seed of its own for every epoch, so that an epoch's randomness does not depend on what ran before it."""
    return 1000 * config.seed + epoch


# -------------------------------------------------------------------------------------------------- the training


class WeightAverage:
    """Exponential moving average of a model's weights and BatchNorm statistics, kept in `model`.

    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992. The decay rises from 0.1 to
    `decay` with the number of updates, so that the random start is soon forgotten. (PyTorch's AveragedModel makes
    the host wait for a GPU in every step.)
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.updates = copy.deepcopy(model), decay, 0
        self.pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for average, value in self.pairs:
            if average.is_floating_point():
                average.lerp_(value, 1 - decay)
            else:
                average.copy_(value)  # BatchNorm's count of batches


def rate_factor(progress: float, config: Config) -> float:
    """The learning rate, as a share of its peak, after the share `progress` of all steps."""
    return float(np.interp(progress, [0, config.warmup, 1], [config.first_rate, 1, config.last_rate]))


def make_optimizer(model: nn.Module, config: Config, steps: int) -> tuple[Optimizer, LRScheduler]:
    """SGD with momentum, and the schedule that sets its learning rate in each of the `steps`."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov)
    return optimizer, LambdaLR(optimizer, lambda step: rate_factor(step / steps, config))


def train_epoch(model: nn.Module, loader: Loader, optimizer: Optimizer, scheduler: LRScheduler,
                average: WeightAverage) -> tuple[float, float]:
    """Train `model` for one epoch; return the mean loss and the accuracy in percent, over the augmented images.

    Losses stay on the device and are read when the progress bar is drawn, about twice a second, not in every step.
    FloatingPointError names the epoch and the step in which the loss stopped being finite.
    """
    device, config = loader.images.device, loader.config
    dtype, total = compute_dtype(device), len(loader.labels)
    losses, seen = torch.zeros(len(loader), device=device), 0
    correct = torch.zeros((), dtype=torch.int64, device=device)
    model.train()
    with tqdm(total=total, desc=f"epoch {loader.epoch:2}/{config.epochs}", unit=" images", leave=False,
              file=sys.stdout, mininterval=0.5) as bar:
        for step, (images, labels) in enumerate(loader):
            images = images.to(memory_format=torch.channels_last)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32):
                logits = model(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            average.update()
            losses[step] = loss.detach() * len(labels)
            correct += (logits.argmax(1) == labels).sum()
            seen += len(labels)
            if bar.update(len(labels)):  # it was drawn: time to fetch what it shows next
                loss, accuracy = check_losses(losses, loader) / seen, 100 * correct.item() / seen
                bar.set_postfix(loss=f"{loss:.4f}", accuracy=f"{accuracy:.2f} %", refresh=False)
    return check_losses(losses, loader) / total, 100 * correct.item() / total


def check_losses(losses: Tensor, loader: Loader) -> float:
    """The sum of the losses, one a step; FloatingPointError if one of them is not finite."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = bad[0].item()
        raise FloatingPointError(
            f"the training loss became {losses[step].item()} in epoch {loader.epoch}, step {step + 1} of "
            f"{len(loader)}: try a smaller learning_rate than {loader.config.learning_rate}")
    return losses.sum().item()


def predict(model: nn.Module, loader: Loader) -> Tensor:
    """The logits (N, 10), in float32, of a loader's images, in the loader's order."""
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(images.to(memory_format=torch.channels_last)) for images, _ in loader])


def evaluate(model: nn.Module, loader: Loader) -> tuple[float, float]:
    """The mean cross-entropy and the accuracy in percent over an evaluation loader's images."""
    logits = predict(model, loader)
    correct = (logits.argmax(1) == loader.labels).sum().item()
    return F.cross_entropy(logits, loader.labels).item(), 100 * correct / len(loader.labels)


EpochCall = Callable[[Row, Config, nn.Module], None]


def print_epoch(row: Row, config: Config, _model: nn.Module) -> None:
    """Print one row of the history as a line of fixed width."""
    print(f"epoch {row['epoch']:2}/{config.epochs} | training: loss {row['train_loss']:.4f}, "
          f"accuracy {row['train_accuracy']:.2f} % | validation: loss {row['val_loss']:.4f}, "
          f"accuracy {row['val_accuracy']:.2f} % | {row['seconds']:4.1f} s")


def fit(model: nn.Module, train_loader: Loader, val_loader: Loader, on_epoch: EpochCall = print_epoch) -> list[Row]:
    """Train `model` by the training loader's config and leave the averaged weights in it; return one row an epoch.

    A row holds the epoch, the learning rate at its end, the loss and accuracy (percent) in training and, with the
    averaged weights, in validation, and the seconds for both; `on_epoch` is called with it, the config and the averaged
    model. Ctrl-C or the notebook's stop button ends the training early and keeps what there is.
    """
    config, history = train_loader.config, []
    model.to(memory_format=torch.channels_last)
    optimizer, scheduler = make_optimizer(model, config, steps=config.epochs * len(train_loader))
    average = WeightAverage(model, config.average_decay)
    try:
        for epoch in range(1, config.epochs + 1):
            start = time.perf_counter()
            train_loader.epoch = epoch
            torch.manual_seed(epoch_seed(config, epoch))  # for Dropout
            train_loss, train_accuracy = train_epoch(model, train_loader, optimizer, scheduler, average)
            val_loss, val_accuracy = evaluate(average.model, val_loader)
            history.append({
                "epoch": epoch, "learning_rate": scheduler.get_last_lr()[0],
                "train_loss": train_loss, "train_accuracy": train_accuracy,
                "val_loss": val_loss, "val_accuracy": val_accuracy, "seconds": time.perf_counter() - start,
            })
            on_epoch(history[-1], config, average.model)
    except KeyboardInterrupt:
        print(f"Interrupted in epoch {len(history) + 1} of {config.epochs}: the model and {len(history)} finished "
              "epochs are kept.")
    model.load_state_dict(average.model.state_dict())
    return history



# ------------------------------------------------------------------------------------------- the record of a run


def config_from_environment() -> Config:
    """The recipe, shortened to EPOCHS epochs where that environment variable is set, as for a quick look or in CI."""
    text = os.environ.get("EPOCHS", "").strip()
    try:
        return Config(epochs=int(text)) if text else Config()
    except ValueError as error:
        limits = Config.__dataclass_fields__["epochs"].metadata
        raise ValueError(f"EPOCHS={text} is not a whole number from {limits['low']} to {limits['high']}: change it, or "
                         "unset it for the full run") from error


def environment(device: torch.device) -> dict[str, str]:
    """What a result depends on besides code and seed: the device and the versions."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name") or platform.machine()
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return {
        "device": f"{device.type} ({name}{threads})", "precision": str(compute_dtype(device)).removeprefix("torch."),
        "python": platform.python_version(), "torch": str(torch.__version__), "torchvision": torchvision.__version__,
    }


def fingerprint() -> str:
    """Twelve hexadecimal digits that change with model.py, utils.py or the code in the notebook beside them."""
    cells = json.loads((ROOT / "S6_MNIST.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = [(ROOT / name).read_text(encoding="utf-8") for name in ("model.py", "utils.py")]
    sources += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()[:12]


def write_whole(path: str | Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a temporary file that then takes the place of `path`: a failure leaves the old file whole."""
    path = Path(path)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        part.replace(path)
    except (OSError, RuntimeError) as error:
        raise OSError(f"{path} was not written ({error}): free some space or make its folder writable") from error
    finally:
        part.unlink(missing_ok=True)


def requirements(model: nn.Module, config: Config, history: list[Row]) -> list[tuple[str, str, str, bool]]:
    """The assignment's requirements: each with what is asked for, what was measured, and whether that is enough."""
    kinds = Counter(type(layer).__name__ for layer in model.modules())
    parameters, accuracy = sum(p.numel() for p in model.parameters()), history[-1]["val_accuracy"]
    return [
        ("validation accuracy, last epoch", f"at least {TARGET} %", f"{accuracy:.2f} %", accuracy >= TARGET),
        ("parameters", "fewer than 20,000", f"{parameters:,}", parameters < 20_000),
        ("epochs", "fewer than 20", f"{len(history)}", len(history) < 20),
        ("BatchNorm layers", "used", f"{kinds['BatchNorm2d']}", kinds["BatchNorm2d"] > 0),
        ("Dropout layers", "used", f"{kinds['Dropout2d']}, p = {config.dropout}", config.dropout > 0),
        ("classifier", "GAP or linear", f"{kinds['AvgPool2d']} GAP, {kinds['Linear']} linear", kinds["AvgPool2d"] == 1),
    ]


def save_run(path: str | Path, model: nn.Module, config: Config, history: list[Row]) -> None:
    """Save the weights with the recipe, the history, the device and the versions that made them."""
    device = next(model.parameters()).device
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    run = {"state_dict": weights, "config": asdict(config), "history": history, "environment": environment(device)}
    write_whole(path, lambda part: torch.save(run, part))


def load_run(path: str | Path) -> tuple[Net, Config, dict]:
    """Load what `save_run` wrote: the trained network, on the CPU, its recipe and the whole record."""
    run = torch.load(path, map_location="cpu", weights_only=True)
    config = Config(**run["config"])
    model = Net(dropout=config.dropout)
    model.load_state_dict(run["state_dict"])
    return model.eval(), config, run


# --------------------------------------------------------------------------------------------------- the figures


def plot_digits(images: Tensor, titles: list[str] | None = None, columns: int = 10) -> Figure:
    """Draw images (N, 1, 28, 28) in rows of `columns`, dark on white, each below its title."""
    rows = math.ceil(len(images) / columns)
    figure, axes = plt.subplots(rows, columns, squeeze=False, layout="constrained",
                                figsize=(columns, rows * (1.4 if titles else 1)))
    for axis in axes.flat:
        axis.axis("off")
    for axis, image in zip(axes.flat, images.cpu(), strict=False):
        axis.imshow(image[0], cmap="gray_r")
    for axis, title in zip(axes.flat, titles or [], strict=False):
        axis.set_title(title, fontsize=9)
    return figure


def plot_history(history: list[Row], target: float = TARGET) -> Figure:
    """Draw loss, accuracy (with the target) and learning rate against the epoch."""
    epochs = [row["epoch"] for row in history]
    figure, (loss, accuracy, rate) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for key, label, style in (("train", "training, augmented images", "o--"), ("val", "validation", "o-")):
        loss.plot(epochs, [row[f"{key}_loss"] for row in history], style, label=label, markersize=4)
        accuracy.plot(epochs, [row[f"{key}_accuracy"] for row in history], style, label=label, markersize=4)
    accuracy.axhline(target, color="black", linestyle=":", label=f"target {target} %")
    accuracy.set_ylim(max(90, accuracy.get_ylim()[0]), 100)
    rate.plot(epochs, [row["learning_rate"] for row in history], "o-", color="tab:green", markersize=4)
    for axis, name in ((loss, "cross-entropy"), (accuracy, "accuracy (%)"), (rate, "learning rate at the epoch's end")):
        axis.set(xlabel="epoch", ylabel=name)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    loss.legend()
    accuracy.legend(loc="lower right")
    return figure


def plot_confusion(labels: Tensor, predicted: Tensor) -> Figure:
    """Draw how many images of each true digit (rows) were read as each digit (columns); colour shows the errors."""
    counts = torch.bincount(10 * labels.cpu() + predicted.cpu(), minlength=100).view(10, 10)
    errors = counts - counts.diag().diag()
    figure, axis = plt.subplots(figsize=(6, 5.4), layout="constrained")
    axis.imshow(errors, cmap="Reds", vmax=1.5 * errors.max().clamp(min=1))
    for true, read in counts.nonzero().tolist():
        axis.text(read, true, f"{counts[true, read]}", ha="center", va="center", fontsize=9)
    axis.set(xlabel="predicted digit", ylabel="true digit", xticks=range(10), yticks=range(10))
    return figure


def save_figure(figure: Figure, name: str) -> None:
    """Save a figure as `images/name`, on white, so that it reads on a dark page too."""
    write_whole(ROOT / "images" / name, lambda part: figure.savefig(part, dpi=120, facecolor="white"))
