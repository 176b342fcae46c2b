"""Sliced score matching: the divergence of the score along random directions."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ncsn.noise import checked
from ncsn.objectives.directions import PROJECTIONS, Projection
from ncsn.objectives.objective import Objective, noisy
from ncsn.score import Score, curvature

__all__ = ["FiniteDifferenceSlicedScoreMatching", "SlicedScoreMatching"]


@dataclass(frozen=True)
class SlicedScoreMatching(Objective):
    """v . grad(v . score) + 1/2 (v . score)^2 over random directions v (Song et al., 2019, equation 8).

    Args:
        slices: directions for each example, one backward pass each.
        projection: how they are drawn: "rademacher", "gaussian" or "sphere".
        variance_reduced: 1/2 ||score||^2 in place of the square (equation 9), which is its mean over v. With Rademacher
            directions this is implicit score matching with Hutchinson's estimate of the trace.

    Raises:
        ValueError: where `slices` is not positive or there is no such projection; when called, where x or sigma is not
            what it should be.
    """

    slices: int = 1
    projection: Projection = "rademacher"
    variance_reduced: bool = True

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.slices < 1:
            raise ValueError(f"{name}: slices is {self.slices}, and must be at least 1")
        if self.projection not in PROJECTIONS:
            raise ValueError(
                f"{name}: projection is {self.projection}, and must be among {', '.join(PROJECTIONS)}"
            )

    def __call__(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        sigma = checked(sigma, x)
        x = noisy(x, sigma)
        directions = torch.stack([PROJECTIONS[self.projection](x) for _ in range(self.slices)])
        psi, curvatures = self.along(score, x, sigma, directions)
        if self.variance_reduced:
            squares = psi.square().flatten(1).sum(1)
        else:
            squares = (directions * psi).flatten(2).sum(2).square()
        return (curvatures + squares / 2).mean(0)

    def along(
        self, score: Score, x: Tensor, sigma: Tensor, directions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The score at `x`, and v . grad(v . score) along each v of `directions` (K, B, ...), shape (K, B)."""
        return curvature(score, x, sigma, directions)


@dataclass(frozen=True)
class FiniteDifferenceSlicedScoreMatching(SlicedScoreMatching):
    """Sliced score matching without a second derivative (Pang et al., 2020).

    The score's change along v is taken from its values at x + epsilon v and x - epsilon v, right to epsilon^2.

    Args:
        slices, projection, variance_reduced: as for `SlicedScoreMatching`.
        epsilon: the step, in the unit of x.

    Raises:
        ValueError: as `SlicedScoreMatching` does, and where `epsilon` is not positive.
    """

    epsilon: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.epsilon < math.inf:
            raise ValueError(
                f"{type(self).__name__}: epsilon is {self.epsilon}, and must be a positive number"
            )

    def along(
        self, score: Score, x: Tensor, sigma: Tensor, directions: Tensor
    ) -> tuple[Tensor, Tensor]:
        def change(v: Tensor) -> Tensor:
            ahead, behind = score(x + self.epsilon * v, sigma), score(x - self.epsilon * v, sigma)
            return (ahead - behind) / (2 * self.epsilon)

        return score(x, sigma), torch.stack([(v * change(v)).flatten(1).sum(1) for v in directions])
