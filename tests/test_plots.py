"""The figures of the lesson take what a student may give them, and say what they cannot draw."""

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

import plots
from model import Net, layer_table
from utils import Config


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_a_network_of_ones_own_is_drawn(tmp_path):
    model = Net(width=8)
    model.head[1] = nn.Sequential(nn.Flatten(), nn.Linear(250, 10))
    plots.plot_network(layer_table(model)).savefig(tmp_path / "network.png")


def test_history_without_an_epoch_says_what_to_do():
    with pytest.raises(ValueError, match="train"):
        plots.plot_history([], Config())


def test_one_epoch_is_drawn(tmp_path):
    row = {"epoch": 1, "train_loss": 0.5, "val_loss": 0.1, "train_accuracy": 90.0, "val_accuracy": 100.0}
    plots.plot_history([row], Config(epochs=1)).savefig(tmp_path / "history.png")
    plots.plot_average([100.0], [99.0]).savefig(tmp_path / "average.png")


@pytest.mark.parametrize("count", [1, 8, 11])
def test_any_number_of_digits_is_drawn(test_set, tmp_path, count):
    plots.plot_digits(test_set[0][:count], ["a", "b\nc"][:count]).savefig(tmp_path / "digits.png")


def test_every_image_is_counted_in_the_confusion_matrix():
    labels, predicted = torch.tensor([3, 3, 7]), torch.tensor([3, 5, 7])
    (axis,) = plots.plot_confusion(labels, predicted).axes
    assert {(t.get_position(), t.get_text()) for t in axis.texts} == {((3, 3), "1"), ((5, 3), "1"), ((7, 7), "1")}


def test_class_maps_lie_on_the_whole_image(test_set):
    figure = plots.plot_class_maps(test_set[0][:6, 0], torch.randn(6, 5, 5), list("720414"))
    for axis in figure.axes[:6]:
        assert (axis.get_xlim(), axis.get_ylim()) == ((-0.5, 27.5), (27.5, -0.5))
