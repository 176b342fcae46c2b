"""`ncsn restore`: samples that agree with a degraded image (inpainting, super-resolution ...)."""

from argparse import Namespace
from collections.abc import Callable
from functools import partial

from torch import Tensor

from ncsn.cli.denoise import read_images
from ncsn.cli.from_options import with_images
from ncsn.cli.sample import Measurement
from ncsn.cli.sample import run as sample
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

__all__ = ["measurement_of", "run"]


def run(options: Namespace) -> None:
    """Sample from the posterior of the image, and write the samples after the image."""
    options.label = options.guidance = options.nearest = None
    options.show_settings = False
    sample(options, measurement_of)


def measurement_of(model: Model, options: Namespace) -> Measurement:
    """Return the measurement that the options describe.

    Raises:
        ValueError: if it does not fit the model, or a file is not an image.
    """
    channels, size = with_images(model, "restore")
    if not model.gaussian_noise:
        raise ValueError("ncsn restore: expected a model that was trained on Gaussian noise")

    def measurement(
        operator: LinearOperator,
        y: Tensor,
        shown: Tensor,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> Measurement:
        guide = partial(posterior, operator=operator, measurement=y, noise=options.noise)
        return Measurement(guide, shown, finish)

    files = [options.image]
    if options.mask is not None:
        image, hole = read_images(files, channels, size), read_images([options.mask], 1, size) > 0.5
        known = ~hole.expand_as(image)
        y = image * known
        return measurement(Mask(known), y, y[0], partial(restore_known, known=image, mask=known))
    if options.factor is not None:
        if size % options.factor:
            raise ValueError(
                f"--factor: expected a divisor of {size}, the size of the model's images, got "
                f"{options.factor}"
            )
        y = read_images(files, channels, size // options.factor)
        shown = y[0].repeat_interleave(options.factor, -1).repeat_interleave(options.factor, -2)
        return measurement(AveragePooling(options.factor), y, shown)
    if options.blur is not None:
        y = read_images(files, channels, size)
        return measurement(GaussianBlur(options.blur), y, y[0])
    if channels == 1:
        raise ValueError("--grey: the model's images are grey")
    y = read_images(files, 1, size)
    return measurement(grey, y, y[0].expand(channels, -1, -1))
