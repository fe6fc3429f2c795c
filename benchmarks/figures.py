"""Every figure of the notebook and the pages: each function takes what it draws and returns the figure."""

import math
import statistics
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.accuracy import summarise  # noqa: E402
from checkpoint import write_whole  # noqa: E402
from model import CLASSES  # noqa: E402
from utils import TARGET  # noqa: E402


def plot_digits(images: Tensor, titles: list[str] | None = None, columns: int = 10,
                row_names: list[str] | None = None) -> Figure:
    """Draw images (N, 1, 28, 28) in rows of `columns`, dark on white, below their titles and beside the rows' names."""
    rows = math.ceil(len(images) / columns)
    titles = [*(titles or []), *[""] * len(images)]  # the last images may be without
    figure, axes = plt.subplots(rows, columns, squeeze=False, layout="constrained",
                                figsize=(columns, rows * (1.4 if any(titles) else 1)))
    size = max(9, 0.8 * columns)  # legible however the page scales the figure
    for axis, image, title in zip(axes.flat, images.cpu(), titles, strict=False):
        axis.imshow(image[0].numpy(), cmap="gray_r")
        axis.set_title(title, fontsize=size)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(color="lightgray", visible=axis.has_data())
    for axis, name in zip(axes[:, 0], row_names or [], strict=False):
        axis.set_ylabel(name, fontsize=size, rotation="horizontal", ha="right", va="center")
    return figure


def plot_history(history: list[dict]) -> Figure:
    """Draw loss, accuracy (with the target) and learning rate against the epoch."""
    epochs = [row["epoch"] for row in history]
    figure, (loss, accuracy, rate) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axis, key in ((loss, "loss"), (accuracy, "accuracy")):
        axis.plot(epochs, [row[f"train_{key}"] for row in history], "o--", label="training", markersize=4)
        axis.plot(epochs, [row[f"val_{key}"] for row in history], "o-", label="validation", markersize=4)
    loss.set_yscale("log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter("{x:g}")
    loss.minorticks_off()
    accuracy.axhline(TARGET, color="black", linestyle=":", label=f"target {TARGET} %")
    accuracy.set_ylim(98, 100)
    rate.plot(epochs, [row["learning_rate"] for row in history], "o-", color="tab:green", markersize=4)
    for axis, name in ((loss, "cross-entropy"), (accuracy, "accuracy (%)"), (rate, "learning rate at the epoch's end")):
        axis.set(xlabel="epoch", ylabel=name)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3, which="both")
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


def plot_seeds(chosen: list[dict], original: list[dict]) -> Figure:
    """Draw each seed's accuracy against the epoch, with mean and range, and the last epochs of both recipes."""
    curves = np.array([r["test_accuracy"] for r in chosen])
    epochs, low, high = np.arange(1, curves.shape[1] + 1), curves.min(axis=0), curves.max(axis=0)
    figure, (course, strip) = plt.subplots(1, 2, figsize=(12, 4.2), width_ratios=[2, 1], layout="constrained")
    course.plot(epochs, curves.T, color="tab:blue", alpha=0.2, linewidth=0.8)
    course.plot(epochs, curves.mean(axis=0), color="tab:blue", linewidth=2.5, label=f"mean of {len(chosen)} seeds")
    course.fill_between(epochs, low, high, color="tab:blue", alpha=0.15, label="their range")
    course.plot(epochs, np.stack([low, high], axis=1), color="tab:blue", linewidth=1.2)
    course.set(xlabel="epoch", ylabel="test accuracy (%)")
    course.set_ylim(bottom=low.min() - 0.05)
    course.xaxis.get_major_locator().set_params(integer=True)
    groups = [("chosen recipe", chosen, "tab:blue"), ("original recipe", original, "tab:orange")]
    for x, (_, runs, color) in enumerate(groups):
        last = [r["test_accuracy"][-1] for r in runs]
        strip.scatter(x + np.linspace(-0.2, 0.2, len(last)), last, color=color, alpha=0.7)
        strip.hlines(statistics.mean(last), x - 0.3, x + 0.3, color=color)
    strip.set(xticks=range(len(groups)), xticklabels=[f"{name}\n({len(runs)} seeds)" for name, runs, _ in groups],
              xlim=(-0.6, len(groups) - 0.4), ylabel="test accuracy after the last epoch (%)")
    for axis in (course, strip):
        axis.axhline(TARGET, color="black", linestyle=":", label=f"target {TARGET} %")
        axis.grid(alpha=0.3)
    course.legend(loc="lower right")
    return figure


