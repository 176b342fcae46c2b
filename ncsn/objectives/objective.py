"""The base class of objectives."""

from abc import ABC, abstractmethod
from functools import partial

from torch import Tensor

from ncsn.score import Score, ScoreModel

__all__ = ["Objective"]


class Objective(ABC):
    """A way to learn the score. Subclass it to add your own."""

    gaussian_noise = True
    """True if the score that is learned is that of data with Gaussian noise."""
    binary_data = False
    """True if the data must be zeros and ones."""

    @abstractmethod
    def __call__(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the loss (B,) of `score` on clean `x` (B, ...) at `sigma` () or (B, 1, ..., 1)."""

    def of(self, model: ScoreModel, label: Tensor | None = None) -> Score:
        """Return the function of a model that the objective takes: its score, given the label.

        Raises:
            ValueError: if the model does not have it.
        """
        return partial(model.score, label=label)
