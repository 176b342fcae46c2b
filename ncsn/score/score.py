"""What a score is: the type, the module that has one, and the posterior mean that it gives."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["Score", "ScoreModel", "tweedie"]

Score = Callable[[Tensor, Tensor], Tensor]
"""(x, sigma) -> grad_x log p_sigma(x), of the shape of x."""


def tweedie(score: Score, x: Tensor, sigma: Tensor) -> Tensor:
    """The posterior mean E[clean | x] = x + sigma^2 score(x, sigma) (Efron, 2011, equation 1.4)."""
    return x + sigma**2 * score(x, sigma)


class ScoreModel(nn.Module, ABC):
    """A module that knows a score: what a `ScoreModule` trains and draws from."""

    @abstractmethod
    def score(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """grad_x log p_sigma(x), of the shape of `x`, for the classes `label` (B,) where they are given."""
