"""MNIST as tensors on the device: loading, normalising, augmentation, and batches of all that."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets import MNIST

from model import IMAGE_SHAPE

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


def change_shape(images: Tensor, degrees: float, translate: float, scale: float, shear: float) -> Tensor:
    """Rotate, shear, scale and shift each of the images (N, 1, H, W), whose background is 0, by its own amounts.

    These are drawn evenly from ± the strengths: degrees of rotation and shear, shares of a digit's size for the scale
    and of the image's side for the shift, both along each axis. The batch is resampled in one call, after Jaderberg et
    al., "Spatial transformer networks", 2015.
    """
    angle = math.radians(degrees) * draw(images)
    slant = torch.tan(math.radians(shear) * draw(images))
    x_zoom = 1 + scale * draw(images)
    y_zoom = 1 + scale * draw(images)
    x_shift = 2 * translate * draw(images)  # the grid's unit is half a side
    y_shift = 2 * translate * draw(images)
    cos = torch.cos(angle)
    sin = torch.sin(angle)
    to_x = torch.stack([cos / x_zoom, (cos * slant - sin) / x_zoom, x_shift], dim=1)
    to_y = torch.stack([sin / y_zoom, (sin * slant + cos) / y_zoom, y_shift], dim=1)
    grid = F.affine_grid(torch.stack([to_x, to_y], dim=1), images.shape, align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def draw(images: Tensor) -> Tensor:
    """A random number from -1 to 1 for each image."""
    return 2 * torch.rand(len(images), device=images.device) - 1


def change_light(images: Tensor, blur: float, contrast: float, noise: float) -> Tensor:
    """Blur each of the images (N, 1, H, W) in [0, 1], take contrast from it and add noise, by its own amounts.

    These are drawn evenly from 0 to the strengths: standard deviations of blur (in pixels) and noise, and the share of
    contrast that is lost, while the ground grows lighter by up to as much. The result is in [0, 1] again.
    """
    draws = torch.rand(4, len(images), 1, 1, 1, device=images.device)
    blur, loss, lift, noise = draws[0] * blur, draws[1] * contrast, draws[2], draws[3] * noise
    pixel = torch.arange(images.shape[-1], device=images.device)
    distance = (pixel[:, None] - pixel).float()
    kernel = torch.exp(-0.5 * (distance / blur.clamp(min=0.1)) ** 2)  # of one image: row i holds the weights of pixel i
    kernel = kernel / kernel.sum(-1, keepdim=True)
    images = kernel @ images @ kernel.mT  # down the columns and along the rows
    images = (1 - loss) * images + loss * lift
    grain = torch.randn(images.shape, device=images.device)
    return (images + noise * grain).clamp(0, 1)


def augment(images: Tensor, labels: Tensor, config) -> tuple[Tensor, Tensor]:
    """Change the shape of each of the float images (N, 1, H, W) in [0, 1], and the light of some; labels stay."""
    images = change_shape(images, config.degrees, config.translate, config.scale, config.shear)
    if count := round(config.light_fraction * len(images)):
        part = torch.randperm(len(images), device=images.device)[:count]
        images[part] = change_light(images[part], config.blur, config.contrast, config.noise)
    return images, labels


class Loader:
    """Batches of normalised images and their labels; MNIST lives on the device, and batches are sliced there.

    As PyTorch's DataLoader it knows `batch_size` and `shuffle`, and as torchvision's data sets a `transform`, but one
    that changes a whole batch: called with float images (N, 1, 28, 28) in [0, 1] and labels (N,), it returns both.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, shuffle: bool = False,
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
