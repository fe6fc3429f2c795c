"""Data, training and evaluation of the network; every number of the recipe is in `Config`."""

import copy
import ctypes
import gzip
import hashlib
import io
import math
import os
import platform
import sys
import time
import tokenize
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from numbers import Real
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torchvision.datasets import MNIST
from torchvision.datasets.utils import check_integrity, download_url
from tqdm import tqdm

from model import DROPOUT, IMAGE_SHAPE, NUM_CLASSES, Net, count_parameters, layer_table
from muon import Muon

ROOT = Path(__file__).resolve().parent
MEAN, STD = 0.1307, 0.3081  # of the training pixels in [0, 1]; the notebook measures them
TARGET, MAX_PARAMETERS, MAX_EPOCHS = 99.4, 20_000, 20  # asked: at least 99.4 %, fewer than the others


@dataclass(frozen=True)
class Config:
    """Every number of a training run. ValueError names a value that is out of range, and the range."""

    epochs: int = 12  # passes over the training images
    batch_size: int = 256  # images per step
    optimizer: str = "muon"  # of the convolutions' weights: "muon", or "sgd" for all parameters
    muon_lr: float = 0.04  # peak learning rate of Muon
    sgd_lr: float = 0.4  # peak learning rate of SGD, which trains BatchNorm and biases
    warmup_fraction: float = 0.1  # share of all steps in which the rate rises linearly; then it falls linearly
    start_factor: float = 0.04  # learning rate of the first step, as a share of the peak
    end_factor: float = 0.0  # learning rate after the last step, as a share of the peak
    momentum: float = 0.8  # share of the accumulated gradients that a step keeps
    weight_decay: float = 0.01  # pull of the convolutions' weights towards zero, times the learning rate
    label_smoothing: float = 0.01  # share of the target that is spread evenly over all classes
    ema_decay: float = 0.996  # share of the weights' moving average that a step keeps; 0: no average
    dropout: float = DROPOUT  # probability that a channel is zeroed in training
    degrees: float = 10  # rotation, either way
    translate: float = 0.08  # shift along each axis, either way, as a share of the image's side
    scale: float = 0.14  # zoom along each axis, either way, as a share of the digit's size
    shear: float = 10  # degrees by which vertical strokes lean, either way
    light_fraction: float = 0.3  # share of the augmented images of which the light is changed too, by the next three
    blur: float = 1.2  # up to this standard deviation, in pixels
    contrast: float = 0.6  # contrast lost at most, as a share; the ground grows lighter by up to what is lost
    noise: float = 0.2  # up to this standard deviation, black to white being 1
    no_aug_fraction: float = 0.2  # share of the steps, at the end, whose images are not augmented
    eval_batch_size: int = 200  # images per step in evaluation, where it matters to the speed alone
    precision: str = "auto"  # of training: "float32", "bfloat16", or "auto" for the faster on the device
    seed: int = 0  # start of every random stream

    def __post_init__(self) -> None:
        for field in fields(self):
            value, name = getattr(self, field.name), f"Config.{field.name}"
            if field.type is str:
                if value not in CHOICES[field.name]:
                    raise ValueError(f"{name} is {value!r}; it takes {' or '.join(map(repr, CHOICES[field.name]))}")
                continue
            low, high = int(field.name in AT_LEAST_ONE), 1 if field.name in SHARES + BELOW_ONE else math.inf
            if not isinstance(value, Real) or isinstance(value, bool) or not low <= value <= high:
                limits = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
                raise ValueError(f"{name} is {value!r}; it takes a number {limits}")
            if value == math.inf or (value == 1 and field.name in BELOW_ONE):
                raise ValueError(f"{name} is {value!r}; it takes a number below that")
            if value != field.type(value):
                raise ValueError(f"{name} is {value!r}; it takes a whole number")
            object.__setattr__(self, field.name, field.type(value))  # numpy's numbers become Python's


