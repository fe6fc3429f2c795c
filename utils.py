"""Data, training, evaluation and figures for the MNIST assignment; every number of the recipe stands in `Config`."""

import copy
import hashlib
import json
import math
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
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
from torchvision.datasets.utils import check_integrity
from tqdm import tqdm

from model import CLASSES, DROPOUT, Net, count_parameters

ROOT = Path(__file__).resolve().parent
MEAN, STD = 0.1307, 0.3081  # of the training pixels in [0, 1]; the notebook measures them
TARGET, MAX_PARAMETERS, MAX_EPOCHS = 99.4, 20_000, 20  # asked: at least so many percent, and fewer than the others
CPU = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch cannot tell: then float32 is used


def number(default: float, low: float, high: float, meaning: str):
    """A `Config` field with its inclusive limits and its unit or reason."""
    return field(default=default, metadata={"low": low, "high": high, "meaning": meaning})


@dataclass(frozen=True)
class Config:
    """Every number of a training run; ValueError names a value that is not of its field's type or out of its limits."""

    epochs: int = number(15, 1, MAX_EPOCHS - 1, "passes over the training images")
    batch_size: int = number(64, 1, 60_000, "images per step")
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
    plain: float = number(0.2, 0, 1, "share of the steps, at the end, whose images are not augmented")
    eval_batch_size: int = number(200, 1, 60_000, "images per step in evaluation, where it matters to the speed alone")
    seed: int = number(0, 0, 2**31 - 1, "start of every random stream")

    def __post_init__(self) -> None:
        for f in fields(self):
            value, low, high = getattr(self, f.name), f.metadata["low"], f.metadata["high"]
            types = (float, int) if f.type is float else (f.type,)
            if type(value) not in types or not low <= value <= high:
                raise ValueError(f"Config.{f.name} is {value!r}; it takes {f.type.__name__} from {low} to {high}")


def set_seed(seed: int) -> None:
    """Seed PyTorch, the only source of randomness here, and keep cuDNN deterministic and its float32 exact."""
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = False


def get_device() -> torch.device:
    """The fastest device present: an NVIDIA GPU, Apple's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` has instructions for bfloat16: emulated, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and CPU.get("avx512_bf16", False)


def layout(device: torch.device) -> torch.memory_format:
    """channels_last, in which convolutions are faster; but BatchNorm's gradients in it have been wrong on MPS."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last  # pytorch/pytorch#175189


