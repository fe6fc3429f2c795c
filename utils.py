"""Data, training and evaluation of the network; every number of the recipe stands in `Config`."""

import copy
import ctypes
import gzip
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torchvision.datasets import MNIST
from torchvision.datasets.utils import check_integrity, download_url
from tqdm import tqdm

from checkpoint import load_checkpoint, save_checkpoint
from model import CLASSES, DROPOUT, IMAGE_SHAPE, Net
from muon import Muon

ROOT = Path(__file__).resolve().parent
MEAN, STD = 0.1307, 0.3081  # of the training pixels in [0, 1]; the notebook measures them
TARGET, MAX_PARAMETERS, MAX_EPOCHS = 99.4, 20_000, 20  # asked: at least TARGET %, and fewer than the other two
CPU_FEATURES = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch cannot tell


def number(default: float, low: float, high: float, meaning: str):
    """A `Config` field with its inclusive limits and its unit or reason."""
    return field(default=default, metadata={"low": low, "high": high, "meaning": meaning})


@dataclass(frozen=True)
class Config:
    """Every number of a training run; ValueError names a value that is not of its field's type or out of its limits."""

    epochs: int = number(8, 1, MAX_EPOCHS - 1, "passes over the training images")
    batch_size: int = number(256, 1, 60_000, "images per step")
    learning_rate: float = number(0.08, 0, 10, "peak of the schedule, for the weights of the convolutions")
    other_rate: float = number(0.8, 0, 10, "the same for BatchNorm and biases, which SGD trains without decay")
    warmup: float = number(0.2, 0, 1, "share of all steps in which the rate rises linearly; then it falls linearly")
    first_rate: float = number(0.04, 0, 1, "learning rate of the first step, as a share of the peak")
    last_rate: float = number(0.0, 0, 1, "learning rate after the last step, as a share of the peak")
    muon: bool = number(True, False, True, "Muon trains the weights of the convolutions; otherwise SGD does")
    momentum: float = number(0.8, 0, 0.9999, "share of the accumulated gradients that a step keeps")
    weight_decay: float = number(0.01, 0, 1, "pull of the convolutions' weights towards zero, times the learning rate")
    label_smoothing: float = number(0.05, 0, 0.99, "share of the target that is spread evenly over all classes")
    average_decay: float = number(0.996, 0, 0.999_999, "share of the weights' average that a step keeps; 0: no average")
    dropout: float = number(DROPOUT, 0, 0.99, "probability that a channel is zeroed in training")
    rotation: float = number(10, 0, 180, "degrees either way")
    shift: float = number(0.08, 0, 1, "share of the image's side, either way, along each axis")
    scale: float = number(0.14, 0, 0.9, "share of the digit's size, either way, along each axis")
    shear: float = number(10, 0, 80, "degrees by which vertical strokes lean, either way")
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
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.backends.cudnn.conv.fp32_precision = "ieee"


def reuse_memory() -> None:
    """Have the GNU C library keep the memory that a step has freed for the next one, in the whole process.

    By default it returns large blocks to the system at once, and fetching them again is slow; see mallopt(3).
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD: blocks up to 32 MiB come from the heap ...
        library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: ... which is not given back


def get_device() -> torch.device:
    """The fastest device present: an NVIDIA GPU, Apple's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def has_bfloat16(device: torch.device) -> bool:
    """Whether to train in bfloat16: without the instructions for it, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and CPU_FEATURES.get("avx512_bf16", False)


def layout(device: torch.device) -> torch.memory_format:
    """channels_last, in which convolutions are faster; but BatchNorm's gradients in it have been wrong on MPS."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last  # pytorch/pytorch#175189


def load_mnist(train: bool, root: str | Path = ROOT / "data") -> tuple[Tensor, Tensor]:
    """Return the images (N, 1, 28, 28) as uint8 and the labels (N,) as int64, N being 60,000 or 10,000.

    The archives lie in `root`/MNIST/raw, where torchvision's MNIST expects them too; nothing is unpacked to the disk.
    RuntimeError names an archive that is missing or damaged and cannot be downloaded.
    """
    archives = MNIST.resources[:2] if train else MNIST.resources[2:]
    images, labels = (read_archive(Path(root) / "MNIST" / "raw" / name, md5) for name, md5 in archives)
    return images.view(-1, *IMAGE_SHAPE), labels.long()


