"""The network is the assignment's, to the byte of its summary, and refuses what it cannot read."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchsummary import summary

from benchmarks.evidence import layer_table
from model import IMAGE_SHAPE, Net


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_summary_is_the_assignments(capsys):
    summary(Net().eval(), IMAGE_SHAPE, device="cpu")
    assert capsys.readouterr().out == (Path(__file__).parent / "summary.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(("width", "parameters"), [(16, 19_712), (8, 5_120), (6, 2_952), (4, 1_376)])
def test_width_scales_every_channel_count(width, parameters):
    model = Net(width)
    assert count(model) == parameters
    assert model(torch.zeros(2, *IMAGE_SHAPE)).shape == (2, 10)


def test_dropout_is_used_everywhere_or_as_asked():
    assert [m.p for m in Net(dropout=0.3).modules() if isinstance(m, nn.Dropout2d)] == [0.3] * 6
    torch.manual_seed(0)
    images = torch.rand(4, *IMAGE_SHAPE)
    noisy, quiet = Net(dropout=0.5), Net(dropout=0.0)
    assert not torch.equal(noisy(images), noisy(images))
    assert torch.equal(quiet(images), quiet(images))


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (1, 3, 28, 28), (1, 28, 28), (28, 28), (1, 1, 28, 27)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(N, 1, 28, 28\)") as error:
        Net()(torch.zeros(shape))
    assert str(shape) in str(error.value)


def test_receptive_fields_and_parameters():
    rows = layer_table(Net())
    convolutions = [row for row in rows if row.layer == "Conv2d"]
    assert [row.receptive_field for row in convolutions] == [3, 5, 7, 7, 12, 16, 20, 24, 24]
    assert [row.jump for row in convolutions] == [1, 1, 1, 1, 2, 2, 2, 2, 2]
    pool = next(row for row in rows if row.layer == "MaxPool2d")
    assert (pool.output, pool.kernel, pool.stride, pool.jump, pool.receptive_field) == ((16, 11, 11), 2, 2, 2, 8)
    assert rows[-1].output == (10, 1, 1)
    assert sum(row.parameters for row in rows) == 19_712


def test_receptive_field_is_what_a_pixel_really_sees():
    """The gradient of one output pixel of the head reaches a square of as many input pixels as the table says."""
    torch.manual_seed(0)
    model = Net().eval()
    for pool in (m for m in model.modules() if isinstance(m, nn.MaxPool2d)):
        pool.forward = lambda x: nn.functional.avg_pool2d(x, 2)  # passes the gradient to all four pixels
    for relu in (m for m in model.modules() if isinstance(m, nn.ReLU)):
        relu.forward = lambda x: x
    images = torch.rand(1, *IMAGE_SHAPE, requires_grad=True)
    maps = model.head[0](model.stage2(model.transition(model.stage1(images))))
    maps[0, :, 2, 2].sum().backward()
    rows, columns = images.grad[0, 0].nonzero().unbind(1)
    side = next(r.receptive_field for r in reversed(layer_table(Net())) if r.layer == "Conv2d")
    assert rows.max() - rows.min() + 1 == columns.max() - columns.min() + 1 == side


def test_layer_table_leaves_no_trace():
    model = Net()
    model.stage1[0].eval()  # a mixed mode must survive too
    modes = [m.training for m in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    layer_table(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
