"""What every objective is."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ncsn.objectives.corruption import GaussianNoise
from ncsn.score import Score

__all__ = ["Objective", "noisy", "of_gaussian_noise"]


class Objective(ABC):
    """How the score is learned. Subclass it to bring your own.

    `takes` says what it is given: the score of a model, or its log-probability (x, sigma) -> (B,).
    """

    takes: ClassVar[Literal["score", "log_prob"]] = "score"

    @abstractmethod
    def __call__(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        """The loss (B,) of `score` on clean data `x` (B, ...) at noise level `sigma` () or (B, 1, ..., 1)."""


def of_gaussian_noise(objective: Objective) -> bool:
    """Return True if what is learned is the score of data with Gaussian noise."""
    while isinstance(inner := getattr(objective, "objective", None), Objective):
        objective = inner
    return isinstance(getattr(objective, "corruption", GaussianNoise()), GaussianNoise)


def noisy(x: Tensor, sigma: Tensor) -> Tensor:
    """x + sigma z, z ~ N(0, I): a draw from p_sigma, or from the data itself where sigma is 0."""
    return x + sigma * torch.randn_like(x)