def read_archive(path: Path, md5: str) -> Tensor:
    """The bytes in an MNIST archive, without their header, as a flat tensor; if its sum is wrong, download it first."""
    if not check_integrity(path, md5):
        state = "damaged" if path.exists() else "missing"
        try:
            download_url(MNIST.mirrors[0] + path.name, path.parent, md5=md5)
        except (RuntimeError, OSError) as error:
            raise RuntimeError(f"{path} is {state} and could not be downloaded ({error}). Restore it with "
                               "'git checkout -- data', or connect to the network, and try again") from error
    content = bytearray(gzip.decompress(path.read_bytes()))
    return torch.frombuffer(content, dtype=torch.uint8, offset=4 + 4 * content[3])  # the 4th byte counts dimensions


def normalise(images: Tensor) -> Tensor:
    """Bring float images in [0, 1] to the form that the network takes: over MNIST, mean 0 and standard deviation 1."""
    return (images - MEAN) / STD


def augment(images: Tensor, config: Config, generator: torch.Generator) -> Tensor:
    """Rotate, shear, scale and shift each of the float images (N, 1, H, W), whose background is 0, by its own amounts.

    The amounts are drawn evenly from ± the strengths in `config`, for scale and shift one along each axis; the whole
    batch is resampled in one call, after Jaderberg et al., "Spatial transformer networks", 2015.
    """
    angle, shear, *draws = 2 * torch.rand(6, len(images), generator=generator, device=images.device) - 1
    angle, shear = angle * math.radians(config.rotation), torch.tan(shear * math.radians(config.shear))
    x_zoom, y_zoom = (1 + draw * config.scale for draw in draws[:2])
    x_shift, y_shift = (draw * 2 * config.shift for draw in draws[2:])  # the grid's unit is half a side
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = [cos / x_zoom, (cos * shear - sin) / x_zoom, x_shift, sin / y_zoom, (sin * shear + cos) / y_zoom, y_shift]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), images.shape, align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


class Loader:
    """Batches of normalised images and their labels, made on the device that holds the whole data set.

    `images` are uint8 (N, 1, 28, 28) and `labels` int64 (N,), as `load_mnist` returns them.

    A training loader shuffles and augments, differently in each `epoch` but always the same for the same epoch and
    seed; an evaluation loader does neither. ValueError names images and labels that are not such.
    """

    def __init__(self, images: Tensor, labels: Tensor, config: Config, device: torch.device, train: bool) -> None:
        if images.dtype != torch.uint8 or images.shape[1:] != IMAGE_SHAPE or not len(images):
            raise ValueError(f"the images are {images.dtype} of shape {tuple(images.shape)}; they must be torch.uint8, "
                             f"from 0 to 255, of shape (N, {str(IMAGE_SHAPE)[1:]} with N > 0")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(f"the labels are {labels.dtype} of shape {tuple(labels.shape)}; they must be torch.int64, "
                             f"one for each of the {len(images):,} images")
        if labels.min() < 0 or labels.max() >= CLASSES:
            raise ValueError(f"labels run from {labels.min()} to {labels.max()}; they may run from 0 to {CLASSES - 1}")
        self.images, self.labels = images.to(device), labels.to(device)
        self.config, self.train, self.epoch = config, train, 1
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
            yield normalise(images).to(memory_format=layout(images.device)), self.labels[chosen]


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


def make_optimizers(model: nn.Module, config: Config, steps: int) -> list[tuple[Optimizer, LRScheduler]]:
    """The optimizer of the convolutions' weights and that of the rest, each with the schedule of its learning rate."""
    options = {"lr": config.learning_rate, "momentum": config.momentum, "weight_decay": config.weight_decay}
    first = (Muon if config.muon else SGD)([p for p in model.parameters() if p.ndim > 1], **options)
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizers = [first, SGD(others, lr=config.other_rate, momentum=config.momentum)]
    return [(o, LambdaLR(o, lambda step: rate_factor(step / steps, config))) for o in optimizers]