UNPACKED_MD5 = {  # of the files inside the archives; torchvision checks the archives, but not what it unpacked
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def load_mnist(train: bool, root: str | Path = ROOT / "data") -> tuple[Tensor, Tensor]:
    """Return the images (N, 1, 28, 28) as uint8 and the labels (N,) as int64, N being 60,000 or 10,000.

    torchvision verifies the archives under `root` and unpacks them, and downloads what is missing. A damaged unpacked
    file is unpacked again. RuntimeError names the archives that are missing or damaged and cannot be downloaded.
    """
    raw = Path(root) / "MNIST" / "raw"
    try:
        for name, md5 in UNPACKED_MD5.items():
            if not check_integrity(raw / name, md5):
                (raw / name).unlink(missing_ok=True)
        dataset = MNIST(root, train=train, download=True)
    except (RuntimeError, OSError, EOFError) as error:
        broken = [f"{raw / name} is {'damaged' if (raw / name).exists() else 'missing'}"
                  for name, md5 in MNIST.resources if not check_integrity(raw / name, md5)]
        raise RuntimeError(f"MNIST could not be read or downloaded: {', '.join(broken) or raw} ({error}). Restore it "
                           "with 'git checkout -- data', or connect to the network, and try again") from error
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
        if labels.min() < 0 or labels.max() >= CLASSES:
            raise ValueError(f"labels run from {labels.min()} to {labels.max()}; they may run from 0 to {CLASSES - 1}")
        self.images, self.labels = images.to(device), labels.to(device)
        self.config, self.train, self.epoch = config, train, 0
        self.batch_size = config.batch_size if train else config.eval_batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator(self.images.device).manual_seed(1000 * (self.config.seed + 1) + self.epoch)
        order = torch.arange(len(self.labels), device=self.images.device)
        if self.train:
            order = torch.randperm(len(order), generator=generator, device=order.device)
        for step, chosen in enumerate(order.split(self.batch_size)):
            images = self.images[chosen].float() / 255
            progress = (self.epoch - 1 + step / len(self)) / self.config.epochs
            if self.train and progress < 1 - self.config.plain:
                images = augment(images, self.config, generator)
            yield ((images - MEAN) / STD).to(memory_format=layout(images.device)), self.labels[chosen]


@torch.no_grad()
def update_average(pairs: list[tuple[Tensor, Tensor]], step: int, decay: float) -> None:
    """Move each average towards its value: Polyak and Juditsky, "Acceleration of stochastic approximation", 1992.

    The share that an average keeps rises with the steps, from 0.1 to `decay`, so that the random start is soon
    forgotten. (PyTorch's AveragedModel does the same, but makes the host wait for a GPU in every step.)
    """
    kept = min(decay, (1 + step) / (10 + step))
    for average, value in pairs:
        if average.is_floating_point():
            average.lerp_(value, 1 - kept)
        else:  # BatchNorm's count of batches
            average.copy_(value)


def rate_factor(progress: float, config: Config) -> float:
    """The learning rate, as a share of its peak, after the share `progress` of all steps."""
    return float(np.interp(progress, [0, config.warmup, 1], [config.first_rate, 1, config.last_rate]))


def make_optimizer(model: nn.Module, config: Config, steps: int) -> tuple[Optimizer, LRScheduler]:
    """SGD with momentum, and the schedule that sets its learning rate in each of the `steps`."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    nesterov = config.nesterov and config.momentum > 0
    optimizer = SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov)
    return optimizer, LambdaLR(optimizer, lambda step: rate_factor(step / steps, config))


def train_epoch(model: nn.Module, loader: Loader, optimizer: Optimizer, scheduler: LRScheduler,
                averages: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Train `model` for one epoch; return the mean loss and the accuracy in percent, as they were in training.

    Losses stay on the device and are read when the progress bar is drawn, about twice a second, not in every step.
    FloatingPointError names the epoch and the step in which the loss stopped being finite.
    """
    device, config = loader.images.device, loader.config
    total, seen, bfloat16 = len(loader.labels), 0, has_bfloat16(device)
    losses, correct = torch.zeros(len(loader), device=device), torch.zeros((), dtype=torch.int64, device=device)
    model.train()
    with tqdm(total=total, desc=f"epoch {loader.epoch:2}/{config.epochs}", unit=" images", leave=False,
              file=sys.stdout, mininterval=0.5) as bar:
        for step, (images, labels) in enumerate(loader):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
                logits = model(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            update_average(averages, scheduler.last_epoch, config.average_decay)  # its "epoch" is our step
            scheduler.step()
            losses[step] = loss.detach() * len(labels)
            correct += (logits.argmax(1) == labels).sum()
            seen += len(labels)
            if bar.update(len(labels)):  # the bar was drawn: fetch what it shows the next time
                mean, accuracy = check_losses(losses, loader) / seen, 100 * correct.item() / seen
                bar.set_postfix(loss=f"{mean:.4f}", accuracy=f"{accuracy:.2f} %", refresh=False)
    return check_losses(losses, loader) / total, 100 * correct.item() / total


def check_losses(losses: Tensor, loader: Loader) -> float:
    """The sum of the losses, one per step; FloatingPointError if one of them is not finite."""
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
    with torch.no_grad():
        return torch.cat([model(images) for images, _ in loader])


def evaluate(model: nn.Module, loader: Loader) -> tuple[float, float]:
    """The mean cross-entropy and the accuracy in percent over an evaluation loader's images."""
    logits = predict(model, loader)
    correct = (logits.argmax(1) == loader.labels).sum().item()
    return F.cross_entropy(logits, loader.labels).item(), 100 * correct / len(loader.labels)


def print_epoch(row: dict, config: Config, _model: nn.Module) -> None:
    """Print one row of the history."""
    print(f"epoch {row['epoch']:2}/{config.epochs} | training: loss {row['train_loss']:.4f}, "
          f"accuracy {row['train_accuracy']:.2f} % | validation: loss {row['val_loss']:.4f}, "
          f"accuracy {row['val_accuracy']:.2f} % | {row['seconds']:4.1f} s")


def fit(model: nn.Module, train_loader: Loader, val_loader: Loader, on_epoch: Callable = print_epoch) -> list[dict]:
    """Train `model` by the training loader's config and leave the averaged weights in it; return one row per epoch.

    A row holds the epoch, the learning rate at its end, the loss and accuracy (percent) in training and, with the
    averaged weights, in validation, and the seconds for both; `on_epoch` is called with it, the config and the averaged
    model. Ctrl-C or the notebook's stop button ends the training early and keeps what there is.
    """
    config, history = train_loader.config, []
    model.to(memory_format=layout(train_loader.images.device))
    optimizer, scheduler = make_optimizer(model, config, steps=config.epochs * len(train_loader))
    averaged = copy.deepcopy(model)
    averages = list(zip(averaged.state_dict().values(), model.state_dict().values(), strict=True))
    try:
        for epoch in range(1, config.epochs + 1):
            start = time.perf_counter()
            train_loader.epoch = epoch
            train_loss, train_accuracy = train_epoch(model, train_loader, optimizer, scheduler, averages)
            val_loss, val_accuracy = evaluate(averaged, val_loader)
            history.append({"epoch": epoch, "learning_rate": scheduler.get_last_lr()[0], "train_loss": train_loss,
                            "train_accuracy": train_accuracy, "val_loss": val_loss, "val_accuracy": val_accuracy,
                            "seconds": time.perf_counter() - start})
            on_epoch(history[-1], config, averaged)
    except KeyboardInterrupt:
        print(f"Interrupted in epoch {len(history) + 1} of {config.epochs}: the model and {len(history)} finished "
              "epochs are kept.")
    model.load_state_dict(averaged.state_dict())
    return history


def config_from_environment() -> Config:
    """The recipe, shortened to EPOCHS epochs where that environment variable is set, as for a quick look or in CI."""
    text, default = os.environ.get("EPOCHS", "").strip(), Config()
    if text and not (text.isdecimal() and 0 < int(text) < MAX_EPOCHS):
        raise ValueError(f"EPOCHS={text} is not a whole number from 1 to {MAX_EPOCHS - 1}: change it, or unset it for "
                         f"the full run of {default.epochs}")
    return replace(default, epochs=int(text)) if text else default


def environment(device: torch.device) -> dict[str, str]:
    """What a result depends on besides code and seed: the device, its precision and the versions."""
    cpu = f"{CPU.get('cpu_name', platform.machine())}, {torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    precision = "bfloat16" if has_bfloat16(device) else "float32"
    return {"device": f"{device.type.upper()} ({name})", "precision": precision, "python": platform.python_version(),
            "torch": str(torch.__version__), "torchvision": str(torchvision.__version__)}


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


def requirements(model: nn.Module, history: list[dict]) -> list[tuple[str, str, str, bool]]:
    """The assignment's requirements: each with what is asked for, what was measured, and whether that is enough."""
    kinds = Counter(type(layer).__name__ for layer in model.modules())
    dropout = max((layer.p for layer in model.modules() if isinstance(layer, nn.Dropout2d)), default=0)
    parameters, accuracy = count_parameters(model), history[-1]["val_accuracy"] if history else 0
    return [
        ("validation accuracy, last epoch", f"at least {TARGET} %", f"{accuracy:.2f} %", accuracy >= TARGET),
        ("parameters", f"fewer than {MAX_PARAMETERS:,}", f"{parameters:,}", parameters < MAX_PARAMETERS),
        ("epochs", f"fewer than {MAX_EPOCHS}", f"{len(history)}", len(history) < MAX_EPOCHS),
        ("BatchNorm", "used", f"{kinds['BatchNorm2d']} layers", kinds["BatchNorm2d"] > 0),
        ("Dropout", "used", f"{kinds['Dropout2d']} layers, p = {dropout}", dropout > 0),
        ("global average pooling", "used", f"{kinds['AvgPool2d']} layer", kinds["AvgPool2d"] > 0),
    ]


def save_run(path: str | Path, model: nn.Module, config: Config, history: list[dict]) -> None:
    """Save the weights with the recipe, the history, the device, the versions and the code that made them."""
    device = next(model.parameters()).device
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    run = {"state_dict": weights, "config": asdict(config), "history": history, "environment": environment(device),
           "code": fingerprint()}
    write_whole(path, lambda part: torch.save(run, part))


def load_run(path: str | Path) -> tuple[Net, Config, dict]:
    """Load what `save_run` wrote: the trained network, on the CPU, its recipe and the whole record."""
    run = torch.load(path, map_location="cpu", weights_only=True)
    config = Config(**run["config"])
    model = Net(dropout=config.dropout)
    model.load_state_dict(run["state_dict"])
    return model.eval(), config, run


def plot_digits(images: Tensor, titles: list[str] | None = None, columns: int = 10) -> Figure:
    """Draw images (N, 1, 28, 28) in rows of `columns`, dark on white, each below its title."""
    rows = math.ceil(len(images) / columns)
    figure, axes = plt.subplots(rows, columns, squeeze=False, layout="constrained",
                                figsize=(columns, rows * (1.4 if titles else 1)))
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images.cpu(), titles or [""] * len(images), strict=False):
        axis.imshow(image[0].numpy(), cmap="gray_r")
        axis.set_title(title, fontsize=max(9, 0.8 * columns))  # legible however the page scales the figure
    return figure


def plot_history(history: list[dict]) -> Figure:
    """Draw loss, accuracy (with the target) and learning rate against the epoch."""
    epochs = [row["epoch"] for row in history]
    figure, (loss, accuracy, rate) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for key, label, style in (("train", "training", "o--"), ("val", "validation", "o-")):
        loss.plot(epochs, [row[f"{key}_loss"] for row in history], style, label=label, markersize=4)
        accuracy.plot(epochs, [row[f"{key}_accuracy"] for row in history], style, markersize=4)
    accuracy.axhline(TARGET, color="black", linestyle=":", label=f"target {TARGET} %")
    accuracy.set_ylim(98, 100)
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
    pairs = CLASSES * labels.cpu() + predicted.cpu()
    counts = torch.bincount(pairs, minlength=CLASSES**2).view(CLASSES, CLASSES)
    errors = counts - counts.diag().diag()
    figure, axis = plt.subplots(figsize=(6, 5.4), layout="constrained")
    axis.imshow(errors.numpy(), cmap="Reds", vmax=1.5 * max(1, errors.max().item()))
    for true, read in counts.nonzero().tolist():
        axis.text(read, true, f"{counts[true, read]}", ha="center", va="center", fontsize=9)
    axis.set(xlabel="predicted digit", ylabel="true digit", xticks=range(CLASSES), yticks=range(CLASSES))
    return figure


def save_figure(figure: Figure, name: str) -> None:
    """Save a figure as `images/name`, on white, so that it reads on a dark page too."""
    write_whole(ROOT / "images" / name, lambda part: figure.savefig(part, dpi=120, facecolor="white"))
