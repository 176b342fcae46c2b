"""Data: images, or points of a density, as tensors.

Batches of images are `(x, label)`: x (B, C, H, W) is float in [0, 1], label (B,) is
integer, or None if `labels=False`. Scaling, flips and dequantisation run on the device:
without a Trainer, a loader gives pixels from 0 to 255 and all labels, of which
`on_after_batch_transfer(batch, 0)` makes such a batch.
The order of the training examples depends on (seed, epoch) alone.
"""

from ncsn.data.examples import Examples
from ncsn.data.folder import FileImages, ImageFolder, same_images, upright
from ncsn.data.module import DataModule, ImageData
from ncsn.data.pixels import enlarged, is_visible, pixel_grid, scale_of, tiled, to_pixels, to_unit
from ncsn.data.points import Points
from ncsn.data.sets import CIFAR10, MNIST, BinaryDigits, Digits, FashionMNIST

__all__ = [
    "CIFAR10",
    "MNIST",
    "BinaryDigits",
    "DataModule",
    "Digits",
    "Examples",
    "FashionMNIST",
    "FileImages",
    "ImageData",
    "ImageFolder",
    "Points",
    "enlarged",
    "is_visible",
    "pixel_grid",
    "same_images",
    "scale_of",
    "tiled",
    "to_pixels",
    "to_unit",
    "upright",
]
