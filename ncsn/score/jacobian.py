"""Quadratic forms of the score's Jacobian, of which its divergence is made."""

import torch
from torch import Tensor

from ncsn.score.score import Score

__all__ = ["basis", "curvature"]


def curvature(score: Score, x: Tensor, sigma: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """The score at `x` (B, ...), and v . (d score / d x) v along each v of `directions` (K, B, ...), shape (K, B).

    Over the unit vectors of `basis` it adds up to the divergence of the score, and over random v with E v v^T = I that
    is its mean (Hutchinson, 1989). An example's score must not depend on the others of its batch.
    """
    psi, pull_back = torch.func.vjp(lambda x: score(x, sigma), x)[:2]
    # One after the other: torch.vmap gets wrong what goes through torch.cdist, as Parzen windows do.
    along = [(v * pull_back(v)[0]).reshape(len(x), -1).sum(1) for v in directions]
    return psi, torch.stack(along)


def basis(x: Tensor) -> Tensor:
    """The d unit vectors of an example's space, each for every example of `x` (B, ...): (d, B, ...)."""
    dimension = x[0].numel()
    return torch.eye(dimension).to(x).view(dimension, 1, *x.shape[1:]).expand(-1, *x.shape)
