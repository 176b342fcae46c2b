"""Explicit score matching: against a score that is known."""

from dataclasses import dataclass

from torch import Tensor

from ncsn.noise.gaussian import noisy
from ncsn.noise.shapes import sum_per_example
from ncsn.objectives.objective import Objective
from ncsn.score import Score
from ncsn.score.densities import Density

__all__ = ["ExplicitScoreMatching"]


@dataclass(frozen=True)
class ExplicitScoreMatching(Objective):
    """The Fisher divergence 1/2 E ||score - target||^2 itself (Hyvarinen, 2005, equation 2).

    Args:
        target: the known score, or its density: an exact one, or a Parzen window over the data
            (Vincent, 2011).
    """

    target: Density | Score

    def __call__(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        x = noisy(x, sigma)
        target = self.target.score if isinstance(self.target, Density) else self.target
        return sum_per_example((score(x, sigma) - target(x, sigma)).square()) / 2
