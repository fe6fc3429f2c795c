"""Every figure of the lesson, each from plain arguments: tensors, lists and numbers."""

import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator
from torch import Tensor

from model import IMAGE_SHAPE, NUM_CLASSES, LayerRow
from utils import TARGET, Config, rate_factor

# One style for all: legible when a phone shows a figure 340 pixels wide, on white in dark mode too, and in colours
# that survive colour blindness (Okabe and Ito, 2008, jfly.uni-koeln.de/color).
FIGURE_WIDTH = 6.4  # inches
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
plt.rcParams.update({
    "figure.facecolor": "white", "figure.dpi": 110, "figure.constrained_layout.use": True, "savefig.dpi": 200,
    "font.size": 10, "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, GREY]), "axes.grid": True,
    "grid.alpha": 0.3, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "image.cmap": "gray_r"})


def show_image(axis: plt.Axes, image: Tensor | np.ndarray, title: str = "", **options) -> None:
    """Draw one image (H, W) without axes, dark on light."""
    axis.imshow(np.asarray(image), **options)
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=10)
    axis.spines[:].set(visible=True, color="lightgray")


def plot_digits(images: Tensor, titles: list[str] | None = None, columns: int = 8, rows: list[str] | None = None
                ) -> Figure:
    """Draw images (N, 1, 28, 28) in rows of `columns`, below their titles and beside the names of the rows."""
    count, titles = math.ceil(len(images) / columns), [*(titles or []), *[""] * len(images)]
    height = 1 + 0.25 * max(title.count("\n") + bool(title) for title in titles)  # in widths of a digit
    size = FIGURE_WIDTH, FIGURE_WIDTH / columns * height * count
    figure, axes = plt.subplots(count, columns, squeeze=False, figsize=size)
    for axis, image, title in zip(axes.flat, images.cpu(), titles, strict=False):
        show_image(axis, image[0], title)
    for axis in axes.flat[len(images):]:
        axis.set_axis_off()
    for axis, name in zip(axes[:, 0], rows or [], strict=False):
        axis.set_ylabel(name, rotation="horizontal", ha="right", va="center")
    return figure


def plot_network(table: list[LayerRow]) -> Figure:
    """Draw a network from its `layer_table`, from the image down to the scores.

    The width of a box is in proportion to the side of its maps, its height grows with their number. The parameters of
    BatchNorm are counted with the convolution before it.
    """
    looks = {"Conv2d": ("{0}×{0} convolution", BLUE), "MaxPool2d": ("max pooling", ORANGE),
             "AvgPool2d": ("global average pooling", GREEN), "Linear": ("fully connected", GREEN)}
    boxes = [["image", IMAGE_SHAPE, GREY, "", ""]]
    for row in table:
        if row.layer in looks:
            name, colour = looks[row.layer]
            part = row.receptive_field < IMAGE_SHAPE[1] and row.layer != "Linear"
            sees = f"{row.receptive_field}×{row.receptive_field}" if part else "all"
            boxes.append([name.format(row.kernel), row.output, colour, row.parameters, sees])
        elif row.parameters:
            boxes[-1][3] += row.parameters
    figure, axis = plt.subplots(figsize=(FIGURE_WIDTH, 0.48 * len(boxes)))
    y, middle = 0.0, 0.22
    for name, size, colour, parameters, sees in boxes:
        side = size[-1] if len(size) == 3 else 1
        height, width = 0.3 + size[0] / 40, max(0.012, 0.44 * side / IMAGE_SHAPE[1])
        axis.add_patch(Rectangle((middle - width / 2, y), width, height, color=colour, linewidth=0))
        inside = width > 0.14  # there is room for the label
        axis.text(middle if inside else middle + width / 2 + 0.01, y + height / 2, "×".join(map(str, size)),
                  ha="center" if inside else "left", va="center",
                  color="white" if inside and colour != GREY else "black")
        for x, text in (0.47, name), (0.87, f"{parameters:,}" if parameters else "–"), (1.0, sees):
            axis.text(x, y + height / 2, text, ha="left" if text == name else "right", va="center")
        y += height + 0.16
    for x, text in (0.47, "layer"), (0.87, "parameters"), (1.0, "sees"):
        axis.text(x, -0.35, text, ha="left" if text == "layer" else "right", va="center", color="dimgray")
    axis.set(xlim=(0, 1), ylim=(y, -0.6))
    axis.set_axis_off()
    return figure


