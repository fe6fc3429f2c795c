"""The figures of the lesson take what a student may give them."""

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

import plots
from model import Net, layer_table


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize(("model", "bars"), [
    (Net(width=8), 12), (nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1)), 3),
    (nn.Sequential(nn.Flatten(), nn.Linear(784, 30), nn.ReLU(), nn.Linear(30, 10)), 3)])
def test_a_network_of_ones_own_is_drawn_whole(model, bars, tmp_path):
    figure = plots.plot_network(layer_table(model))
    figure.savefig(tmp_path / "network.png")
    assert len(figure.axes[0].patches) == bars


@pytest.mark.parametrize("count", [0, 1, 11])
def test_any_number_of_digits_is_drawn(test_set, tmp_path, count):
    plots.plot_digits(test_set[0][:count], ["a", "b\nc"][:count]).savefig(tmp_path / "digits.png")


def test_every_image_is_counted_in_the_confusion_matrix():
    labels, predicted = torch.tensor([3, 3, 7]), torch.tensor([3, 5, 7])
    (axis,) = plots.plot_confusion(labels, predicted).axes
    assert {(t.get_position(), t.get_text()) for t in axis.texts} == {((3, 3), "1"), ((5, 3), "1"), ((7, 7), "1")}
