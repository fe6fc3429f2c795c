"""Every figure of the lesson; each function takes what it draws and returns a Matplotlib figure."""

import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator
from PIL import Image
from torch import Tensor

from model import IMAGE_SHAPE, NUM_CLASSES, LayerRow
from utils import TARGET, Config

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


def plot_digits(images: Tensor, titles: list[str] | None = None, rows: list[str] | None = None) -> Figure:
    """Draw images (N, 1, 28, 28), eight in a row, below their titles and beside the names of the rows."""
    titles = titles or []
    count = max(1, math.ceil(len(images) / 8))
    lines = max((title.count("\n") + 1 for title in titles), default=0)
    height = 0.75 * count + 0.2 * lines * math.ceil(len(titles) / 8)
    figure, axes = plt.subplots(count, 8, squeeze=False, figsize=(FIGURE_WIDTH, height))
    for number, axis in enumerate(axes.flat):
        if number < len(images):
            show_image(axis, images[number, 0].cpu(), titles[number] if number < len(titles) else "")
        else:
            axis.set_axis_off()
    for axis, name in zip(axes[:, 0], rows or [], strict=False):
        axis.set_ylabel(name, rotation="horizontal", ha="right", va="center")
    return figure


LOOKS = {  # of the layers that are drawn
    "image": ("image", GREY), "Conv2d": ("{0}×{0} convolution", BLUE), "MaxPool2d": ("max pooling", ORANGE),
    "AvgPool2d": ("average pooling", GREEN), "AdaptiveAvgPool2d": ("average pooling", GREEN),
    "Linear": ("fully connected", GREEN)}


def plot_network(layers: list[LayerRow]) -> Figure:
    """Draw a network from its `layer_table`: the wider a bar, the larger are its maps, the thicker, the more they are.

    The parameters of BatchNorm are counted with the convolution before it.
    """
    rows, parameters = [], []
    for row in layers:
        if row.layer in LOOKS:
            rows.append(row)
            parameters.append(row.parameters)
        else:
            parameters[-1] += row.parameters
    names, colours = zip(*(LOOKS[row.layer] for row in rows), strict=True)
    widths = np.array([row.output[-1] if len(row.output) == 3 else 1 for row in rows])
    channels = np.array([row.output[0] for row in rows])
    seen = [min(row.receptive_field, IMAGE_SHAPE[1]) for row in rows]
    cells = [["×".join(map(str, row.output)), name.format(row.kernel), f"{number:,}", f"{side}×{side}"]
             for row, name, number, side in zip(rows, names, parameters, seen, strict=True)]
    figure, (bars, table) = plt.subplots(1, 2, figsize=(FIGURE_WIDTH, 0.4 * (len(rows) + 1)), width_ratios=[1, 2.2])
    bars.barh(range(1, len(rows) + 1), widths, 0.1 + 0.7 * channels / channels.max(), left=-widths / 2, color=colours)
    bars.set(ylim=(len(rows) + 0.5, -0.5))  # one line for each row of the table, and one for its head
    bars.set_axis_off()
    table.table(cells, colLabels=["maps", "layer", "parameters", "sees"], colWidths=[2, 3, 2, 1.4], bbox=(0, 0, 1, 1),
                cellLoc="right", colLoc="right", edges="open").auto_set_font_size(False)
    table.set_axis_off()
    return figure


def plot_singular_values(before: Tensor, after: Tensor) -> Figure:
    """Draw the singular values of a matrix, from large to small, before and after it was orthogonalised."""
    figure, axes = plt.subplots(1, 2, figsize=(FIGURE_WIDTH, 2.4))
    axes[0].bar(range(1, len(before) + 1), (before / before.max()).tolist(), color=ORANGE)
    axes[1].bar(range(1, len(after) + 1), (after / after.max()).tolist(), color=BLUE)
    axes[0].set(title="the gradient", xlabel="direction", ylabel="share of the largest", ylim=(0, 1.05))
    axes[1].set(title="orthogonalised", xlabel="direction", ylim=(0, 1.05))
    return figure