def train_epoch(model: nn.Module, loader: Loader, optimizers: list[tuple[Optimizer, LRScheduler]],
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
            model.zero_grad()
            loss.backward()
            for optimizer, scheduler in optimizers:
                optimizer.step()
                scheduler.step()
            update_average(averages, (loader.epoch - 1) * len(loader) + step, config.average_decay)
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
            f"{len(loader)}: try a smaller learning_rate than {loader.config.learning_rate}, or "
            f"other_rate than {loader.config.other_rate}")
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


def fit(model: nn.Module, train_loader: Loader, val_loader: Loader, on_epoch: Callable = print_epoch,
        checkpoint: str | Path | None = None) -> list[dict]:
    """Train `model` by the training loader's config and leave the averaged weights in it; return one row per epoch.

    A row holds the epoch, the learning rate at its end, the loss and accuracy (percent) in training and, with the
    averaged weights, in validation, and the seconds for both; `on_epoch` is called with it, the config and the averaged
    model. Ctrl-C or the notebook's stop button ends the training early and keeps what there is. With a path as
    `checkpoint`, the state is written there after each epoch, a run that was stopped goes on from it exactly as it
    would have gone, and the file is removed at the end; ValueError if it is of another recipe or network.
    """
    config, history = train_loader.config, []
    reuse_memory()
    model.to(memory_format=layout(train_loader.images.device))
    optimizers = make_optimizers(model, config, steps=config.epochs * len(train_loader))
    averaged = copy.deepcopy(model)
    averages = list(zip(averaged.state_dict().values(), model.state_dict().values(), strict=True))
    parts = [model, averaged, *(part for pair in optimizers for part in pair)]
    if checkpoint is not None:
        history += load_checkpoint(checkpoint, parts, asdict(config), train_loader.images.device)
    try:
        for epoch in range(len(history) + 1, config.epochs + 1):
            start = time.perf_counter()
            train_loader.epoch = epoch
            train_loss, train_accuracy = train_epoch(model, train_loader, optimizers, averages)
            val_loss, val_accuracy = evaluate(averaged, val_loader)
            rate = config.learning_rate * rate_factor(epoch / config.epochs, config)
            history.append({"epoch": epoch, "learning_rate": rate, "train_loss": train_loss,
                            "train_accuracy": train_accuracy, "val_loss": val_loss, "val_accuracy": val_accuracy,
                            "seconds": time.perf_counter() - start})
            if checkpoint is not None:
                save_checkpoint(checkpoint, parts, asdict(config), train_loader.images.device, history)
            on_epoch(history[-1], config, averaged)
        if checkpoint is not None:
            Path(checkpoint).unlink()
    except KeyboardInterrupt:
        print(f"Interrupted after {len(history)} of {config.epochs} epochs: the model is kept as it is.")
    model.load_state_dict(averaged.state_dict())
    return history


def config_from_environment() -> Config:
    """The recipe, shortened to EPOCHS epochs where that environment variable is set, as for a quick look or in CI."""
    text, default = os.environ.get("EPOCHS", "").strip(), Config()
    if text and not (text.isdecimal() and 0 < int(text) <= default.epochs):
        raise ValueError(f"EPOCHS={text} is not a whole number from 1 to {default.epochs}: change it, or unset it for "
                         f"the full run of {default.epochs}")
    return replace(default, epochs=int(text)) if text else default


def load_run(path: str | Path) -> tuple[Net, Config, dict]:
    """Load a stored run: the trained network, on the CPU, its recipe and the whole record; ValueError if unfit."""
    try:
        run = torch.load(path, map_location="cpu", weights_only=True)  # never runs code from the file
        config = Config(**run["config"])
        model = Net(dropout=config.dropout)
        model.load_state_dict(run["state_dict"])
    except Exception as error:  # whatever damage does to the reading of a file
        raise ValueError(f"{path} does not hold a run of this network and this code ({error}): restore it with 'git "
                         "checkout', or make it anew with 'python benchmarks/notebook.py'") from error
    return model.eval(), config, run
