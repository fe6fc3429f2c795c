"""Recipe, training and evaluation of the network; saving and loading a run; the check of the assignment."""

import ctypes
import json
import platform
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from model import DROPOUT, Net, count_parameters, layer_table
from muon import Muon

ROOT = Path(__file__).resolve().parent
TARGET, MAX_PARAMETERS, MAX_EPOCHS = 99.4, 20_000, 20  # required: ≥ 99.4 %, < 20,000 parameters, < 20 epochs


@dataclass(frozen=True)
class Config:
    """The recipe of a training run."""

    epochs: int = 18  # passes over the training images
    batch_size: int = 256  # digits per step
    optimizer: str = "muon"  # of the layers' weights, or "sgd"; BatchNorm and biases always have SGD
    muon_lr: float = 0.04  # learning rate of Muon, at the start
    sgd_lr: float = 0.4  # learning rate of SGD, at the start
    end_factor: float = 0.0  # learning rate at the end, as a share of that at the start; in between it falls linearly
    momentum: float = 0.8  # share of the earlier gradients that each step keeps
    weight_decay: float = 0.01  # pull of the layers' weights towards zero, times the learning rate
    dropout: float = DROPOUT  # probability that a channel is zeroed in training
    degrees: float = 12  # rotation, either way
    translate: float = 0.08  # shift along each axis, either way, as a share of the image's side
    scale: float = 0.14  # zoom along each axis, either way, as a share of the digit's size
    shear: float = 10  # degrees by which vertical strokes lean, either way
    light_fraction: float = 0.25  # share of the images that are seen in another light, by the next three
    blur: float = 1.2  # up to this standard deviation, in pixels
    contrast: float = 0.6  # contrast lost at most, as a share; the ground grows lighter by up to what is lost
    noise: float = 0.25  # up to this standard deviation, black to white being 1
    look_fraction: float = 0.2  # share of the images with another look, by one of the next three
    filtering: float = 1  # largest share of a random filter's response
    lines: float = 1  # largest brightness of a line across the digit
    inversion: float = 1  # how far a strip across the image is inverted
    outlier_fraction: float = 0.06  # images added that are no single digit, as a share of the batch
    plain_epochs: int = 2  # epochs at the end whose images are shown as they are; the first epoch never is one
    precision: str = "auto"  # of training: "float32", "bfloat16", or "auto" for the faster on the device
    seed: int = 0  # start of all random numbers

    def __post_init__(self) -> None:
        """Refuse what would otherwise train something else in silence."""
        assert self.epochs >= 1, "a run has 1 epoch or more"
        assert self.optimizer in ("muon", "sgd"), "the optimizer is 'muon' or 'sgd'"
        assert self.precision in ("auto", "float32", "bfloat16"), "the precision is 'auto', 'float32' or 'bfloat16'"

    @property
    def augmented_epochs(self) -> int:
        """The number of epochs, at the start, whose images are augmented."""
        return max(1, self.epochs - self.plain_epochs)


def set_seed(seed: int) -> None:
    """Seed PyTorch, the only source of random numbers here, and keep cuDNN deterministic and its float32 exact."""
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False


def make_fast(model: nn.Module) -> None:
    """Use the order in memory in which convolutions are faster, and keep the memory of each step for the next one."""
    if next(model.parameters()).device.type != "mps":  # where BatchNorm's gradients are wrong: pytorch/pytorch#175189
        model.to(memory_format=torch.channels_last)
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        # the GNU C library returns large blocks to the system at once; fetching them again takes an eighth of a step
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
    else:
        fast = device.type == "cpu" and cpu_capabilities().get("avx512_bf16", False)
    return "bfloat16" if fast else "float32"


