"""Random directions v with E v v^T = I, which makes E v^T A v the trace of A (Hutchinson, 1989)."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from ncsn.score import Score

__all__ = ["PROJECTIONS", "Projection", "curvatures", "dot", "rademacher", "unit_vectors"]

Projection = Literal["rademacher", "gaussian", "sphere"]


def rademacher(x: Tensor) -> Tensor:
    """Directions of independent signs."""
    return torch.randn_like(x).sign()


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


def unit_vectors(x: Tensor) -> Iterator[Tensor]:
    """The d unit vectors of an example's space, each for every example of `x` (B, ...), of its shape."""
    for i in range(x[0].numel()):
        yield torch.zeros_like(x).flatten(1).index_fill(1, torch.tensor(i, device=x.device), 1).view_as(x)


def curvatures(
    score: Score, x: Tensor, sigma: Tensor, directions: Sequence[Tensor]
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The score at `x`, and for each direction v the pair of v and grad(v . score), by one backward pass each."""
    # One after the other: by torch.vmap they would be wrong for what goes through torch.cdist, as Parzen windows do.
    psi, pull_back = torch.func.vjp(lambda x: score(x, sigma), x)[:2]
    return psi, [(v, pull_back(v)[0]) for v in directions]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each pair of examples, shape (B,)."""
    return (a * b).flatten(1).sum(1)