def plot_recipes(groups: dict[str, list[dict]], key: str = "validation_accuracy") -> Figure:
    """Draw each recipe's last epochs on a line of its own: a faint dot per run, then mean and standard deviation."""
    figure, axis = plt.subplots(figsize=(9, 0.45 * len(groups) + 1), layout="constrained")
    for y, runs in enumerate(groups.values()):
        result = summarise(runs, key)
        axis.scatter([r[key][-1] for r in runs], [y] * len(runs), color="tab:blue", alpha=0.35)
        axis.errorbar(result.mean, y, xerr=result.sd, fmt="D", color="black", capsize=4, markersize=5)
    axis.set(yticks=range(len(groups)), yticklabels=list(groups), xlabel="accuracy after the last epoch (%)")
    axis.invert_yaxis()
    axis.grid(alpha=0.3)
    return figure


def draw_runs(axis: plt.Axes, groups: dict[int, list[dict]], label: str) -> None:
    """Draw each run's last test accuracy above the number of its group, faint, and the means of the groups, joined."""
    for number, runs in groups.items():
        axis.scatter([number] * len(runs), [r["test_accuracy"][-1] for r in runs], s=14, color="tab:blue", alpha=0.35)
    means = [summarise(runs).mean for runs in groups.values()]
    axis.plot(list(groups), means, "D-", color="tab:blue", markersize=5, label=label)
    axis.axhline(TARGET, color="black", linestyle=":", label=f"target {TARGET} %")
    axis.set_xscale("log")
    axis.set_xticks(list(groups), [f"{number:,}" for number in groups])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.set_ylabel("test accuracy after the last epoch (%)")


def plot_frontier(widths: dict[int, list[dict]], epochs: dict[int, list[dict]], public: list[dict]) -> Figure:
    """Draw accuracy against parameters, beside public results, and against the number of epochs.

    `widths` has the runs by number of parameters, `epochs` by number of epochs; a public result has `parameters` and
    `last_accuracy`, and beside its point stands its number in the list, from 1.
    """
    figure, (size, time) = plt.subplots(1, 2, figsize=(12, 4.8), width_ratios=[3, 2], layout="constrained")
    draw_runs(size, widths, "this architecture: every run and the means")
    size.scatter([p["parameters"] for p in public], [p["last_accuracy"] for p in public], marker="x",
                 color="tab:orange", label="public results, one run each")
    for number, point in enumerate(public, start=1):
        side, align = (4, "left") if number % 2 else (-4, "right")  # neighbours in the list may be so in the figure
        size.annotate(str(number), (point["parameters"], point["last_accuracy"]), textcoords="offset points",
                      xytext=(side, 3), ha=align, fontsize=8, color="saddlebrown")
    size.set_xlabel("parameters")
    size.legend(loc="lower left", fontsize=9)
    draw_runs(time, epochs, "every run and the means")
    time.set_xlabel("epochs (1 and 2 with recipes of their own)")
    time.legend(loc="lower right")
    return figure


