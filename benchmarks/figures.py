"""The figures of the evidence, each from plain lists and numbers, in the style of the lesson's figures."""

import statistics

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from plots import BLUE, FIGURE_WIDTH, GREEN, GREY, ORANGE
from utils import TARGET


def mark_target(axis: plt.Axes) -> None:
    """Draw the assignment's target as a dotted line."""
    axis.axhline(TARGET, color="black", linestyle=":", label=f"target {TARGET} %")


def plot_seeds(curves: dict[str, list[list[float]]]) -> Figure:
    """Draw the accuracy of every run (percent, one per epoch) of each recipe, faint, and their mean."""
    figure, axis = plt.subplots(figsize=(FIGURE_WIDTH, 3.6))
    for (name, runs), colour in zip(curves.items(), (BLUE, ORANGE), strict=True):
        epochs = range(1, len(runs[0]) + 1)
        by_epoch = list(zip(*runs, strict=True))
        axis.plot(epochs, by_epoch, color=colour, alpha=0.2, linewidth=0.8)
        axis.plot(epochs, [statistics.mean(values) for values in by_epoch], color=colour, linewidth=2.5,
                  label=f"{name}, mean of {len(runs)} seeds")
    mark_target(axis)
    axis.set(xlabel="epoch", ylabel="test accuracy (%)", ylim=(98.8, None))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(loc="lower right")
    return figure


def plot_differences(differences: dict[str, tuple[float, float]]) -> Figure:
    """Draw differences in points, each with half of its 95 % interval; grey where the interval holds 0."""
    figure, axis = plt.subplots(figsize=(FIGURE_WIDTH, 0.36 * len(differences) + 0.8))
    for y, (mean, half) in enumerate(differences.values()):
        axis.errorbar(mean, y, xerr=half, fmt="D", color=GREY if abs(mean) <= half else BLUE, capsize=4)
    axis.axvline(0, color=GREEN, alpha=0.5)
    axis.set(yticks=range(len(differences)), yticklabels=list(differences), xlabel="points of accuracy")
    axis.invert_yaxis()
    return figure


def plot_frontier(sizes: dict[int, list[float]], epochs: dict[int, list[float]], public: list[dict]) -> Figure:
    """Draw last-epoch accuracies (percent) by number of parameters, beside public results, and by number of epochs.

    A public result has `parameters`, `epochs` and `last_accuracy`; those with a `name` are named.
    """
    figure, axes = plt.subplots(2, 1, figsize=(FIGURE_WIDTH, 7.5), height_ratios=(4, 3))
    labels = "parameters, in 19 epochs", "epochs, with 19,712 parameters"
    for axis, groups, label in zip(axes, (sizes, epochs), labels, strict=True):
        for number, values in groups.items():
            axis.scatter([number] * len(values), values, s=12, color=BLUE, alpha=0.3)
        axis.plot(list(groups), [statistics.mean(values) for values in groups.values()], "D-", color=BLUE,
                  label="this architecture: every run, and the means")
        mark_target(axis)
        axis.set(xscale="log", xlabel=label, ylabel="test accuracy (%)")
        axis.set_xticks(list(groups), [f"{number:,}" for number in groups])
        axis.minorticks_off()
    spans = [p["epochs"] for p in public]
    axes[0].scatter([p["parameters"] for p in public], [p["last_accuracy"] for p in public], marker="x", color=ORANGE,
                    label=f"public results, one run each, in {min(spans)} to {max(spans)} epochs")
    for point in (p for p in public if "name" in p):
        axes[0].annotate(point["name"], (point["parameters"], point["last_accuracy"]), ha="center", color=ORANGE,
                         xytext=(point["parameters"], 99.76), arrowprops={"arrowstyle": "-", "color": ORANGE})
    axes[0].set_ylim(98.5, 99.82)  # leaves room for the names and the legend
    axes[0].legend(loc="lower right")
    return figure


def plot_corruptions(recipes: dict[str, dict[str, float]]) -> Figure:
    """Draw the accuracy (percent) of two recipes on each corruption, the hardest for the second on top."""
    (before, low), (after, high) = recipes.items()
    names = sorted(high, key=high.get)
    figure, axis = plt.subplots(figsize=(FIGURE_WIDTH, 0.28 * len(names) + 1))
    for y, name in enumerate(names):
        axis.plot([low[name], high[name]], [y, y], color=GREY, alpha=0.5, zorder=1)
    axis.scatter([low[name] for name in names], range(len(names)), color=ORANGE, label=before)
    axis.scatter([high[name] for name in names], range(len(names)), color=BLUE, label=after)
    axis.set(yticks=range(len(names)), yticklabels=[name.replace("_", " ") for name in names], xlabel="accuracy (%)")
    axis.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def plot_robustness(curves: dict[str, tuple[list[float], dict[str, list[list[float]]]]]) -> Figure:
    """Draw the accuracy of every network (percent), and the mean of each recipe, by the strength of each distortion.

    `curves` has, for each distortion, its strengths and, by recipe, the networks' accuracies at each of them.
    """
    figure, axes = plt.subplots(3, 2, figsize=(FIGURE_WIDTH, 6.4), sharey=True)
    for axis, (name, (strengths, recipes)) in zip(axes.flat, curves.items(), strict=True):
        for (recipe, runs), colour in zip(recipes.items(), (ORANGE, BLUE), strict=True):
            axis.plot(strengths, runs, color=colour, alpha=0.3, linewidth=0.8)
            axis.plot(strengths, list(map(statistics.mean, runs)), "o-", color=colour, markersize=4, label=recipe)
        axis.set_xlabel(name)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    for axis in axes[:, 0]:
        axis.set(ylabel="accuracy (%)", ylim=(0, 102))
    return figure


def plot_bars(groups: dict[str, dict[str, float]], label: str) -> Figure:
    """Draw groups of named numbers as horizontal bars, each with its value; "ours" are blue."""
    heights = [len(group) for group in groups.values()]
    figure, axes = plt.subplots(len(groups), 1, figsize=(FIGURE_WIDTH, 0.4 * sum(heights) + 1.1), height_ratios=heights,
                                sharex=True, squeeze=False)
    longest = max(value for group in groups.values() for value in group.values())
    for axis, (title, group) in zip(axes.flat, groups.items(), strict=True):
        axis.barh(list(group), list(group.values()), color=[BLUE if "ours" in name else GREY for name in group])
        for y, value in enumerate(group.values()):
            axis.text(value + longest / 100, y, f"{value:.2g}", va="center")
        axis.set_title(title, loc="left", fontsize=10)
        axis.invert_yaxis()
    axis.set(xlabel=label, xlim=(0, 1.12 * longest))
    return figure
