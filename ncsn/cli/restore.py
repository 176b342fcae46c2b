"""`ncsn restore`: samples that agree with a degraded image (inpainting, super-resolution ...)."""

from argparse import Namespace
from functools import partial

from ncsn.cli.denoise import read_images
from ncsn.cli.from_options import image_shape
from ncsn.cli.sample import Measurement
from ncsn.cli.sample import run as sample
from ncsn.data import enlarged
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
    options.label = options.guidance = options.nearest = None
    options.data = []
    options.show_settings = False
    sample(options, measurement_of)


def measurement_of(model: Model, options: Namespace) -> Measurement:
    """Return the measurement that the options describe."""
    channels, size = image_shape(model)
    side = size // (options.factor or 1)
    if not model.gaussian_noise:
        raise ValueError("ncsn restore: expected a model that was trained on Gaussian noise")
    if options.factor and size % options.factor:
        expected = f"a divisor of {size}, the size of the model's images"
        raise ValueError(f"--factor: expected {expected}, got {options.factor}")
    if options.grey and channels == 1:
        raise ValueError("--grey: the model's images are grey")
    y = read_images([options.image], 1 if options.grey else channels, side)
    operator: LinearOperator = grey
    finish = None
    if options.mask is not None:
        known = (read_images([options.mask], 1, size) <= 0.5).expand_as(y)
        finish = partial(restore_known, known=y, mask=known)
        y, operator = y * known, Mask(known)
    elif options.factor is not None:
        operator = AveragePooling(options.factor)
    elif options.blur is not None:
        operator = GaussianBlur(options.blur)
    guide = partial(posterior, operator=operator, measurement=y, noise=options.noise)
    return Measurement(guide, enlarged(y[0], size // side).expand(channels, -1, -1), finish)
