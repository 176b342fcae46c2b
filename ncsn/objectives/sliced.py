"""Sliced score matching: the divergence of the score along random directions."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ncsn.noise.checks import expect
from ncsn.noise.gaussian import noisy
from ncsn.noise.shapes import sum_per_example
from ncsn.objectives.directions import PROJECTIONS, Projection
from ncsn.objectives.objective import Objective
from ncsn.score import Score, jacobian_quadratic_forms

__all__ = ["FiniteDifferenceSlicedScoreMatching", "SlicedScoreMatching"]


@dataclass(frozen=True)
class SlicedScoreMatching(Objective):
    """v . grad(v . score) + 1/2 (v . score)^2 over random v (Song et al., 2019, equation 8).

    Args:
        slices: directions for each example, one backward pass each.
        projection: their distribution: "rademacher", "gaussian" or "sphere".
        variance_reduced: use 1/2 ||score||^2 in place of the square (equation 9), which is its
            mean over v. With Rademacher directions this is implicit score matching with
            Hutchinson's estimate of the trace.
    """

    slices: int = 1
    projection: Projection = "rademacher"
    variance_reduced: bool = True

    def __post_init__(self) -> None:
        known = ", ".join(PROJECTIONS)
        expect("slices >= 1", self.slices >= 1, self, slices=self.slices)
        expect(known, self.projection in PROJECTIONS, self, projection=self.projection)

    def __call__(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        x = noisy(x, sigma)
        directions = torch.stack([PROJECTIONS[self.projection](x) for _ in range(self.slices)])
        psi, forms = self.along(score, x, sigma, directions)
        if self.variance_reduced:
            squares = sum_per_example(psi.square())
        else:
            squares = torch.stack([sum_per_example(v * psi) for v in directions]).square()
        return (forms + squares / 2).mean(0)

    def along(
        self, score: Score, x: Tensor, sigma: Tensor, directions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the score at `x`, and v . grad(v . score) for each direction (K, B, ...): (K, B)."""
        return jacobian_quadratic_forms(score, x, sigma, directions)


@dataclass(frozen=True)
class FiniteDifferenceSlicedScoreMatching(SlicedScoreMatching):
    """Sliced score matching without a second derivative (Pang et al., 2020).

    The change of the score along v comes from its values at x + h v and x - h v, where
    h = epsilon sigma, with an error of order epsilon^2.

    Args:
        slices, projection, variance_reduced: as for `SlicedScoreMatching`.
        epsilon: the step h in units of sigma; in the unit of x for data without noise, sigma = 0.
    """

    epsilon: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        expect("epsilon > 0", 0 < self.epsilon < math.inf, self, epsilon=self.epsilon)

    def along(
        self, score: Score, x: Tensor, sigma: Tensor, directions: Tensor
    ) -> tuple[Tensor, Tensor]:
        h = self.epsilon * torch.where(sigma > 0, sigma, 1)

        def change(v: Tensor) -> Tensor:
            return (score(x + h * v, sigma) - score(x - h * v, sigma)) / (2 * h)

        return score(x, sigma), torch.stack([sum_per_example(v * change(v)) for v in directions])
