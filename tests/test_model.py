"""The network is the assignment's, to the byte of its summary; Muon is PyTorch's."""

import copy

import pytest
import torch
from torch import nn
from torchsummary import summary

from model import IMAGE_SHAPE, Net, layer_table
from muon import Muon
from utils import ROOT


def test_summary_is_the_assignments(capsys):
    summary(Net().eval(), IMAGE_SHAPE, device="cpu")
    assert capsys.readouterr().out in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (28, 28)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError):
        Net()(torch.zeros(shape))


def test_layer_table_has_receptive_fields_and_leaves_the_model_alone():
    model = Net()
    before = copy.deepcopy(model.state_dict())
    rows = layer_table(model)
    convolutions = [(row.receptive_field, row.jump) for row in rows if row.layer == "Conv2d"]
    assert convolutions == [(3, 1), (5, 1), (7, 1), (7, 1), (12, 2), (16, 2), (20, 2), (24, 2), (24, 2)]
    assert rows[-1].output == (10, 1, 1) and sum(row.parameters for row in rows) == 19_712
    assert model.training and all(map(torch.equal, model.state_dict().values(), before.values()))


@pytest.mark.parametrize(("layer", "kernel", "field"), [
    (nn.Conv2d(1, 4, 3, dilation=2), 5, 5), (nn.Conv2d(1, 4, (1, 7)), 7, 7), (nn.AdaptiveAvgPool2d(1), 28, 28),
    (nn.AdaptiveAvgPool2d((7, 7)), 4, 4), (nn.BatchNorm2d(1), 1, 1)])
def test_layer_table_knows_other_layers(layer, kernel, field):
    _, row = layer_table(nn.Sequential(layer))
    assert (row.kernel, row.receptive_field) == (kernel, field)


def test_muon_agrees_with_the_one_of_pytorch_and_leaves_frozen_weights():
    """Ten steps on all the network's matrices, in two groups; PyTorch's, which takes them flat, rounds to bfloat16."""
    torch.manual_seed(0)
    layers = [p.detach() for p in Net().parameters() if p.ndim > 1]
    ours, theirs = [p.clone() for p in layers], [nn.Parameter(p.flatten(1).clone()) for p in layers]
    first, second = (optimizer([{"params": weights[:4], "lr": 0.02, "weight_decay": 0.1},
                                {"params": weights[4:], "lr": 0.1, "weight_decay": 0}], lr=1, momentum=0.95)
                     for optimizer, weights in ((Muon, ours), (torch.optim.Muon, theirs)))
    for _ in range(10):
        for weight, matrix in zip(ours[:-1], theirs[:-1], strict=True):  # the last is frozen: its gradient is None
            weight.grad = torch.randn_like(weight)
            matrix.grad = weight.grad.flatten(1)
        first.step()
        second.step()
    assert torch.equal(ours[-1], layers[-1])
    for weight, matrix, before in zip(ours[:-1], theirs[:-1], layers[:-1], strict=True):
        moved = (weight - before).norm()
        assert moved > 0.1 and (weight.flatten(1) - matrix).norm() < 0.05 * moved