def plot_singular_values(before: Tensor, after: Tensor) -> Figure:
    """Draw the singular values of a matrix, from large to small, before and after it was orthogonalised."""
    figure, axes = plt.subplots(1, 2, figsize=(FIGURE_WIDTH, 2.4))
    for axis, values, title, colour in zip(axes, (before, after), ("the gradient", "orthogonalised"), (ORANGE, BLUE),
                                           strict=True):
        axis.bar(range(1, len(values) + 1), (values / values.max()).tolist(), color=colour)
        axis.set(title=title, xlabel="direction", ylim=(0, 1.05))
    axes[0].set_ylabel("share of the largest")
    return figure


def logarithmic(axis: plt.Axes) -> None:
    """Make the vertical axis logarithmic, with plain numbers at 1, 2 and 5 in each decade."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()


def plot_history(history: list[dict], config: Config) -> Figure:
    """Draw loss, error (logarithmic, with the target) and the learning rate of every step against the epoch.

    ValueError if no epoch has finished.
    """
    if not history:
        raise ValueError("no epoch has finished, so there is nothing to draw: train first, for an epoch at least")
    epochs = [row["epoch"] for row in history]
    figure, (loss, error, rate) = plt.subplots(3, 1, figsize=(FIGURE_WIDTH, 7), sharex=True, height_ratios=(3, 4, 2))
    for name, label, style, colour in ("train", "training", "o--", ORANGE), ("val", "validation", "o-", BLUE):
        loss.plot(epochs, [row[f"{name}_loss"] for row in history], style, color=colour, label=label)
        error.plot(epochs, [100 - row[f"{name}_accuracy"] for row in history], style, color=colour, label=label)
    error.axhline(100 - TARGET, color="black", linestyle=":", label=f"target: {100 - TARGET:.1f} % ({TARGET} % right)")
    for axis, name in ((loss, "cross-entropy"), (error, "wrong (%)")):
        logarithmic(axis)
        axis.set_ylabel(name)
    error.set_ylim(bottom=min(0.2, error.get_ylim()[0]))
    peak = config.warmup_fraction * config.epochs
    progress = np.unique(np.append(np.linspace(0, config.epochs, 200), peak))
    peak_rate = config.muon_lr if config.optimizer == "muon" else config.sgd_lr
    rate.plot(progress, [peak_rate * rate_factor(p / config.epochs, config) for p in progress], color=GREEN)
    rate.annotate(f"peak {peak_rate:g}", (peak, peak_rate), xytext=(8, 2), textcoords="offset points")
    rate.margins(y=0.25)
    rate.set(ylabel="learning rate", xlabel="epochs of training", xlim=(0, config.epochs + 0.1))
    for axis in (loss, error, rate):
        axis.axvspan(config.epochs * (1 - config.no_aug_fraction), config.epochs, color=GREY, alpha=0.15, linewidth=0,
                     label="images as they are" if axis is error else None)
    rate.xaxis.get_major_locator().set_params(integer=True)
    error.legend()
    return figure


def plot_average(averaged: list[float], plain: list[float]) -> Figure:
    """Draw the error of the averaged and of the plain weights (accuracies in percent, one per epoch)."""
    figure, axis = plt.subplots(figsize=(FIGURE_WIDTH, 2.6))
    for accuracies, label, style, colour in ((plain, "the weights themselves", "o--", ORANGE),
                                             (averaged, "their moving average", "o-", BLUE)):
        axis.plot(range(1, len(accuracies) + 1), [100 - a for a in accuracies], style, label=label, color=colour)
    logarithmic(axis)
    axis.set(xlabel="epoch", ylabel="wrong (%)", ylim=(min(0.2, axis.get_ylim()[0]), None))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend()
    return figure


def plot_confusion(labels: Tensor, predicted: Tensor) -> Figure:
    """Draw how many images of each true digit (rows) were taken for each digit (columns); colour shows the errors."""
    pairs = NUM_CLASSES * labels.cpu() + predicted.cpu()
    counts = torch.bincount(pairs, minlength=NUM_CLASSES**2).view(NUM_CLASSES, NUM_CLASSES)
    errors = counts - counts.diag().diag()
    figure, axis = plt.subplots(figsize=(FIGURE_WIDTH, 5.2))
    axis.imshow(errors.numpy(), cmap="Oranges", vmax=1.5 * max(1, errors.max().item()))
    for true, taken in counts.nonzero().tolist():
        axis.text(taken, true, f"{counts[true, taken]}", ha="center", va="center")
    axis.set(xlabel="predicted digit", ylabel="true digit", xticks=range(NUM_CLASSES), yticks=range(NUM_CLASSES))
    axis.grid(False)
    return figure


def plot_confidence(bins: list[tuple[float, float, int]], least: int = 10) -> Figure:
    """Draw how often answers of each probability are right, from the bins of `calibration` with `least` images."""
    bins = [b for b in bins if b[2] >= least]
    figure, axis = plt.subplots(figsize=(FIGURE_WIDTH, 3.4))
    lowest = 100 * min(min(b[:2]) for b in bins) - 10
    axis.plot([lowest, 100], [lowest, 100], ":", color="black", label="right as often as the probability says")
    axis.plot([100 * b[0] for b in bins], [100 * b[1] for b in bins], "o-", label="this network")
    for confidence, accuracy, count in bins:
        axis.annotate(f"{count:,}", (100 * confidence, 100 * accuracy), xytext=(-4, 6), textcoords="offset points",
                      ha="right", fontsize=9, color="dimgray")
    axis.set(xlabel="probability of the answer (%); beside each point, its images", ylabel="answers that are right (%)")
    axis.legend(loc="upper left")
    return figure


def plot_class_maps(images: Tensor, maps: Tensor, titles: list[str]) -> Figure:
    """Lay over each image (N, 28, 28) the map (N, H, W) whose mean is the score of the predicted digit.

    Since most layers do not pad, the centres of what its values see lie in the middle of the image, 2 pixels apart.
    """
    figure, axes = plt.subplots(2, len(images) // 2, figsize=(FIGURE_WIDTH, 4))
    limit = maps.abs().max().item()
    for axis, image, heat, title in zip(axes.flat, images.cpu(), maps.cpu(), titles, strict=True):
        show_image(axis, image, title)
        low, high = 13.5 - len(heat), 13.5 + len(heat)
        drawn = axis.imshow(heat.numpy(), cmap="PuOr_r", vmin=-limit, vmax=limit, alpha=0.6, interpolation="bilinear",
                            extent=(low, high, high, low))
        axis.set(xlim=(-0.5, 27.5), ylim=(27.5, -0.5))  # the whole image again
    figure.colorbar(drawn, ax=axes, label="for (+) or against (−) the digit", shrink=0.8)
    return figure


def plot_maps(image: Tensor, maps: dict[str, Tensor], columns: int = 6) -> Figure:
    """Draw an image (H, W), and below it the first maps (C, H, W) that each part of a network answers with."""
    figure, axes = plt.subplots(len(maps) + 1, columns, figsize=(FIGURE_WIDTH, 0.85 * (len(maps) + 1)))
    for axis in axes.flat:
        axis.set_axis_off()
    for line, (name, values) in zip(axes, {"image": image[None], **maps}.items(), strict=True):
        limit = values.abs().max().item()
        options = {} if name == "image" else {"cmap": "PuOr_r", "vmin": -limit, "vmax": limit}
        for axis, value in zip(line, values, strict=False):
            axis.set_axis_on()
            show_image(axis, value, **options)
        line[0].set_ylabel(name, rotation="horizontal", ha="right", va="center")
    bar = figure.colorbar(plt.cm.ScalarMappable(plt.Normalize(-1, 1), "PuOr_r"), ax=axes, shrink=0.5, ticks=[-1, 0, 1])
    bar.set_ticklabels(["negative", "0", "positive"])
    return figure


def plot_preparation(steps: dict[str, np.ndarray], probabilities: Tensor) -> Figure:
    """Draw the steps (H, W) of the preparation of a photo, and the ten probabilities."""
    figure, axes = plt.subplots(1, len(steps) + 1, figsize=(FIGURE_WIDTH, FIGURE_WIDTH / (len(steps) + 1) + 0.3))
    for axis, (name, pixels) in zip(axes, steps.items(), strict=False):
        show_image(axis, pixels, name, cmap="gray" if name == "grey" else "gray_r", vmin=0, vmax=1)
    axes[-1].bar(range(NUM_CLASSES), probabilities.tolist())
    axes[-1].set(xticks=range(NUM_CLASSES), yticks=[], ylim=(0, 1))
    axes[-1].set_title(f"predicted: {int(probabilities.argmax())}", fontsize=10)
    axes[-1].tick_params(labelsize=8)
    return figure
