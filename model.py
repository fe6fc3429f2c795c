"""The assignment's network: a fully convolutional classifier of 28×28 digits with 19,712 parameters."""

import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

IMAGE_SHAPE = (1, 28, 28)  # channels, height, width of one image
NUM_CLASSES = 10
DROPOUT = 0.005  # small, since the BatchNorm of the next block still sees the zeros (Li et al., arXiv 1801.05134, 2018)


def conv_block(in_channels: int, out_channels: int, dropout: float = 0, padding: int = 0) -> nn.Sequential:
    """3×3 convolution → ReLU → BatchNorm → Dropout of whole channels, in the assignment's order.

    The convolution has no bias, since BatchNorm adds one; with `dropout` 0 there is no Dropout layer.
    """
    layers = [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=padding, bias=False),
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(out_channels),
    ]
    if dropout > 0:
        layers.append(nn.Dropout2d(dropout))
    return nn.Sequential(*layers)


class Net(nn.Module):
    """Two stages of convolutions with a 1×1 transition between them, and global average pooling at the end.

    The first layer has `width` channels, the others as many or twice as many. `dropout` is the probability that a
    channel is zeroed in training.
    """

    def __init__(self, width: int = 16, dropout: float = DROPOUT) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(
            conv_block(1, width, dropout),
            conv_block(width, width),  # the assignment has no Dropout here
            conv_block(width, 2 * width, dropout),
        )
        self.transition = nn.Sequential(
            nn.Conv2d(2 * width, width, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.stage2 = nn.Sequential(
            conv_block(width, width, dropout),
            conv_block(width, width, dropout, padding=1),  # keeps 9×9, so that 5×5 are left at the end
            conv_block(width, width, dropout),
            conv_block(width, 2 * width, dropout),
        )
        self.head = nn.Sequential(
            nn.Conv2d(2 * width, NUM_CLASSES, kernel_size=1, bias=False),
            nn.AvgPool2d(5),  # global: the maps are 5×5
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, 1, 28, 28) to logits (N, 10); any other shape raises ValueError."""
        if images.shape[1:] != IMAGE_SHAPE:
            raise ValueError(f"Net takes images of shape (N, 1, 28, 28), not {tuple(images.shape)}")
        x = self.stage1(images)
        x = self.transition(x)
        x = self.stage2(x)
        return self.head(x).flatten(1)


def count_parameters(model: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in model.parameters())


class LayerRow(NamedTuple):
    """What one layer does to one image."""

    layer: str
    output: tuple[int, ...]  # shape of what it returns
    kernel: int  # side of the square of its input that one output sees, in pixels of that input
    jump: int  # distance, in the image, between two neighbouring outputs
    receptive_field: int  # side of the square of the image that one output sees
    parameters: int


def layer_table(model: nn.Module) -> list[LayerRow]:
    """List the image and the layers of a network that is one chain, in the order in which the image passes them.

    A layer widens the receptive field by (kernel - 1) · the jump before it: Araujo et al., "Computing receptive fields
    of convolutional neural networks", Distill, 2019. A copy of the model runs on a blank image.
    """
    rows = [LayerRow("image", IMAGE_SHAPE, kernel=1, jump=1, receptive_field=1, parameters=0)]

    def add_row(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(output, tuple):
            output = output[0]  # as of an LSTM
        before = rows[-1]
        kernel, stride = map(int, kernel_and_stride(layer, inputs[0].shape[-1]))
        field = before.receptive_field + (kernel - 1) * before.jump
        if isinstance(layer, nn.Linear):
            field = IMAGE_SHAPE[-1]  # it sees everything
        rows.append(LayerRow(type(layer).__name__, tuple(output.shape[1:]), kernel, before.jump * stride, field,
                             count_parameters(layer)))

    probe = copy.deepcopy(model).cpu().eval()
    for layer in probe.modules():
        if not list(layer.children()):
            layer.register_forward_hook(add_row)
    with torch.no_grad():
        probe(torch.zeros(1, *IMAGE_SHAPE))
    return rows


def kernel_and_stride(layer: nn.Module, side: int) -> tuple[int, int]:
    """Kernel and stride, along its width, of a layer whose input is `side` pixels wide; 1 and 1 if it has none."""
    if isinstance(layer, nn.AdaptiveAvgPool2d):  # knows the size of its output instead
        outputs = np.ravel(layer.output_size)[-1]
        stride = side // outputs
        return side - (outputs - 1) * stride, stride
    kernel = np.ravel(getattr(layer, "kernel_size", 1))[-1]
    dilation = np.ravel(getattr(layer, "dilation", 1))[-1]  # spreads the kernel
    stride = np.ravel(getattr(layer, "stride", 1))[-1]
    return dilation * (kernel - 1) + 1, stride
