"""Implicit score matching: the divergence of the score in place of the score that is not known."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ncsn.noise import checked
from ncsn.objectives.directions import rademacher
from ncsn.objectives.objective import Objective, noisy
from ncsn.score import Score, basis, curvature

__all__ = ["ImplicitScoreMatching"]


@dataclass(frozen=True)
class ImplicitScoreMatching(Objective):
    """1/2 ||score||^2 + sum_i d score_i / d x_i (Hyvarinen, 2005, theorem 1).

    An example's score must not depend on the others of its batch.

    Args:
        probes: 0 takes the trace exactly, by a backward pass for each of the d numbers of an example: for small d.
            Otherwise it is Hutchinson's estimate, the mean of v . (d score / d x) v over so many random v of signs.

    Raises:
        ValueError: where `probes` is negative; when called, where x or sigma is not what it should be.
    """

    probes: int = 0

    def __post_init__(self) -> None:
        if self.probes < 0:
            raise ValueError(
                f"ImplicitScoreMatching: probes is {self.probes}, and must be at least 0 (the exact trace)"
            )

    def __call__(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        sigma = checked(sigma, x)
        x = noisy(x, sigma)
        directions = (
            torch.stack([rademacher(x) for _ in range(self.probes)]) if self.probes else basis(x)
        )
        psi, curvatures = curvature(score, x, sigma, directions)
        divergence = curvatures.sum(0) / (self.probes or 1)
        loss: Tensor = psi.square().flatten(1).sum(1) / 2 + divergence
        return loss
