"""`ncsn restore`: samples that agree with a degraded image (inpainting, super-resolution ...)."""

from argparse import Namespace
from functools import partial
from pathlib import Path

from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor

from ncsn.cli.denoise import read_images
from ncsn.cli.from_options import image_shape
from ncsn.cli.sample import Measurement
from ncsn.cli.sample import run as sample
from ncsn.data import enlarged
from ncsn.model.labels import NONE
from ncsn.model.model import Model
from ncsn.score.guidance import (
    AveragePooling,
    GaussianBlur,
    LinearOperator,
    Mask,
    grey,
    posterior,
    restore_known,
)

__all__ = ["run"]


def run(options: Namespace) -> None:
    """Sample from the posterior of the image, and write the samples after the image."""
    options.label = options.label or NONE  # the class of a given image is not known
    options.guidance = options.nearest = None
    options.data = []
    options.show_settings = False
    sample(options, measurement_of)


def measurement_of(model: Model, options: Namespace) -> Measurement:
    """Return the measurement that the options describe."""
    channels, height, width = image_shape(model)
    factor = options.factor or 1
    model.expect_gaussian_noise("ncsn restore")
    if height % factor or width % factor:
        expected = f"a divisor of {height} and {width}, the height and width of the model's images"
        raise ValueError(f"--factor: expected {expected}, got {factor}")
    if options.grey and channels != 3:
        raise ValueError(f"--grey: expected a model of images in colour, got {channels} channel(s)")
    shape = 1 if options.grey else channels, height // factor, width // factor
    y = read_images([options.image], shape)
    operator: LinearOperator = grey
    finish = None
    if options.mask is not None:
        known = known_pixels(options.mask, height, width).expand_as(y)
        finish = partial(restore_known, known=y, mask=known)
        y, operator = y * known, Mask(known)
    elif options.factor is not None:
        operator = AveragePooling(options.factor)
    elif options.blur is not None:
        if options.blur > max(height, width):
            widest = f"at most the {max(height, width)} pixels of the image"
            raise ValueError(f"--blur: expected {widest}, got {options.blur:g}")
        operator = GaussianBlur(options.blur)
    guide = partial(posterior, operator=operator, measurement=y, noise=options.noise)
    return Measurement(guide, enlarged(y[0], factor).expand(channels, -1, -1), finish)


def known_pixels(file: Path, height: int, width: int) -> Tensor:
    """Return True for the black pixels of a mask, (1, 1, H, W), and print how many are white."""
    mask = read_images([file], (1, height, width))
    known, grey_ones = mask <= 0.5, int(((mask > 0.1) & (mask < 0.9)).sum())
    low, high = (255 * mask).aminmax()
    if known.all() or not known.any() or 2 * grey_ones > known.numel():
        raise ValueError(
            "--mask: expected white (255) pixels to fill in, and black (0) ones to keep, got values "
            f"from {low:.0f} to {high:.0f}, {grey_ones} of them grey, in {file}; multiply a map of 0 "
            "and 1 by 255"
        )
    count = f"{int((~known).sum()):,} of {known.numel():,} pixels to fill in"
    doubt = f"; {grey_ones:,} grey ones count as black or white" if grey_ones else ""
    rank_zero_only(print)(f"{file}: {count}{doubt}")
    return known
