"""Random directions v with E v v^T = I: the mean of v^T A v is the trace (Hutchinson, 1989)."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ncsn.noise.shapes import norm_per_example
from ncsn.noise.streams import normal

__all__ = ["PROJECTIONS", "Projection", "rademacher"]

Projection = Literal["rademacher", "gaussian", "sphere"]


def rademacher(x: Tensor) -> Tensor:
    """Return directions of independent signs, of the shape of `x`."""
    # In float32 one normal number in ten million is 0, and `sign` of it would be 0.
    return torch.ones_like(x).copysign(normal(x))


def sphere(x: Tensor) -> Tensor:
    """Return directions uniform on the sphere of radius sqrt(d), of the shape of `x`."""
    v = normal(x)
    return math.sqrt(math.prod(x.shape[1:])) * v / norm_per_example(v)


PROJECTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "rademacher": rademacher,
    "gaussian": normal,
    "sphere": sphere,
}
"""The functions that draw one direction for each example of x, of its shape."""
