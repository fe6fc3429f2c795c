"""The assignment's network: a fully convolutional classifier of 28×28 digits with 19,712 parameters."""

from torch import Tensor, nn

IMAGE_SHAPE = (1, 28, 28)  # channels, height, width of one image
CLASSES = 10
WIDTH = 16  # channels of the first layer
DROPOUT = 0.005  # light: the next BatchNorm still sees its zeros (Li et al., 2018, arxiv.org/abs/1801.05134)


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
            conv_block(width, width),
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
        self.head = nn.Sequential(nn.Conv2d(2 * width, CLASSES, kernel_size=1, bias=False), nn.AvgPool2d(5))

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (N, 1, 28, 28) to logits (N, 10); any other shape raises ValueError."""
        if images.shape[1:] != IMAGE_SHAPE:
            raise ValueError(f"Net takes images of shape (N, {str(IMAGE_SHAPE)[1:]}, not {tuple(images.shape)}")
        return self.head(self.stage2(self.transition(self.stage1(images)))).flatten(1)


def count_parameters(model: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(p.numel() for p in model.parameters())