def plot_history(history: list[dict], config: Config) -> Figure:
    """Draw loss and error (both logarithmic, the error with the target) in training and validation by epoch."""
    epochs = [row["epoch"] for row in history]
    figure, (loss, error) = plt.subplots(2, 1, figsize=(FIGURE_WIDTH, 5.6), sharex=True)
    for name, label, style, colour in ("train", "training", "o--", ORANGE), ("val", "validation", "o-", BLUE):
        loss.plot(epochs, [row[f"{name}_loss"] for row in history], style, color=colour, label=label)
        error.plot(epochs, [100 - row[f"{name}_accuracy"] for row in history], style, color=colour, label=label)
    error.axhline(100 - TARGET, color="black", linestyle=":", label=f"target: {100 - TARGET:.1f} % ({TARGET} % right)")
    for axis, name in (loss, "cross-entropy"), (error, "wrong (%)"):
        axis.axvspan(config.augmented_epochs + 0.5, config.epochs + 0.5, color=GREY, alpha=0.15, linewidth=0,
                     label="images as they are")
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.set_ylabel(name)
    error.set_ylim(bottom=min(0.2, error.get_ylim()[0]))
    error.set(xlabel="epoch", xlim=(0.5, config.epochs + 0.5))
    error.xaxis.get_major_locator().set_params(integer=True)
    error.legend()
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
    bins = [row for row in bins if row[2] >= least]
    confidences = [100 * row[0] for row in bins]
    accuracies = [100 * row[1] for row in bins]
    lowest = min(confidences + accuracies) - 10
    figure, axis = plt.subplots(figsize=(FIGURE_WIDTH, 3.4))
    axis.plot([lowest, 100], [lowest, 100], ":", color="black", label="right as often as the probability says")
    axis.plot(confidences, accuracies, "o-", label="this network")
    axis.set(xlabel="probability of the answer (%)", ylabel="answers that are right (%)")
    axis.legend(loc="upper left")
    return figure


def plot_class_maps(images: Tensor, maps: Tensor, titles: list[str]) -> Figure:
    """Lay over each image (N, 28, 28) the map (N, H, W) whose mean is the score of the predicted digit.

    Since most layers do not pad, the centres of what its values see lie in the middle of the image, 2 pixels apart.
    """
    figure, axes = plt.subplots(2, math.ceil(len(images) / 2), squeeze=False, figsize=(FIGURE_WIDTH, 4))
    limit = maps.abs().max().item()
    for axis, image, heat, title in zip(axes.flat, images.cpu(), maps.cpu(), titles, strict=False):
        show_image(axis, image, title)
        low, high = 13.5 - len(heat), 13.5 + len(heat)
        drawn = axis.imshow(heat.numpy(), cmap="PuOr_r", vmin=-limit, vmax=limit, alpha=0.6, interpolation="bilinear",
                            extent=(low, high, high, low))
        axis.set(xlim=(-0.5, 27.5), ylim=(27.5, -0.5))  # the whole image again
    figure.colorbar(drawn, ax=axes, label="for (+) or against (−) the digit", shrink=0.8)
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


def plot_reading(image: Image.Image, answers: list[tuple[int, Tensor, tuple[float, ...]]]) -> Figure:
    """Draw a picture with the box, the digit and its probability of each answer of `handwriting.predict_digits`."""
    figure, axis = plt.subplots(figsize=(FIGURE_WIDTH, FIGURE_WIDTH * image.height / image.width))
    axis.imshow(image)
    axis.set_axis_off()
    for digit, probabilities, box in answers:
        left, right = box[0] * image.width, box[2] * image.width
        top, bottom = box[1] * image.height, box[3] * image.height
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=BLUE, linewidth=1.5))
        axis.annotate(f"{digit}\n{probabilities[digit]:.0%}", ((left + right) / 2, bottom), xytext=(0, -3),
                      textcoords="offset points", ha="center", va="top", color=BLUE)
    return figure
