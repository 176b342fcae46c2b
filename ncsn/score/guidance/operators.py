"""What a measurement sees of a picture: linear operators A, from x (B, ...) to y (B, ...).

Any linear function of a batch will do, A(a x + b x') = a A(x) + b A(x'), each example by itself. A frozen dataclass
holds the numbers of one that has any.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "AveragePooling",
    "GaussianBlur",
    "LinearOperator",
    "Mask",
    "expanded",
    "grey",
    "known_pixels",
]

LinearOperator = Callable[[Tensor], Tensor]
"""A: x (B, ...) -> y (B, ...), linear in x."""


@dataclass(frozen=True, eq=False)
class Mask:
    """For inpainting: the known pixels of x, and 0 elsewhere, where a measurement has to be 0 as well.

    Args:
        mask: what broadcasts to x: 1 or True where a pixel is known, 0 or False where it is not.

    Raises:
        ValueError: where `mask` has other numbers; when called, where it does not broadcast to x.
    """

    mask: Tensor

    def __post_init__(self) -> None:
        known_pixels(self.mask)

    def __call__(self, x: Tensor) -> Tensor:
        return x * expanded("mask", known_pixels(self.mask).to(x.device), x)


@dataclass(frozen=True)
class AveragePooling:
    """For super-resolution: the means of squares of `factor` by `factor` pixels, (B, ..., H / factor, W / factor).

    Raises:
        ValueError: where `factor` is not a whole number from 1; when called, where it does not divide a side.
    """

    factor: int

    def __post_init__(self) -> None:
        if self.factor != int(self.factor) or self.factor < 1:
            raise ValueError(
                f"AveragePooling: factor is {self.factor}, and must be a whole number from 1"
            )

    def __call__(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"AveragePooling: factor is {self.factor}, and must divide the sides of x, {height} x {width}"
            )
        squares = x.reshape(
            *x.shape[:-2], height // self.factor, self.factor, width // self.factor, self.factor
        )
        return squares.mean((-3, -1))


@dataclass(frozen=True)
class GaussianBlur:
    """For deblurring: each pixel the mean of those round it, by exp(-distance^2 / (2 width^2)), of the shape of x.

    The weights add up to 1 at the border as well, so that an even picture stays as it is.

    Args:
        width: the standard deviation, in pixels.

    Raises:
        ValueError: where `width` is not positive.
    """

    width: float

    def __post_init__(self) -> None:
        if not 0 < self.width < math.inf:
            raise ValueError(f"GaussianBlur: width is {self.width}, and must be a positive number")

    def __call__(self, x: Tensor) -> Tensor:
        rows, columns = (self._weights(side, x) for side in x.shape[-2:])
        return rows @ x @ columns.mT

    def _weights(self, side: int, x: Tensor) -> Tensor:
        """What each of `side` pixels in a line (rows) takes from each other (columns)."""
        place = torch.arange(side).to(x)
        return (-((place[:, None] - place) ** 2) / (2 * self.width**2)).softmax(1)


def grey(x: Tensor) -> Tensor:
    """For colourisation: the mean over the channels of x (B, channels, ...), shape (B, 1, ...)."""
    return x.mean(1, keepdim=True)


def known_pixels(mask: Tensor) -> Tensor:
    """`mask` as booleans.

    Raises:
        ValueError: where it has another number than 0 and 1.
    """
    wrong = mask[(mask != 0) & (mask != 1)]
    if len(wrong):
        raise ValueError(
            f"mask has a {wrong[0].item():g}, and must be 1 where x is known and 0 where it is not"
        )
    return mask.bool()


def expanded(name: str, tensor: Tensor, x: Tensor) -> Tensor:
    """`tensor` in the shape of `x`.

    Raises:
        ValueError: where it does not broadcast to it.
    """
    try:
        return tensor.expand_as(x)
    except RuntimeError:
        raise ValueError(
            f"{name} is of shape {tuple(tensor.shape)}, and must broadcast to {tuple(x.shape)}"
        ) from None
