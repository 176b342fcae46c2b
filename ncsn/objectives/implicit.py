"""Implicit score matching: the divergence of the score in place of the score that is not known."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ncsn.objectives.objective import Objective, noisy
from ncsn.score import Score

__all__ = ["ImplicitScoreMatching"]


@dataclass(frozen=True)
class ImplicitScoreMatching(Objective):
    """1/2 ||score||^2 + sum_i d score_i / d x_i (Hyvarinen, 2005, theorem 1), the trace exact.

    The trace takes one backward pass for each of the d numbers of an example, all at once: for small d. An example's
    score must not depend on the others of its batch.
    """

    def __call__(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        x = noisy(x, sigma)
        psi, pull_back = torch.func.vjp(lambda x: score(x, sigma), x)[:2]
        dimension = x[0].numel()
        basis = torch.eye(dimension).to(x).view(dimension, 1, *x.shape[1:]).expand(-1, *x.shape)
        rows = torch.vmap(pull_back)(basis)[0].flatten(2)
        divergence = torch.einsum("ibi->b", rows)
        loss: Tensor = psi.square().flatten(1).sum(1) / 2 + divergence
        return loss