def plot_robustness(distortions: dict[str, dict], other: dict[str, float],
                    examples: dict[str, tuple[str, Tensor]]) -> Figure:
    """Draw accuracy against the strength of each distortion, and on other handwriting, each with an example.

    The results are those of benchmarks/robustness.py; an example is its title and an image (1, 28, 28).
    """
    styles = {"chosen": ("o-", "tab:blue"), "original": ("s--", "tab:orange")}
    figure, axes = plt.subplots(2, 4, figsize=(13, 6.2), sharey=True, layout="constrained")
    for axis, (name, result) in zip(axes.flat, distortions.items(), strict=False):
        for network, (style, color) in styles.items():
            axis.plot(result["strengths"], result[network], style, color=color, markersize=4, label=f"{network} recipe")
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    axis = axes.flat[len(distortions)]
    for x, (network, (_, color)) in enumerate(styles.items()):
        axis.text(x, other[network] - 5, f"{other[network]:.1f}", ha="center", va="top", color="white")
        axis.bar(x, other[network], color=color)
    axis.set(xticks=range(len(styles)), xticklabels=styles, xlabel="other handwriting")
    for axis, (title, image), result in zip(axes.flat, examples.values(), distortions.values(), strict=False):
        left = 0.05 if result["chosen"][0] > 50 else 0.69  # on the side where the curves are high
        inset = axis.inset_axes((left, 0.05, 0.26, 0.26))
        inset.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
        inset.set(xticks=[], yticks=[])
        inset.set_title(title, fontsize=8, pad=2)
    for axis in axes[:, 0]:
        axis.set(ylabel="accuracy (%)", ylim=(0, 102))
    axes.flat[-1].axis("off")
    axes.flat[-1].legend(*axes.flat[0].get_legend_handles_labels(), loc="center")
    return figure


def plot_confidence(bins: list[tuple[float, float, int]], rest: Tensor) -> Figure:
    """Draw how often answers of each probability are right, and how accuracy rises as uncertain images are rejected.

    `bins` has the mean probability, the share of right answers and the number of images of each bin; `rest[k]` is the
    accuracy in percent without the k least certain images.
    """
    figure, (reliability, rejection) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    said, was, counts = zip(*bins, strict=True)
    images = reliability.twinx()
    images.bar(said, counts, width=0.04, color="lightgray", log=True)
    images.set(ylim=(0.5, 10 * max(counts)), ylabel="test images (grey bars)")
    reliability.set_zorder(images.get_zorder() + 1)
    reliability.patch.set_visible(False)
    reliability.plot([0, 1], [0, 1], color="black", linestyle=":", label="as often right as the probability says")
    reliability.plot(said, was, "o-", label="this network")
    reliability.set(xlabel="probability of the answer", ylabel="share of right answers", xlim=(0, 1.03), ylim=(0, 1.2),
                    yticks=np.linspace(0, 1, 6))  # above 1 there is only the legend
    reliability.legend(loc="upper left")
    rejection.plot(100 * np.arange(len(rest)) / len(rest), rest.numpy())
    rejection.axhline(99.9, color="black", linestyle=":", label="99.9 %")
    rejection.set(xlim=(0, 5), xlabel="least certain images rejected (%)", ylabel="accuracy on the rest (%)")
    rejection.legend(loc="lower right")
    for axis in (reliability, rejection):
        axis.grid(alpha=0.3)
    return figure


def plot_inside(kernels: Tensor, maps: dict[str, Tensor]) -> Figure:
    """Draw the kernels (C, 1, 3, 3) of the first layer, and the first 16 maps (C, H, W) that each part answers with."""
    rows = {"kernels": kernels[:, 0], **maps}
    figure, axes = plt.subplots(len(rows), 16, figsize=(12, 0.84 * len(rows)), layout="constrained")
    for line, (name, values) in zip(axes, rows.items(), strict=True):
        strongest = values.abs().max().item()
        for axis, value in zip(line, values, strict=False):
            axis.imshow(value.numpy(), cmap="RdBu_r", vmin=-strongest, vmax=strongest)
        for axis in line:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(color="lightgray", visible=axis.has_data())
        line[0].set_ylabel(name, rotation="horizontal", ha="right", va="center")
    for digit, axis in enumerate(axes[-1, :CLASSES]):
        axis.set_xlabel(str(digit))
    return figure


