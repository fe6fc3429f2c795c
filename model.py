"""The assignment's network: a fully convolutional classifier of 28×28 digits with 19,712 parameters."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

IMAGE_SHAPE = (1, 28, 28)  # channels, height, width of one image
NUM_CLASSES = 10
WIDTH = 16  # channels of the first layer
DROPOUT = 0.01  # light: the next BatchNorm still sees its zeros (Li et al., 2018, arxiv.org/abs/1801.05134)


def conv_block(in_channels: int, out_channels: int, dropout: float | None = None, padding: int = 0) -> nn.Sequential:
    """3×3 convolution → ReLU → BatchNorm → Dropout of whole channels, the last left out if `dropout` is None."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=padding, bias=False)
    last = [] if dropout is None else [nn.Dropout2d(dropout)]
    # ReLU works in place, which saves a pass through the memory: nothing else needs what the convolution returns
    return nn.Sequential(convolution, nn.ReLU(inplace=True), nn.BatchNorm2d(out_channels), *last)


class Net(nn.Module):
    """Two stages of convolutions with a 1×1 transition between them, and global average pooling at the end.

    `width` is the number of channels of the first layer, to which the others are in proportion; `dropout` is the
    probability that a channel is zeroed in training.
    """

    def __init__(self, width: int = WIDTH, dropout: float = DROPOUT) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(
            conv_block(1, width, dropout),
            conv_block(width, width),  # without Dropout, as the assignment prescribes
            conv_block(width, 2 * width, dropout),
        )
        self.transition = nn.Sequential(
            nn.Conv2d(2 * width, width, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.stage2 = nn.Sequential(
            conv_block(width, width, dropout),
            conv_block(width, width, dropout, padding=1),
            conv_block(width, width, dropout),
            conv_block(width, 2 * width, dropout),
        )
        self.head = nn.Sequential(nn.Conv2d(2 * width, NUM_CLASSES, kernel_size=1, bias=False), nn.AvgPool2d(5))

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (N, 1, 28, 28) to logits (N, 10); any other shape raises ValueError."""
        if images.shape[1:] != IMAGE_SHAPE:
            raise ValueError(f"Net takes images of shape (N, 1, 28, 28), not {tuple(images.shape)}")
        return self.head(self.stage2(self.transition(self.stage1(images)))).flatten(1)


def count_parameters(model: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


class LayerRow(NamedTuple):
    """One layer: kernel and stride in pixels of its input, jump and receptive field in pixels of the image."""

    layer: str
    output: tuple[int, ...]
    kernel: int
    stride: int
    jump: int
    receptive_field: int
    parameters: int


def layer_table(model: nn.Module) -> list[LayerRow]:
    """List the layers of a model that is one chain, in the order in which an image passes them.

    The jump is the distance, in image pixels, between two neighbouring outputs of a layer. Its receptive field, the
    side of the square that one output sees, exceeds the previous one by (kernel - 1) · the previous jump: Araujo et
    al., "Computing receptive fields of convolutional neural networks", Distill, 2019. What runs is a copy of the model.
    """
    rows, probe = [], copy.deepcopy(model).cpu().eval()

    def add_row(layer: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> None:
        kernel, stride = (size[0] if isinstance(size, tuple) else size
                          for size in (getattr(layer, "kernel_size", 1), getattr(layer, "stride", 1)))
        jump, field = (rows[-1].jump, rows[-1].receptive_field) if rows else (1, 1)
        rows.append(LayerRow(type(layer).__name__, tuple(output.shape[1:]), kernel, stride, jump * stride,
                             field + (kernel - 1) * jump, count_parameters(layer)))

    for layer in probe.modules():
        if not list(layer.children()):
            layer.register_forward_hook(add_row)
    probe(torch.zeros(1, *IMAGE_SHAPE))
    return rows
