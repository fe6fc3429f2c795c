"""MNIST as tensors on the device: loading, normalising, augmentation, batches."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets import MNIST

from model import IMAGE_SHAPE, NUM_CLASSES

MEAN, STD = 0.1307, 0.3081  # of the training pixels in [0, 1]; the notebook measures them
DATA = Path(__file__).resolve().with_name("data")


def load_mnist(train: bool, root: str | Path = DATA) -> tuple[Tensor, Tensor]:
    """Return the images (N, 1, 28, 28) as uint8 and the labels (N,) as int64, N being 60,000 or 10,000.

    torchvision unpacks the archives in `root`/MNIST/raw, and downloads those that are missing or damaged.
    """
    data = MNIST(root, train, download=True)
    return data.data[:, None], data.targets


def normalise(images: Tensor) -> Tensor:
    """Bring float images in [0, 1] to the form that the network takes: over MNIST, mean 0 and standard deviation 1."""
    return (images - MEAN) / STD


def uniform(images: Tensor, low: float, high: float) -> Tensor:
    """A random number (N, 1, 1, 1) for each of the images (N, 1, H, W), evenly from `low` to `high`."""
    return low + (high - low) * torch.rand(len(images), 1, 1, 1, device=images.device)


def change_shape(images: Tensor, degrees: float, translate: float, scale: float, shear: float) -> Tensor:
    """Rotate, shear, scale and shift each of the images (N, 1, H, W), whose background is 0, by its own amounts.

    These are drawn evenly from ± the strengths: degrees of rotation and shear, shares of a digit's size for the scale
    and of the image's side for the shift, both along each axis. (torchvision's RandomAffine would draw one change for
    the whole batch.) Jaderberg et al., "Spatial transformer networks", 2015.
    """
    angle = uniform(images, -math.radians(degrees), math.radians(degrees))
    slant = torch.tan(uniform(images, -math.radians(shear), math.radians(shear)))
    x_zoom = uniform(images, 1 - scale, 1 + scale)
    y_zoom = uniform(images, 1 - scale, 1 + scale)
    x_shift = uniform(images, -2 * translate, 2 * translate)  # the grid's unit is half a side
    y_shift = uniform(images, -2 * translate, 2 * translate)
    cos = torch.cos(angle)
    sin = torch.sin(angle)
    # rotation · shear, divided by the zoom: leads from each pixel of the result to the place from which it is read
    to_x = [cos / x_zoom, (cos * slant - sin) / x_zoom, x_shift]
    to_y = [sin / y_zoom, (sin * slant + cos) / y_zoom, y_shift]
    matrices = torch.cat(to_x + to_y, dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrices, images.shape, align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def change_light(images: Tensor, blur: float, contrast: float, noise: float) -> Tensor:
    """Blur each of the images (N, 1, H, W) in [0, 1], reduce its contrast and add noise, by its own amounts.

    These are drawn evenly from 0 to the strengths: standard deviations of blur (in pixels) and noise, and the share of
    contrast that is lost, while black becomes grey by up to as much. The result is in [0, 1] again.
    """
    # a blur is a weighted mean of the neighbours; as a matrix, so that each image can have its own width
    pixel = torch.arange(images.shape[-1], device=images.device)
    distance = (pixel[:, None] - pixel).float()
    kernel = torch.exp(-0.5 * (distance / uniform(images, 0, blur).clamp(min=0.1)) ** 2)
    kernel = kernel / kernel.sum(-1, keepdim=True)  # row i holds the weights of pixel i
    images = kernel @ images @ kernel.mT  # down the columns and along the rows
    lost = uniform(images, 0, contrast)
    images = (1 - lost) * images + lost * uniform(images, 0, 1)
    grain = torch.randn(images.shape, device=images.device)
    return (images + uniform(images, 0, noise) * grain).clamp(0, 1)


def filter_randomly(images: Tensor, strength: float) -> Tensor:
    """Mix each of the images (N, 1, H, W) in [0, 1], whose background is 0, with its response to a random filter.

    The response of the filter, 3×3 or 5×5 pixels, is scaled to a maximum of 1, and its share is drawn evenly from 0 to
    `strength`. Xu et al., "Robust and generalizable visual representation learning via random convolutions", 2021.
    """
    if len(images) == 0:  # which the convolution below refuses
        return images
    kernels = torch.randn(len(images), 1, 5, 5, device=images.device)
    inner = F.pad(torch.ones(3, 3, device=images.device), [1, 1, 1, 1])
    kernels = torch.where(uniform(images, 0, 1) < 0.5, inner * kernels, kernels)
    # the images as the channels of one, in as many groups, so that each meets its own filter
    response = F.conv2d(images.transpose(0, 1), kernels, padding=2, groups=len(images)).transpose(0, 1).abs()
    response = response / response.amax((2, 3), keepdim=True).clamp(min=1e-6)
    return images.lerp(response, uniform(images, 0, strength))


def draw_lines(images: Tensor, strength: float) -> Tensor:
    """Draw a straight line, of a brightness from 0 to `strength`, over each of the images (N, 1, H, W) in [0, 1].

    A digit that is crossed out is still that digit.
    """
    return images.maximum(uniform(images, 0, strength) * random_strips(images, 1, 2))


def invert_strips(images: Tensor, strength: float) -> Tensor:
    """Invert each of the images (N, 1, H, W) in [0, 1] in a straight strip: wholly with a strength of 1.

    It is akin to one of MNIST-C's corruptions, the inverted stripe across the middle.
    """
    return images.lerp(1 - images, strength * random_strips(images, 2, images.shape[-1]))


def random_strips(images: Tensor, narrowest: float, widest: float) -> Tensor:
    """For each of the images (N, 1, H, W), 1 in a strip of random place, direction and width (pixels), 0 beside it."""
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device) - (width - 1) / 2  # from the middle of the image
    y = torch.arange(height, device=images.device).view(-1, 1) - (height - 1) / 2
    angle = uniform(images, 0, torch.pi)
    distance = x * torch.cos(angle) + y * torch.sin(angle) - uniform(images, -width / 2, width / 2)
    strip_width = uniform(images, narrowest, widest)
    return (strip_width / 2 + 0.5 - distance.abs()).clamp(0, 1)  # the edge is a pixel soft


def make_outliers(images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Images (3 · count, 1, 28, 28) that are no single digit, made from a batch, and their targets (3 · count, 10).

    A digit laid on its side is none any more, nor are random curves: their target is 1/10 for each digit, after
    Hendrycks et al., "Deep anomaly detection with outlier exposure", 2019. Two digits over each other share the target
    (it is one digit's where they are alike), after Zhang et al., "mixup: beyond empirical risk minimization", 2018. The
    batch is in random order.
    """
    lying = lay_down(images, labels, count)
    curves = draw_curves(images, count)
    both = images[:count].maximum(images[count:2 * count])
    digits = F.one_hot(labels, NUM_CLASSES).float()
    shared = (digits[:count] + digits[count:2 * count]) / 2
    nothing = torch.full((2 * count, NUM_CLASSES), 1 / NUM_CLASSES, device=images.device)
    return torch.cat([lying, curves, both]), torch.cat([nothing, shared])