def cpu_capabilities() -> dict:
    """What PyTorch knows about the processor; older versions know nothing."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}


def make_optimizers(model: nn.Module, config: Config, steps: int) -> list[tuple[Optimizer, LambdaLR]]:
    """The optimizer of the convolutions' weights and that of the rest, each with the schedule of its learning rate."""

    def rate_factor(step: int) -> float:
        if step > steps:
            raise ValueError(f"the learning rate is planned for {steps} steps, which are over: make new optimizers")
        return 1 - (1 - config.end_factor) * step / steps

    weights = [p for p in model.parameters() if p.ndim > 1]  # of convolutions and fully connected layers
    others = [p for p in model.parameters() if p.ndim <= 1]  # BatchNorm's, and biases
    if config.optimizer == "muon":
        optimizers = [Muon(weights, config.muon_lr, config.momentum, config.weight_decay)]
    else:
        optimizers = [SGD(weights, config.sgd_lr, config.momentum, weight_decay=config.weight_decay)]
    if others:
        optimizers.append(SGD(others, config.sgd_lr, config.momentum))
    return [(optimizer, LambdaLR(optimizer, rate_factor)) for optimizer in optimizers]


def train_epoch(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]],
                optimizers: list[tuple[Optimizer, LambdaLR]], config: Config, title: str = "") -> tuple[float, float]:
    """Train for one epoch; return the mean loss and the accuracy (percent), as they were in training.

    The targets are digits (N,), or the probability of each digit (N, 10); the accuracy is that of the images whose
    target is wholly one digit.
    """
    device = next(model.parameters()).device
    bfloat16 = training_precision(config, device) == "bfloat16"
    loss_sum, right, digits = torch.zeros(3, device=device)  # `item()` in each step would have to wait for a GPU
    images_seen = 0
    model.train()
    for images, targets in tqdm(loader, title, unit=" batches", leave=False, file=sys.stdout, mininterval=0.5):
        images, targets = images.to(device), targets.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), targets)  # in 32 bits again
        model.zero_grad()
        loss.backward()
        for optimizer, schedule in optimizers:
            optimizer.step()
            schedule.step()
        loss_sum += loss.detach() * len(images)
        images_seen += len(images)
        right_here, digits_here = count_right(logits, targets)
        right += right_here
        digits += digits_here
    return loss_sum.item() / images_seen, 100 * right.item() / digits.item()


