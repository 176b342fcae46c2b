"""Explicit score matching: against a score that is known."""

from dataclasses import dataclass

from torch import Tensor

from ncsn.noise import checked
from ncsn.objectives.objective import Objective, noisy
from ncsn.score import Score
from ncsn.score.densities import Density

__all__ = ["ExplicitScoreMatching"]


@dataclass(frozen=True)
class ExplicitScoreMatching(Objective):
    """The Fisher divergence 1/2 E ||score - target||^2 itself (Hyvarinen, 2005, equation 2).

    Args:
        target: the score that is known, or the density that it is of: an exact one, or a Parzen window over the data
            (Vincent, 2011).

    Raises:
        ValueError: when called, where x or sigma is not what it should be.
    """

    target: Density | Score

    def __call__(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        sigma = checked(sigma, x)
        x = noisy(x, sigma)
        target = self.target.score if isinstance(self.target, Density) else self.target
        return (score(x, sigma) - target(x, sigma)).square().flatten(1).sum(1) / 2
