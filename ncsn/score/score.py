"""A score: the type, the module that has one, and the posterior mean that it gives."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["Score", "ScoreModel", "log_prob_of", "tweedie"]

Score = Callable[[Tensor, Tensor], Tensor]
"""(x, sigma) -> grad_x log p_sigma(x), of the shape of x."""


def tweedie(score: Score, x: Tensor, sigma: Tensor) -> Tensor:
    """Return E[clean | x] = x + sigma^2 score(x, sigma), of x's shape (Efron, 2011, eq. 1.4)."""
    return x + sigma**2 * score(x, sigma)


class ScoreModel(nn.Module, ABC):
    """A module that has a score: a denoiser, or an energy."""

    @abstractmethod
    def score(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return grad_x log p_sigma(x), of the shape of `x`, given the classes `label` (B,)."""


def log_prob_of(model: ScoreModel, user: object) -> Score:
    """Return the log-probability (x, sigma) -> (B,) of a model, for an objective or a sampler.

    Raises:
        ValueError: if it has none, as a denoiser.
    """
    log_prob: Score | None = getattr(model, "log_prob", None)
    if log_prob is None:
        raise ValueError(
            f"{type(user).__name__} takes a log-probability, which "
            f"{type(model).__name__} does not give; make the denoiser an EnergyScore"
        )
    return log_prob