def count_right(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """How many images whose target is wholly one digit have their largest logit there, and how many there are."""
    if targets.ndim == 1:
        targets = F.one_hot(targets, logits.shape[1])
    is_digit = targets.amax(1) == 1
    is_right = logits.argmax(1) == targets.argmax(1)
    return (is_right & is_digit).sum(), is_digit.sum()


@torch.no_grad()
def predict(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The logits (N, 10) and the labels (N,) of a loader's images; the model is left in evaluation mode."""
    device = next(model.parameters()).device
    model.eval()
    logits, labels = [], []
    for images, batch_labels in loader:
        logits.append(model(images.to(device)))
        labels.append(batch_labels.to(device))
    return torch.cat(logits), torch.cat(labels)


def evaluate(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """The mean cross-entropy and the accuracy in percent over a loader's images."""
    logits, labels = predict(model, loader)
    correct = (logits.argmax(1) == labels).sum().item()
    return F.cross_entropy(logits, labels).item(), 100 * correct / len(labels)


def fit(model: nn.Module, train_loader, val_loader, config: Config) -> list[dict]:
    """Train `model`; return one row per epoch: loss and accuracy (percent) in training and in validation.

    In the last epochs the training loader goes without its transform: the network ends on images as they are, since it
    will be tested on such. Ctrl-C or the notebook's stop button ends the training early and keeps what there is.
    """
    make_fast(model)
    optimizers = make_optimizers(model, config, config.epochs * len(train_loader))
    transform = train_loader.transform
    history = []
    try:
        for epoch in range(1, config.epochs + 1):
            start = time.perf_counter()
            if epoch > config.augmented_epochs:
                train_loader.transform = None
            train_loss, train_accuracy = train_epoch(model, train_loader, optimizers, config, f"epoch {epoch:2}")
            val_loss, val_accuracy = evaluate(model, val_loader)
            seconds = time.perf_counter() - start
            history.append({"epoch": epoch, "train_loss": train_loss, "train_accuracy": train_accuracy,
                            "val_loss": val_loss, "val_accuracy": val_accuracy, "seconds": seconds})
            print(f"epoch {epoch:2}/{config.epochs} | "
                  f"training: loss {train_loss:.4f}, accuracy {train_accuracy:.2f} % | "
                  f"validation: loss {val_loss:.4f}, accuracy {val_accuracy:.2f} % | {seconds:4.1f} s")
    except KeyboardInterrupt:
        print(f"Interrupted after {len(history)} of {config.epochs} epochs: the model is kept as it is.")
    finally:
        train_loader.transform = transform
        model.eval()  # or the next look at an image would change BatchNorm's statistics
    return history


def check_assignment(model: nn.Module, history: list[dict]) -> list[tuple[str, str, str, bool]]:
    """The assignment's requirements: each with what is required, what was found, and whether that is enough.

    Layers are found where the image passes them; what is written as a function, such as `F.dropout`, is not seen.
    """
    layers = layer_table(model)
    norms = sum("BatchNorm" in row.layer for row in layers)
    dropouts = sum("Dropout" in row.layer for row in layers)
    pools = sum("AvgPool" in row.layer and row.output[1:] == (1, 1) for row in layers)
    parameters, epochs = count_parameters(model), len(history)
    accuracy = history[-1]["val_accuracy"] if history else 0
    return [
        ("validation accuracy, last epoch", f"≥ {TARGET} %", f"{accuracy:.2f} %", accuracy >= TARGET),
        ("parameters", f"< {MAX_PARAMETERS:,}", f"{parameters:,}", parameters < MAX_PARAMETERS),
        ("epochs", f"< {MAX_EPOCHS}", f"{epochs}", 0 < epochs < MAX_EPOCHS),
        ("BatchNorm", "used", f"{norms} layers", norms > 0),
        ("Dropout", "used", f"{dropouts} layers", dropouts > 0),
        ("global average pooling", "used", f"{pools} layers", pools > 0),
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
            mean_confidence = confidence[inside].mean().item()
            accuracy = correct[inside].float().mean().item()
            count = int(inside.sum())
            rows.append((mean_confidence, accuracy, count))
            error += 100 * abs(mean_confidence - accuracy) * count / len(confidence)
    return rows, error


def describe_environment(device: torch.device) -> dict[str, str]:
    """What a result depends on besides recipe, code and seed: the device and the versions."""
    name = cpu_capabilities().get("cpu_name", platform.machine()) + f", threads: {torch.get_num_threads()}"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {"device": f"{device.type.upper()} ({name})", "python": platform.python_version(),
            "torch": str(torch.__version__), "torchvision": str(torchvision.__version__)}


def save_run(path: str | Path, model: nn.Module, config: Config, history: list[dict]) -> None:
    """Save the weights of a `Net`, be it compiled or parallel, with the recipe, the history, the device and versions.

    RuntimeError if the network is another, which `load_run` could not read.
    """
    weights = {name.removeprefix("_orig_mod.").removeprefix("module."): value.detach().cpu().contiguous()
               for name, value in model.state_dict().items()}
    restore(weights)  # raises what `load_run` would
    device = next(model.parameters()).device
    rows = json.loads(json.dumps(history, default=float))  # NumPy's numbers become Python's
    run = {"state_dict": weights, "config": asdict(config), "history": rows,
           "precision": training_precision(config, device), "environment": describe_environment(device)}
    unfinished = Path(f"{path}.part")
    torch.save(run, unfinished)
    unfinished.replace(path)  # so that a full disk leaves the old file whole


def load_run(path: str | Path) -> tuple[Net, dict]:
    """Load a stored run: the trained network, on the CPU in evaluation mode, and the record it was saved with.

    FileNotFoundError without the file; ValueError if it holds something else.
    """
    with Path(path).expanduser().open("rb") as file:
        try:
            run = torch.load(file, map_location="cpu", weights_only=True)  # never runs the file's code
            return restore(run["state_dict"]), run
        except Exception:  # damage shows in many ways
            raise ValueError(f"{path} does not hold weights of this network: restore it with 'git checkout', or make "
                             "it anew with 'python run_notebook.py'") from None


def restore(weights: dict[str, Tensor]) -> Net:
    """The network with these weights, in evaluation mode; its width is in the shape of the first of them."""
    model = Net(width=len(next(iter(weights.values()))))
    model.load_state_dict(weights)
    return model.eval()
