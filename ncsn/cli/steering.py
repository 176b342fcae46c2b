"""What the sampling command's pictures and classes make of the score: a guide, and what is given and put back."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ncsn.data import FilePictures, to_unit
from ncsn.model.model import Model
from ncsn.score import Score
from ncsn.score.guidance import (
    AveragePooling,
    GaussianBlur,
    LinearOperator,
    Mask,
    classifier_free,
    grey,
    posterior,
    restore_known,
)

__all__ = ["Steering", "read_pictures", "steering"]

MEASUREMENTS = ("inpaint", "super_resolve", "deblur", "colourise")
"""The options that give a measurement of a picture."""


def unchanged(x: Tensor) -> Tensor:
    """`x` itself."""
    return x


@dataclass(frozen=True)
class Steering:
    """How the samples are steered.

    Args:
        guide: makes of the model's score the one that is walked along, where it is another.
        finish: what is done to the samples (B, ...) at the end.
        given: a picture (C, H, W) to show before the samples, where one was given.
    """

    guide: Callable[[Score], Score] | None = None
    finish: Callable[[Tensor], Tensor] = unchanged
    given: Tensor | None = None


def steering(module: Model, options: Namespace) -> Steering:
    """The steering that the options ask for.

    Raises:
        ValueError: where they do not fit the model or each other, or a file is not a picture.
    """
    if options.guidance is not None:
        if options.label is None:
            raise ValueError(
                f"--guidance: {options.guidance:g} is a weight for a class; give it with --label"
            )
        everything = partial(module.denoiser.score, label=None)
        return Steering(lambda score: classifier_free(score, everything, options.guidance))
    name = next((name for name in MEASUREMENTS if getattr(options, name) is not None), None)
    if name is None:
        return Steering()
    if len(module.shape) != 3 or not module.gaussian_noise:
        raise ValueError(
            f"--{name.replace('_', '-')}: this model is not of pictures with Gaussian noise"
        )
    channels, size, _ = module.shape
    file = getattr(options, name)
    if name == "inpaint":
        picture, hole = (
            read_pictures([file], channels, size),
            read_pictures([options.mask], 1, size) > 0.5,
        )
        known = ~hole.expand_as(picture)
        restore = partial(restore_known, known=picture, mask=known)
        return Steering(
            measurement(Mask(known), picture * known, options.noise), restore, (picture * known)[0]
        )
    if name == "super_resolve":
        operator = AveragePooling(options.factor)
        if size % options.factor:
            raise ValueError(
                f"--factor: {options.factor} does not divide the {size} pixels of this model's pictures"
            )
        y = read_pictures([file], channels, size // options.factor)
        shown = y[0].repeat_interleave(options.factor, -1).repeat_interleave(options.factor, -2)
        return Steering(measurement(operator, y, options.noise), given=shown)
    if name == "deblur":
        y = read_pictures([file], channels, size)
        return Steering(measurement(GaussianBlur(options.blur), y, options.noise), given=y[0])
    if channels == 1:
        raise ValueError("--colourise: this model's pictures are grey")
    y = read_pictures([file], 1, size)
    return Steering(measurement(grey, y, options.noise), given=y[0].expand(channels, -1, -1))


def measurement(operator: LinearOperator, y: Tensor, noise: float) -> Callable[[Score], Score]:
    """The guide towards what measures as `y` (1, ...)."""
    return lambda score: posterior(score, operator, y, noise)


def read_pictures(files: list[Path], channels: int, size: int) -> Tensor:
    """The pictures in files, resized and cropped: (N, channels, size, size) in [0, 1].

    Raises:
        ValueError: where a file is not a picture.
    """
    pictures = FilePictures(files, torch.zeros(len(files)), channels, size)
    return to_unit(torch.stack([pictures.read(file) for file in files]))
