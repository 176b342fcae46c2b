"""Random directions v with E v v^T = I, which makes E v^T A v the trace of A (Hutchinson, 1989)."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

__all__ = ["PROJECTIONS", "Projection", "rademacher"]

Projection = Literal["rademacher", "gaussian", "sphere"]


def rademacher(x: Tensor) -> Tensor:
    """Directions of independent signs."""
    # In float32 one number in ten million is drawn as 0, of which `sign` would be 0, too.
    return torch.ones_like(x).copysign(torch.randn_like(x))


def sphere(x: Tensor) -> Tensor:
    """Directions evenly on the sphere of radius sqrt(d)."""
    v = torch.randn_like(x)
    length = v.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))
    direction: Tensor = math.sqrt(x[0].numel()) * v / length
    return direction


PROJECTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "rademacher": rademacher,
    "gaussian": torch.randn_like,
    "sphere": sphere,
}
"""How to draw one direction for each example of x, of its shape."""
