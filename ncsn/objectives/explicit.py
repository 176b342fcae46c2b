"""Explicit score matching: against a score that is known."""

from dataclasses import dataclass

from torch import Tensor

from ncsn.objectives.objective import Objective, noisy
from ncsn.score import Score

__all__ = ["ExplicitScoreMatching"]


@dataclass(frozen=True)
class ExplicitScoreMatching(Objective):
    """The Fisher divergence 1/2 E ||score - target||^2 itself (Hyvarinen, 2005, equation 2).

    Args:
        target: the score that is known, of an exact density or of a Parzen window over the data (Vincent, 2011).
    """

    target: Score

    def __call__(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        x = noisy(x, sigma)
        return (score(x, sigma) - self.target(x, sigma)).square().flatten(1).sum(1) / 2