def lay_down(images: Tensor, labels: Tensor, count: int) -> Tensor:
    """`count` of the images (N, 1, H, H), turned by a quarter either way, half of them mirrored; no 0 and no 8."""
    changes_by_turning = (labels != 0) & (labels != 8)
    chosen = changes_by_turning.float().topk(count).indices  # any of them; to index by a mask, a GPU has to wait
    lying = images[chosen].transpose(2, 3)
    for axis in 2, 3:
        flip = uniform(lying, 0, 1) < 0.5
        lying = torch.where(flip, lying.flip(axis), lying)
    return lying


def draw_curves(images: Tensor, count: int) -> Tensor:
    """`count` images, as large as these, of three random curves each, white on black, 2 to 3 pixels wide.

    They are quadratic Bézier curves: from a start to an end, bent towards a third point.
    """
    size = images.shape[-1]
    corners = size * (0.15 + 0.7 * torch.rand(3, count, 3, 1, 2, device=images.device))
    start, bend, end = corners  # of each image and curve: (count, 3, 1, x and y)
    t = torch.linspace(0, 1, 24, device=images.device).view(-1, 1)  # along the curve, in steps of about a pixel
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end  # (count, 3, 24, x and y)
    pixels = torch.arange(size, device=images.device) + 0.5
    squares = (points.flatten(1, 2)[..., None] - pixels) ** 2  # (count, 72, x and y, size)
    distance = (squares[:, :, 1, :, None] + squares[:, :, 0, None, :]).amin(1, keepdim=True).sqrt()
    return (1.8 - distance).clamp(0, 1)


def augment(images: Tensor, labels: Tensor, config) -> tuple[Tensor, Tensor]:
    """A recipe's changes of a training batch: float images (N, 1, 28, 28) in [0, 1] and labels (N,).

    Returns the images in other shapes, a share of them in another look, and outliers behind them; and the targets
    (N + outliers, 10), the probability of each digit. `config` is a `utils.Config`, which has the strengths.
    """
    targets = F.one_hot(labels, NUM_CLASSES).float()
    outliers, outlier_targets = make_outliers(images, labels, round(config.outlier_fraction * len(images) / 3))
    # the outliers' shapes change too: resampled images are less sharp, by which the network would know the others
    all_images = torch.cat([images, outliers])
    all_images = change_shape(all_images, config.degrees, config.translate, config.scale, config.shear)
    images, outliers = all_images[:len(images)], all_images[len(images):]
    lights = round(config.light_fraction * len(images))
    looks = round(config.look_fraction * len(images) / 3)
    # one look for each part of the batch, whose order is random
    lit, filtered, lined, inverted, unchanged = images.split([lights, looks, looks, looks,
                                                              len(images) - lights - 3 * looks])
    lit = change_light(lit, config.blur, config.contrast, config.noise)
    filtered = filter_randomly(filtered, config.filtering)
    lined = draw_lines(lined, config.lines)
    inverted = invert_strips(inverted, config.inversion)
    images = torch.cat([lit, filtered, lined, inverted, unchanged, outliers])
    return images, torch.cat([targets, outlier_targets])


class Loader:
    """Batches of normalised images and their labels; MNIST lives on the device, and batches are sliced there.

    It is used like a DataLoader of PyTorch. A `transform` is called with a whole batch, float images (N, 1, 28, 28) in
    [0, 1] and labels (N,), and returns both.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, *, shuffle: bool = False,
                 transform: Callable | None = None, device: torch.device | str = "cpu") -> None:
        if images.dtype != torch.uint8 or images.shape[1:] != IMAGE_SHAPE or len(images) != len(labels):
            raise ValueError("images must be torch.uint8 of shape (N, 1, 28, 28), with N labels, not "
                             f"{images.dtype} of shape {tuple(images.shape)}, with {len(labels)} labels")
        self.images = images.to(device)
        self.labels = labels.to(device)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.transform = transform

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.arange(len(self.labels), device=self.labels.device)
        if self.shuffle:
            order = torch.randperm(len(order), device=order.device)
        for indices in order.split(self.batch_size):
            images = self.images[indices].float() / 255
            labels = self.labels[indices]
            if self.transform is not None:
                images, labels = self.transform(images, labels)
            yield normalise(images), labels
