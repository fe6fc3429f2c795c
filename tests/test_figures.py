"""Figures show the numbers that they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from benchmarks.evidence import feature_maps
from benchmarks.figures import (
    draw_pages,
    plot_confidence,
    plot_confusion,
    plot_digits,
    plot_frontier,
    plot_history,
    plot_inside,
    plot_preparation,
    plot_recipes,
    plot_robustness,
    plot_scaling,
    plot_seeds,
)
from handwriting import prepare_digit
from model import Net

plt.switch_backend("agg")


def test_history_digits_and_confusion(test_set):
    history = [{"epoch": n, "learning_rate": 0.1 / n, "train_loss": 1 / n, "val_loss": 0.5 / n,
                "train_accuracy": 98 + n / 2, "val_accuracy": 98.5 + n / 2} for n in (1, 2)]
    loss, accuracy, rate = plot_history(history).axes
    assert [len(line.get_xdata()) for line in rate.lines] == [2]
    assert list(loss.lines[1].get_ydata()) == [row["val_loss"] for row in history]
    assert any(set(line.get_ydata()) == {99.4} for line in accuracy.lines)
    assert all(axis.get_xlabel() and axis.get_ylabel() for axis in (loss, accuracy, rate))

    confusion = plot_confusion(torch.tensor([1, 1, 2]), torch.tensor([1, 7, 2])).axes[0]
    assert sorted((text.get_position(), text.get_text()) for text in confusion.texts) == [
        ((1, 1), "1"), ((2, 2), "1"), ((7, 1), "1")]

    digits = plot_digits(test_set[0][:12], [str(int(label)) for label in test_set[1][:12]])
    assert [axis.get_title() for axis in digits.axes[:12]] == [str(int(label)) for label in test_set[1][:12]]
    assert len(digits.axes) == 20
    named = plot_digits(test_set[0][:4], columns=2, row_names=["plain", "augmented"])
    assert [axis.get_ylabel() for axis in named.axes] == ["plain", "", "augmented", ""]
    partly = plot_digits(test_set[0][:4], ["first", "second"], columns=2)
    assert [axis.get_title() for axis in partly.axes] == ["first", "second", "", ""]
    assert all(axis.has_data() for axis in partly.axes)
    plt.close("all")


def runs(*last):
    return [{"test_accuracy": [99.0, value - 0.1, value], "validation_accuracy": [98.0, value]} for value in last]


def test_scaling_shows_seconds_and_memory():
    points = {"10": {"seconds": [1.0, 3.0, 2.0], "peak_memory": 500}, "20": {"seconds": [4.0] * 3, "peak_memory": None}}
    seconds, _, memory, _ = plot_scaling({"batch size": (points, 1.0), "width": (points, 2.0)}).axes
    assert [list(values) for values in seconds.lines[0].get_data()] == [[10, 20], [2, 4]]
    assert memory.lines[0].get_ydata()[0] == 500
    assert [memory.get_xlabel(), seconds.get_title()] == ["batch size", "slope 1.00"]
    assert [text.get_text() for text in seconds.texts] == ["2.00", "4.00"]
    plt.close("all")


def test_seeds_show_every_run_their_mean_and_range():
    course, strip = plot_seeds(runs(99.6, 99.7, 99.8), runs(99.4, 99.5)).axes
    curves = [list(line.get_ydata()) for line in course.lines]
    assert curves[:3] == [pytest.approx([99.0, value - 0.1, value]) for value in (99.6, 99.7, 99.8)]
    assert curves[3] == pytest.approx([99.0, 99.6, 99.7])  # the mean
    assert [curve[-1] for curve in curves[4:6]] == pytest.approx([99.6, 99.8])  # the range
    assert curves[6] == [99.4, 99.4]
    points = [sorted(collection.get_offsets()[:, 1]) for collection in strip.collections[::2]]
    assert points == [pytest.approx([99.6, 99.7, 99.8]), pytest.approx([99.4, 99.5])]
    assert [label.get_text() for label in strip.get_xticklabels()] == [
        "chosen recipe\n(3 seeds)", "original recipe\n(2 seeds)"]
    assert course.get_ylim()[0] < 99 < 99.8 < course.get_ylim()[1]
    plt.close("all")


def test_recipes_show_every_run_and_the_mean():
    axis = plot_recipes({"chosen": runs(99.5, 99.7), "worse": runs(98.0, 99.0, 98.5)}).axes[0]
    groups = [collection.get_offsets()[:, 0] for collection in axis.collections]
    points = [sorted(group) for group in groups if len(group) > 1]
    assert points == [pytest.approx([99.5, 99.7]), pytest.approx([98.0, 98.5, 99.0])]
    assert [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "D"] == pytest.approx([99.6, 98.5])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["chosen", "worse"]
    plt.close("all")


def test_preparation_shows_each_step():
    results = {name: (prepare_digit(page), 3, torch.full((10,), 0.1)) for name, page in draw_pages().items()}
    axes = np.array(plot_preparation(results).axes).reshape(len(results), 5)
    for row, (name, (steps, *_)) in zip(axes, results.items(), strict=True):
        assert row[0].get_ylabel() == name
        for axis, (step, pixels) in zip(row, steps.items(), strict=False):
            assert axis.get_title() == step
            assert np.array_equal(axis.images[0].get_array(), pixels)
        assert row[4].get_title() == "read as 3"
        assert [bar.get_height() for bar in row[4].patches] == pytest.approx([0.1] * 10)
    plt.close("all")


def test_frontier_shows_every_run_the_means_and_the_published_results():
    public = [{"parameters": 7_884, "last_accuracy": 99.43}]
    size, time = plot_frontier({2_952: runs(99.3, 99.5), 19_712: runs(99.6)}, {1: runs(99.2), 10: runs(99.6, 99.8)},
                               public).axes
    assert [list(values) for values in size.lines[0].get_data()] == [[2_952, 19_712], pytest.approx([99.4, 99.6])]
    assert [list(values) for values in time.lines[0].get_data()] == [[1, 10], pytest.approx([99.2, 99.7])]
    points = [tuple(point) for group in size.collections for point in group.get_offsets().tolist()]
    assert points == [(2_952, 99.3), (2_952, 99.5), (19_712, 99.6), (7_884, 99.43)]
    assert [text.get_text() for text in size.texts] == ["1"]
    plt.close("all")


def test_robustness_has_a_panel_for_each_distortion_and_the_handwriting():
    names = [f"distortion {n}" for n in range(6)]
    result = {"strengths": [0, 1], "chosen": [99.6, 90.0], "original": [99.4, 80.0]}
    figure = plot_robustness(dict.fromkeys(names, result), {"chosen": 93.25, "original": 88.0},
                             {name: ("1", torch.rand(1, 28, 28)) for name in names})
    assert [axis.get_xlabel() for axis in figure.axes[:6]] == names
    assert [list(line.get_ydata()) for line in figure.axes[5].lines] == [[99.6, 90.0], [99.4, 80.0]]
    assert [bar.get_height() for bar in figure.axes[6].patches] == [93.25, 88.0]
    assert [axis.child_axes[0].get_title() for axis in figure.axes[:6]] == ["1"] * 6
    plt.close("all")


def test_confidence_and_the_inside():
    reliability, rejection, images = plot_confidence([(0.5, 0.6, 10), (0.9, 1.0, 90)], torch.tensor([96.0, 99.9])).axes
    assert [list(values) for values in reliability.lines[1].get_data()] == [[0.5, 0.9], [0.6, 1.0]]
    assert [bar.get_height() for bar in images.patches] == [10, 90]
    assert list(rejection.lines[0].get_xdata()) == [0, 50]
    model = Net()
    maps = feature_maps(model, torch.rand(1, 28, 28))
    figure = plot_inside(model.stage1[0][0].weight.detach(), maps)
    drawn = [axis for axis in figure.axes if axis.has_data()]
    assert len(drawn) == 16 + 8 * 16 + 10
    assert np.array_equal(figure.axes[-16].images[0].get_array(), maps["digits"][0])
    plt.close("all")
