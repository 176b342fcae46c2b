"""The base class of objectives."""

from abc import ABC, abstractmethod
from functools import partial

import torch
from torch import Tensor

from ncsn.noise.checks import expect
from ncsn.score import Score, ScoreModel

__all__ = ["Objective", "check_noise", "noisy"]


class Objective(ABC):
    """A way to learn the score. Subclass it to add your own."""

    @abstractmethod
    def __call__(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the loss (B,) of `score` on clean `x` (B, ...) at `sigma` () or (B, 1, ..., 1)."""

    def of(self, model: ScoreModel, label: Tensor | None = None) -> Score:
        """Return the function of a model that the objective takes: its score, given the label.

        Raises:
            ValueError: if the model does not have it.
        """
        return partial(model.score, label=label)

    def check(self, x: Tensor, sigma: Tensor) -> None:  # noqa: B027 - not every one has to
        """Refuse examples or noise levels from which it learns nothing, before training begins.

        Raises:
            ValueError: with what is wrong.
        """

    @property
    def gaussian_noise(self) -> bool:
        """True if the score that is learned is that of data with Gaussian noise."""
        return True


def check_noise(objective: Objective, sigma: Tensor) -> None:
    """Refuse a noise level of 0."""
    low = sigma.min().item()
    expect("sigma > 0, for there to be noise to learn from", low > 0, objective, sigma=low)


def noisy(x: Tensor, sigma: Tensor) -> Tensor:
    """Return x + sigma z with z ~ N(0, I), a draw from p_sigma; the data itself at sigma = 0."""
    return x + sigma * torch.randn_like(x)
