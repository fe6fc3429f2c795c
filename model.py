"""The assignment's network: a fully convolutional classifier of 28×28 digits with 19,712 parameters."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

IMAGE_SHAPE = (1, 28, 28)  # channels, height, width of one image
CLASSES = 10
DROPOUT = 0.05  # probability; light, since augmentation already regularises this small network


def conv_block(in_channels: int, out_channels: int, dropout: float | None = None, padding: int = 0) -> nn.Sequential:
    """3×3 convolution → ReLU → BatchNorm → Dropout of whole channels (left out if `dropout` is None)."""
    layers = [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=padding, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(out_channels),
    ]
    return nn.Sequential(*layers) if dropout is None else nn.Sequential(*layers, nn.Dropout2d(dropout))


class Net(nn.Module):
    """Two convolutional stages, a 1×1 transition between them, and global average pooling at the end.

    `width` is the number of channels of the first layer and scales every other (the assignment's is 16);
    `dropout` is the probability with which a channel is zeroed in training.
    """

    def __init__(self, width: int = 16, dropout: float = DROPOUT) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(
            conv_block(1, width, dropout),
            conv_block(width, width),
            conv_block(width, 2 * width, dropout),
        )
        self.transition = nn.Sequential(nn.Conv2d(2 * width, width, kernel_size=1), nn.ReLU(), nn.MaxPool2d(2))
        self.stage2 = nn.Sequential(
            conv_block(width, width, dropout),
            conv_block(width, width, dropout, padding=1),
            conv_block(width, width, dropout),
            conv_block(width, 2 * width, dropout),
        )
        self.head = nn.Sequential(nn.Conv2d(2 * width, CLASSES, kernel_size=1, bias=False), nn.AvgPool2d(5))

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (N, 1, 28, 28) to logits (N, 10); raise ValueError for any other shape."""
        if images.shape[1:] != IMAGE_SHAPE:
            raise ValueError(f"Net takes images of shape (N, 1, 28, 28), not {tuple(images.shape)}")
        return self.head(self.stage2(self.transition(self.stage1(images)))).flatten(1)


class LayerRow(NamedTuple):
    """One row of `layer_table`; sizes in pixels, `jump` being the input pixels between two neighbouring outputs."""

    layer: str
    output: tuple[int, int, int]
    kernel: int
    stride: int
    jump: int
    receptive_field: int
    parameters: int


def layer_table(model: nn.Module) -> list[LayerRow]:
    """Describe every layer of a chain of layers, in the order in which an image passes them.

    The receptive field grows by (kernel - 1) · jump a layer, and the jump by the factor stride: Araujo et al.,
    "Computing receptive fields of convolutional neural networks", Distill 2019. A copy of the model is measured,
    so that its mode, weights, statistics and the random state stay as they are.
    """
    rows: list[LayerRow] = []

    def add_row(layer: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> None:
        kernel, stride = ((v[0] if isinstance(v, tuple) else v) for v in
                          (getattr(layer, "kernel_size", 1), getattr(layer, "stride", 1)))
        jump, field = (rows[-1].jump, rows[-1].receptive_field) if rows else (1, 1)
        rows.append(LayerRow(type(layer).__name__, tuple(output.shape[1:]), kernel, stride, jump * stride,
                             field + (kernel - 1) * jump, sum(p.numel() for p in layer.parameters(recurse=False))))

    probe = copy.deepcopy(model).eval()
    for layer in probe.modules():
        if not list(layer.children()):
            layer.register_forward_hook(add_row)
    with torch.no_grad():
        probe(torch.zeros(1, *IMAGE_SHAPE, device=next(probe.parameters()).device))
    return rows
