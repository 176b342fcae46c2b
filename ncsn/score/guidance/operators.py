"""Measurements of an image: linear operators A, from x (B, ...) to y (B, ...).

Any linear function of a batch will do, A(a x + b x') = a A(x) + b A(x'), that treats each example
by itself. A frozen dataclass holds the numbers of one that has any.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from ncsn.noise.checks import expect

__all__ = ["AveragePooling", "GaussianBlur", "LinearOperator", "Mask", "grey"]

LinearOperator = Callable[[Tensor], Tensor]
"""A: x (B, ...) -> y (B, ...), linear in x."""


@dataclass(frozen=True, eq=False)
class Mask:
    """The known pixels of x, and 0 elsewhere, for inpainting; the measurement is 0 there, too.

    Args:
        mask: broadcasts to x; 1 or True if a pixel is known, 0 or False if it is not.
    """

    mask: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.mask.to(x.device).bool()


@dataclass(frozen=True)
class AveragePooling:
    """The means of `factor` by `factor` pixels, (B, ..., H / factor, W / factor), to upscale.

    Raises:
        ValueError: if `factor` is not an integer from 1; when called, if it does not divide both
            sides of x.
    """

    factor: int

    def __post_init__(self) -> None:
        holds = isinstance(self.factor, Integral) and self.factor >= 1
        expect("an integer factor >= 1", holds, self, factor=self.factor)

    def __call__(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        divides = height % self.factor == width % self.factor == 0
        expect("a factor of both sides", divides, self, factor=self.factor, sides=(height, width))
        rows, columns = height // self.factor, width // self.factor
        squares = x.reshape(*x.shape[:-2], rows, self.factor, columns, self.factor)
        return squares.mean((-3, -1))


@dataclass(frozen=True)
class GaussianBlur:
    """A blur by exp(-distance^2 / (2 width^2)), of the shape of x, for deblurring.

    The weights add up to 1 at the border as well, so that a constant image does not change.

    Args:
        width: the standard deviation, in pixels.

    Raises:
        ValueError: if `width` is not positive.
    """

    width: float

    def __post_init__(self) -> None:
        expect("width > 0", 0 < self.width < math.inf, self, width=self.width)

    def __call__(self, x: Tensor) -> Tensor:
        rows, columns = (self._weights(side, x) for side in x.shape[-2:])
        return rows @ x @ columns.mT

    def _weights(self, side: int, x: Tensor) -> Tensor:
        """Return the weight of each pixel of a line (columns) in each blurred one (rows)."""
        place = torch.arange(side, dtype=x.dtype, device=x.device)
        return (-((place[:, None] - place) ** 2) / (2 * self.width**2)).softmax(1)


def grey(x: Tensor) -> Tensor:
    """Return the luma of colours x (B, 3, ...), (B, 1, ...), to colourise.

    It is 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), as photographs are made grey, also by Pillow.
    One channel is grey already.

    Raises:
        ValueError: if x has another number of channels.
    """
    expect("one or three channels", x.shape[1] in (1, 3), "grey", channels=x.shape[1])
    if x.shape[1] == 1:
        return x
    return 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
