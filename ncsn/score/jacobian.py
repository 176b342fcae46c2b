"""Quadratic forms of the score's Jacobian, which add up to its divergence."""

import torch
from torch import Tensor

from ncsn.noise.shapes import sum_per_example
from ncsn.score.score import Score

__all__ = ["jacobian_quadratic_forms", "unit_vectors"]


def jacobian_quadratic_forms(
    score: Score, x: Tensor, sigma: Tensor, directions: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the score at `x` (B, ...), and v . (d score / d x) v for each direction v, (K, B).

    Over `unit_vectors` the forms add up to the divergence of the score. Over random v with
    E v v^T = I their mean is the divergence (Hutchinson, 1989). The score of an example must
    not depend on the others of its batch.

    Args:
        score: a function that `torch.func.vjp` can differentiate.
        x: the points.
        sigma: their noise level, () or (B, 1, ..., 1).
        directions: (K, B, ...).
    """
    psi, pull_back = torch.func.vjp(lambda x: score(x, sigma), x)[:2]
    # In a loop: torch.vmap gets the derivative of torch.cdist wrong, which Parzen windows use.
    forms = [sum_per_example(v * pull_back(v)[0]) for v in directions]
    return psi, torch.stack(forms)


def unit_vectors(x: Tensor) -> Tensor:
    """Return the d unit vectors of an example's space, for each example of `x`: (d, B, ...)."""
    dimension = x[0].numel()
    every = torch.eye(dimension, dtype=x.dtype, device=x.device)
    return every.view(dimension, 1, *x.shape[1:]).expand(-1, *x.shape)