def plot_scaling(groups: dict[str, tuple[dict[str, dict], float]]) -> Figure:
    """Draw seconds and peak memory of training against each of several sizes; each group comes with its slope."""
    most = max(p["peak_memory"] or 1 for points, _ in groups.values() for p in points.values())
    figure, axes = plt.subplots(2, len(groups), figsize=(12, 6), sharex="col", layout="constrained")
    for (above, below), (title, (points, slope)) in zip(axes.T, groups.items(), strict=True):
        sizes = [int(n) for n in points]
        for axis, values, style in (
                (above, [statistics.median(p["seconds"]) for p in points.values()], "o-"),
                (below, [p["peak_memory"] or math.nan for p in points.values()], "s-")):
            axis.semilogx(sizes, values, style, color="tab:blue" if axis is above else "tab:orange")
            for n, value in zip(sizes, values, strict=True):
                axis.annotate(f"{value:#.3g}" if value < 100 else f"{value:,.0f}", (n, value), xytext=(0, 7),
                              textcoords="offset points", ha="center", bbox={"color": "white", "alpha": 0.6, "pad": 0})
            axis.margins(0.12, 0.2)
            axis.set_xticks(sizes, [f"{n:,}" for n in sizes])
        above.set_yscale("log")
        above.set_yticks([])  # the points have their numbers
        below.set(ylim=(0, 1.2 * most), yticks=[0])  # one scale for all, in which small growth looks small
        for axis in (above, below):
            axis.minorticks_off()
        above.set_title(f"slope {slope:.2f}")
        below.set_xlabel(title)
    axes[0, 0].set_ylabel("seconds (logarithmic)")
    axes[1, 0].set_ylabel("peak memory (MiB, from 0)")
    return figure


def draw_pages() -> dict[str, Image.Image]:
    """Three digits as a person might photograph them, drawn by code: pen on paper, chalk on a board, a marker."""
    sheets = {  # of 100×100: the points of a stroke, its colour, its width, and the colour of the ground
        "pen": ([(34, 30), (58, 26), (62, 36), (46, 46), (64, 54), (62, 70), (36, 72)], "navy", 3, "ivory"),
        "chalk": ([(30, 34), (28, 56), (62, 54), (60, 30), (58, 84)], "mintcream", 5, "darkslategray"),
        "marker": ([(22, 22), (44, 20), (36, 40), (30, 60)], "firebrick", 6, "gainsboro"),
    }
    pages = {}
    for name, (points, ink, width, ground) in sheets.items():
        page = Image.new("RGB", (400, 400), ground)
        ImageDraw.Draw(page).line([(4 * x, 4 * y) for x, y in points], fill=ink, width=4 * width, joint="curve")
        pages[name] = page.filter(ImageFilter.GaussianBlur(2))
    return pages


def plot_preparation(results: dict[str, tuple[dict[str, np.ndarray], int, Tensor]]) -> Figure:
    """Draw, for each named image, the steps of `prepare_digit` and the probabilities that the network gave."""
    figure, axes = plt.subplots(len(results), 5, figsize=(10, 2.1 * len(results)), squeeze=False, layout="constrained")
    for row, (name, (steps, digit, probabilities)) in zip(axes, results.items(), strict=True):
        for axis, (step, pixels) in zip(row, steps.items(), strict=False):
            axis.imshow(pixels, cmap="gray" if step == "grey" else "gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[], title=step)
        row[0].set_ylabel(name)
        row[4].bar(range(CLASSES), probabilities.tolist())
        row[4].set(xticks=range(CLASSES), ylim=(0, 1), ylabel="probability", title=f"read as {digit}")
    return figure
