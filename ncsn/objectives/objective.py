"""What every objective is."""

from abc import ABC, abstractmethod
from functools import partial

import torch
from torch import Tensor

from ncsn.objectives.corruption import GaussianNoise
from ncsn.score import Score, ScoreModel

__all__ = ["Objective", "noisy", "of_gaussian_noise"]


class Objective(ABC):
    """A way to learn the score. Subclass it to bring your own."""

    @abstractmethod
    def __call__(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the loss (B,) of `score` on clean `x` (B, ...) at noise level `sigma`."""

    def of(self, model: ScoreModel, label: Tensor | None = None) -> Score:
        """Return the function of a model that is learned: its score given the label (B,).

        Raises:
            ValueError: if the model does not give it.
        """
        return partial(model.score, label=label)


def of_gaussian_noise(objective: Objective) -> bool:
    """Return True if what is learned is the score of data with Gaussian noise."""
    while isinstance(inner := getattr(objective, "objective", None), Objective):
        objective = inner
    return isinstance(getattr(objective, "corruption", GaussianNoise()), GaussianNoise)


def noisy(x: Tensor, sigma: Tensor) -> Tensor:
    """x + sigma z, z ~ N(0, I): a draw from p_sigma, or from the data itself where sigma is 0."""
    return x + sigma * torch.randn_like(x)