CHOICES = {"optimizer": ("muon", "sgd"), "precision": ("auto", "float32", "bfloat16")}
AT_LEAST_ONE = "epochs", "batch_size", "eval_batch_size"
SHARES = "warmup_fraction", "start_factor", "end_factor", "light_fraction", "contrast", "no_aug_fraction"
BELOW_ONE = "momentum", "label_smoothing", "ema_decay", "dropout", "scale"


def set_seed(seed: int) -> None:
    """Seed PyTorch, the only source of randomness here, and keep cuDNN deterministic and its float32 exact."""
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.backends.cudnn.allow_tf32 = False


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


def training_precision(config: Config, device: torch.device) -> str:
    """What `config.precision` means on the device: "auto" is bfloat16 where the hardware has instructions for it."""
    if config.precision != "auto":
        return config.precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # older versions of torch cannot tell
        fast = device.type == "cpu" and getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16", False)
    return "bfloat16" if fast else "float32"


def memory_format_for(device: torch.device) -> torch.memory_format:
    """channels_last, in which convolutions are faster; but BatchNorm's gradients in it have been wrong on MPS."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last  # pytorch/pytorch#175189


def load_mnist(train: bool, root: str | Path = ROOT / "data") -> tuple[Tensor, Tensor]:
    """Return the images (N, 1, 28, 28) as uint8 and the labels (N,) as int64, N being 60,000 or 10,000.

    The archives lie in `root`/MNIST/raw, where torchvision's MNIST expects them too; nothing is unpacked to the disk.
    RuntimeError names an archive that is missing or damaged and cannot be downloaded.
    """
    archives = MNIST.resources[:2] if train else MNIST.resources[2:]
    images, labels = (read_idx(Path(root) / "MNIST" / "raw" / name, md5) for name, md5 in archives)
    return images.view(-1, *IMAGE_SHAPE), labels.long()


def read_idx(path: Path, md5: str) -> Tensor:
    """The values in an MNIST archive as a flat tensor, without the header; it is downloaded if its MD5 sum is wrong."""
    if not check_integrity(path, md5):
        state = "damaged" if path.exists() else "missing"
        missing = [folder for folder in list(path.parents)[:3] if not folder.exists()]
        if not any(download(mirror + path.name, path, md5) for mirror in MNIST.mirrors):
            for folder in missing:  # which the attempt may have made
                with suppress(OSError):
                    folder.rmdir()
            raise RuntimeError(f"{path} is {state} and could not be downloaded: restore it with 'git checkout -- "
                               "data', or connect to the network, and try again")
    content = bytearray(gzip.decompress(path.read_bytes()))
    return torch.frombuffer(content, dtype=torch.uint8, offset=4 + 4 * content[3])  # the 4th byte counts dimensions


def download(url: str, path: Path, md5: str) -> bool:
    """Whether the file could be fetched, whole."""
    try:
        download_url(url, path.parent, md5=md5)
    except (RuntimeError, OSError) as error:
        print(f"{url}: {error}")
        return False
    return True


def normalise(images: Tensor) -> Tensor:
    """Bring float images in [0, 1] to the form that the network takes: over MNIST, mean 0 and standard deviation 1."""
    if not images.is_floating_point():
        raise TypeError(f"the images are {images.dtype}; normalise takes floats in [0, 1]: images.float() / 255")
    return (images - MEAN) / STD


def augment(images: Tensor, config: Config, generator: torch.Generator) -> Tensor:
    """Change the shape of each of the float images (N, 1, H, W) in [0, 1], and the light of a random part of them."""
    images = change_shape(images, config, generator)
    if count := round(config.light_fraction * len(images)):
        part = torch.randperm(len(images), generator=generator, device=images.device)[:count]
        images[part] = change_light(images[part], config, generator)
    return images


def change_shape(images: Tensor, config: Config, generator: torch.Generator) -> Tensor:
    """Rotate, shear, scale and shift each of the images (N, 1, H, W), whose background is 0, by its own amounts.

    The amounts are drawn evenly from ± the strengths in `config`, for scale and shift one along each axis; the whole
    batch is resampled in one call, after Jaderberg et al., "Spatial transformer networks", 2015.
    """
    angle, shear, *draws = 2 * torch.rand(6, len(images), generator=generator, device=images.device) - 1
    angle, shear = angle * math.radians(config.degrees), torch.tan(shear * math.radians(config.shear))
    x_zoom, y_zoom = (1 + draw * config.scale for draw in draws[:2])
    x_shift, y_shift = (draw * 2 * config.translate for draw in draws[2:])  # the grid's unit is half a side
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = [cos / x_zoom, (cos * shear - sin) / x_zoom, x_shift, sin / y_zoom, (sin * shear + cos) / y_zoom, y_shift]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), images.shape, align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def change_light(images: Tensor, config: Config, generator: torch.Generator) -> Tensor:
    """Blur each of the images (N, 1, H, W) in [0, 1], take contrast from it and add noise, by its own amounts.

    The amounts are drawn evenly from 0 to the strengths in `config`; the result is in [0, 1] again.
    """
    draws = torch.rand(4, len(images), 1, 1, 1, generator=generator, device=images.device)
    blur, loss, lift, noise = draws[0] * config.blur, draws[1] * config.contrast, draws[2], draws[3] * config.noise
    pixel = torch.arange(images.shape[-1], device=images.device)
    distance = (pixel[:, None] - pixel).float()
    kernel = torch.exp(-0.5 * (distance / blur.clamp(min=0.1)) ** 2)  # of one image: row i holds the weights of pixel i
    kernel = kernel / kernel.sum(-1, keepdim=True)
    images = kernel @ images @ kernel.mT  # down the columns and along the rows
    images = (1 - loss) * images + loss * lift
    grain = torch.randn(images.shape, generator=generator, device=images.device)
    return (images + noise * grain).clamp(0, 1)


class Loader:
    """Batches of normalised images and their labels, made on the device that holds the whole data set.

    `images` are uint8 (N, 1, 28, 28) and `labels` int64 (N,), as `load_mnist` returns them; ValueError says what is
    wrong with them. A training loader shuffles and augments, always in the same way for the same `epoch` and seed, and
    each whole pass over it in training advances the epoch, from 1; an evaluation loader does neither.
    """

    def __init__(self, images: Tensor, labels: Tensor, config: Config, device: torch.device, train: bool) -> None:
        images, labels = torch.as_tensor(images), torch.as_tensor(labels)
        if images.dtype != torch.uint8 or images.shape[1:] != IMAGE_SHAPE or not len(images):
            raise ValueError(f"the images are {images.dtype} of shape {tuple(images.shape)}; they must be torch.uint8, "
                             f"from 0 to 255, of shape (N, 1, 28, 28) with N > 0")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(f"the labels are {labels.dtype} of shape {tuple(labels.shape)}; they must be torch.int64, "
                             f"one for each of the {len(images):,} images")
        if labels.min() < 0 or labels.max() >= NUM_CLASSES:
            raise ValueError(f"labels run from {labels.min()} to {labels.max()}; they may run from 0 to "
                             f"{NUM_CLASSES - 1}")
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
        for step, indices in enumerate(order.split(self.batch_size)):
            images = self.images[indices].float() / 255
            progress = (self.epoch - 1 + step / len(self)) / self.config.epochs
            if self.train and progress < 1 - self.config.no_aug_fraction:
                images = augment(images, self.config, generator)
            yield normalise(images).to(memory_format=memory_format_for(images.device)), self.labels[indices]
        if self.train and torch.is_grad_enabled():  # a pass without gradients, as in `predict`, trains nothing
            self.epoch += 1


@torch.no_grad()
def update_ema(averages: list[Tensor], values: list[Tensor], step: int, decay: float) -> None:
    """Move each average towards its value: Polyak and Juditsky, "Acceleration of stochastic approximation", 1992.

    The share that an average keeps rises with the steps, from 0.1 to `decay`, so that the random start is soon
    forgotten. (PyTorch's AveragedModel averages too, but makes the host wait for a GPU in every step.)
    """
    kept = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(averages, values, 1 - kept)  # one operation for all of them: a GPU has less to launch


def averaged_values(model: nn.Module) -> list[Tensor]:
    """The weights and BatchNorm's statistics, which `update_ema` averages; not its count of batches."""
    return [value for value in model.state_dict().values() if value.is_floating_point()]


def rate_factor(progress: float, config: Config) -> float:
    """The learning rate, as a share of its peak, after the share `progress` of all steps."""
    return float(np.interp(progress, [0, config.warmup_fraction, 1], [config.start_factor, 1, config.end_factor]))


def make_optimizers(model: nn.Module, config: Config, steps: int) -> list[tuple[Optimizer, LRScheduler]]:
    """The optimizer of the convolutions' weights and that of the rest, each with the schedule of its learning rate."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    options = {"momentum": config.momentum, "weight_decay": config.weight_decay}
    first = Muon(weights, config.muon_lr, **options) if config.optimizer == "muon" else \
        SGD(weights, config.sgd_lr, **options)
    optimizers = [first, SGD([p for p in model.parameters() if p.ndim <= 1], config.sgd_lr, momentum=config.momentum)]
    return [(o, LambdaLR(o, lambda step: rate_factor(step / steps, config))) for o in optimizers]


def train_epoch(model: nn.Module, loader: Loader, optimizers: list[tuple[Optimizer, LRScheduler]],
                ema_model: nn.Module) -> tuple[float, float]:
    """Train `model` and its average for an epoch; return the mean loss and the accuracy (percent), as in training.

    Losses stay on the device and are read when the progress bar is drawn, about twice a second, not in every step.
    FloatingPointError names the epoch and the step in which the loss stopped being finite.
    """
    device, config, epoch = loader.images.device, loader.config, loader.epoch
    total, seen, bfloat16 = len(loader.labels), 0, training_precision(config, device) == "bfloat16"
    losses, correct = torch.zeros(len(loader), device=device), torch.zeros((), dtype=torch.int64, device=device)
    averages, values = averaged_values(ema_model), averaged_values(model)
    model.train()
    with tqdm(total=total, desc=f"epoch {epoch:2}/{config.epochs}", unit=" images", leave=False,
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
            update_ema(averages, values, (epoch - 1) * len(loader) + step, config.ema_decay)
            losses[step] = loss.detach() * len(labels)
            correct += (logits.argmax(1) == labels).sum()
            seen += len(labels)
            if bar.update(len(labels)):  # the bar was drawn: fetch what it shows the next time
                mean, accuracy = sum_of_losses(losses, epoch, config) / seen, 100 * correct.item() / seen
                bar.set_postfix(loss=f"{mean:.4f}", accuracy=f"{accuracy:.2f} %", refresh=False)
    return sum_of_losses(losses, epoch, config) / total, 100 * correct.item() / total


def sum_of_losses(losses: Tensor, epoch: int, config: Config) -> float:
    """The sum of the losses, one per step; FloatingPointError if one of them is not finite."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = bad[0].item()
        raise FloatingPointError(
            f"the training loss became {losses[step].item()} in epoch {epoch}, step {step + 1} of {len(losses)}: "
            f"try a smaller muon_lr than {config.muon_lr}, or sgd_lr than {config.sgd_lr}")
    return losses.sum().item()


@torch.no_grad()
def predict(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The logits (N, 10), in float32, and the labels (N,) of a loader's images, in its order, on the model's device.

    The mode of every part of the model, training or evaluation, is left as it was.
    """
    device, modes = next(model.parameters()).device, [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        logits, labels = zip(*((model(images.to(device)), labels.to(device)) for images, labels in loader), strict=True)
    finally:
        for module, training in modes:
            module.training = training
    return torch.cat(logits), torch.cat(labels)


def evaluate(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """The mean cross-entropy and the accuracy in percent over a loader's images, as the loader yields them."""
    logits, labels = predict(model, loader)
    correct = (logits.argmax(1) == labels).sum().item()
    return F.cross_entropy(logits, labels).item(), 100 * correct / len(labels)


def print_epoch(row: dict, config: Config, _model: nn.Module) -> None:
    """Print one row of the history."""
    print(f"epoch {row['epoch']:2}/{config.epochs} | training: loss {row['train_loss']:.4f}, "
          f"accuracy {row['train_accuracy']:.2f} % | validation: loss {row['val_loss']:.4f}, "
          f"accuracy {row['val_accuracy']:.2f} % | {row['seconds']:4.1f} s")


def fit(model: nn.Module, train_loader: Loader, val_loader: Loader, on_epoch: Callable = print_epoch) -> list[dict]:
    """Train `model` by the training loader's config, leave the averaged weights in it, and return one row per epoch.

    A row holds the epoch, the loss and accuracy (percent) in training and, with the averaged weights, in validation,
    and the seconds for both; `on_epoch` is called with it, the config and the averaged model. Ctrl-C or the notebook's
    stop button ends the training early and keeps what there is.
    """
    config, history = train_loader.config, []
    reuse_memory()
    model.to(memory_format=memory_format_for(train_loader.images.device))
    optimizers = make_optimizers(model, config, steps=config.epochs * len(train_loader))
    ema_model = copy.deepcopy(model)
    train_loader.epoch = 1
    try:
        for epoch in range(1, config.epochs + 1):
            start = time.perf_counter()
            train_loss, train_accuracy = train_epoch(model, train_loader, optimizers, ema_model)
            val_loss, val_accuracy = evaluate(ema_model, val_loader)
            seconds = time.perf_counter() - start
            history.append({"epoch": epoch, "train_loss": train_loss, "train_accuracy": train_accuracy,
                            "val_loss": val_loss, "val_accuracy": val_accuracy, "seconds": seconds})
            on_epoch(history[-1], config, ema_model)
    except KeyboardInterrupt:
        print(f"Interrupted after {len(history)} of {config.epochs} epochs: the model is kept as it is. To train it "
              "from the start, make a new one and call fit again.")
    torch._foreach_copy_(averaged_values(model), averaged_values(ema_model))
    model.eval()  # or the next look at an image would change BatchNorm's statistics
    return history


def check_assignment(model: nn.Module, history: list[dict]) -> list[tuple[str, str, str, bool]]:
    """The assignment's requirements: each with what is asked for, what was measured, and whether that is enough."""
    table = layer_table(model)
    norms = sum(row.layer == "BatchNorm2d" for row in table)
    pooled = sum(row.layer in ("AvgPool2d", "AdaptiveAvgPool2d") and row.output[1:] == (1, 1) for row in table)
    dropouts = [layer.p for layer in model.modules() if isinstance(layer, (nn.Dropout, nn.Dropout2d))]
    parameters, epochs, accuracy = count_parameters(model), len(history), history[-1]["val_accuracy"] if history else 0
    return [
        ("validation accuracy, last epoch", f"at least {TARGET} %", f"{accuracy:.2f} %", accuracy >= TARGET),
        ("parameters", f"fewer than {MAX_PARAMETERS:,}", f"{parameters:,}", parameters < MAX_PARAMETERS),
        ("epochs", f"fewer than {MAX_EPOCHS}", f"{epochs}", 0 < epochs < MAX_EPOCHS),
        ("BatchNorm", "used", f"{norms} layers", norms > 0),
        ("Dropout", "used", f"{len(dropouts)} layers, p = {max(dropouts, default=0)}", max(dropouts, default=0) > 0),
        ("global average pooling", "used", f"{pooled} layer", pooled > 0),
    ]


def calibration(confidence: Tensor, correct: Tensor, bins: int = 15) -> tuple[list[tuple[float, float, int]], float]:
    """Whether answers are right as often as their probabilities `confidence` (N,) say; `correct` (N,) is boolean.

    Returns the mean confidence, the accuracy and the number of images in each bin of equal width that has any, and the
    expected calibration error in points: the mean difference of the two, weighted by the images. Guo et al., "On
    calibration of modern neural networks", 2017.
    """
    rows, error = [], 0.0
    for low in range(bins):
        inside = (confidence > low / bins) & (confidence <= (low + 1) / bins)
        if inside.any():
            mean_confidence, accuracy = confidence[inside].mean().item(), correct[inside].float().mean().item()
            rows.append((mean_confidence, accuracy, int(inside.sum())))
            error += 100 * abs(mean_confidence - accuracy) * rows[-1][2] / len(confidence)
    return rows, error


def get_config(epochs: int = 0) -> Config:
    """The recipe, shortened to `epochs` or, if that is 0, to the environment variable EPOCHS, if that is set."""
    text, default = str(epochs or os.environ.get("EPOCHS", "")).strip(), Config()
    if text and not (text.isdecimal() and 0 < int(text) <= default.epochs):
        raise ValueError(f"EPOCHS={text} is not a whole number from 1 to {default.epochs}: change it, or leave it out "
                         f"for the full run of {default.epochs}")
    return replace(default, epochs=int(text)) if text else default


def describe_environment(device: torch.device) -> dict[str, str]:
    """What a result depends on besides recipe, code and seed: the device and the versions."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", platform.machine())
        name += f", threads: {torch.get_num_threads()}"
    return {"device": f"{device.type.upper()} ({name})", "python": platform.python_version(),
            "torch": str(torch.__version__), "torchvision": str(torchvision.__version__)}


def code_hash() -> str:
    """Twelve hexadecimal digits that change with the code a training depends on, but not with what is said about it."""
    text = "".join(strip_comments((ROOT / name).read_text(encoding="utf-8"))
                   for name in ("model.py", "muon.py", "utils.py"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def strip_comments(source: str) -> str:
    """The tokens of Python source without comments, docstrings and blank lines, alike for every version of Python."""
    kept, line = [], []
    ends, middle = {tokenize.INDENT: "\t", tokenize.DEDENT: "\b"}, getattr(tokenize, "FSTRING_MIDDLE", None)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NEWLINE:
            if len(line) > 1 or line[0][-1] not in ("'", '"'):  # a string that is a whole line is a docstring
                kept += [*line, "\n"]
            line = []
        elif token.type in ends:
            kept.append(ends[token.type])
        elif token.type not in (tokenize.COMMENT, tokenize.NL):
            text = token.string
            if token.type == middle:  # Python 3.12 splits f-strings, drops spaces there and halves double braces
                text = text.replace("{", "{{").replace("}", "}}")
            line.append(text.replace(" ", ""))
    return "".join(kept)


def atomic_write(path: str | Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a temporary file that then takes the place of `path`: a failure leaves the old file whole."""
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.replace(path)
    except BaseException as error:  # Ctrl-C, too, leaves no half file behind
        with suppress(OSError):
            temporary.unlink()
        if not isinstance(error, (OSError, RuntimeError)):
            raise
        raise OSError(f"{path} was not written ({error}): free some space or make its folder writable") from error


def save_run(path: str | Path, model: nn.Module, config: Config, history: list[dict]) -> None:
    """Save the weights with the recipe, the history, the device, the precision, the versions and the code's hash."""
    device = next(model.parameters()).device
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    run = {"state_dict": weights, "config": asdict(config), "history": history, "code": code_hash(),
           "precision": training_precision(config, device), "environment": describe_environment(device)}
    atomic_write(path, lambda temporary: torch.save(run, temporary))


def load_run(path: str | Path) -> tuple[Net, Config, dict]:
    """Load a stored run: the trained network, on the CPU, its recipe and the whole record.

    FileNotFoundError without the file; ValueError if it holds something else.
    """
    content = io.BytesIO(Path(path).expanduser().read_bytes())
    try:
        run = torch.load(content, map_location="cpu", weights_only=True)  # never runs code from the file
        config = Config(**run["config"])
        model = Net(dropout=config.dropout)
        model.load_state_dict(run["state_dict"])
    except Exception as error:  # whatever damage does to the reading of a file
        raise ValueError(f"{path} does not hold a run of this network and this code ({type(error).__name__}): after a "
                         "change of model.py it need not; else restore it with 'git checkout', or make it anew with "
                         "'python run_notebook.py'") from error
    return model.eval(), config, run
