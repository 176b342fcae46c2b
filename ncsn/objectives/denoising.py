"""Denoising score matching: the score of noisy data is the mean of the scores of the noise that made it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ncsn.objectives.objective import Objective
from ncsn.score import Score

__all__ = ["DenoisingScoreMatching", "EDMScoreMatching"]


@dataclass(frozen=True)
class DenoisingScoreMatching(Objective):
    """Multi-sigma denoising score matching (Song & Ermon, 2019, equations 5 and 6).

    Args:
        anneal_power: lambda(sigma) = sigma^anneal_power; 2, as in the paper, makes every level count alike.

    Raises:
        ValueError: where `anneal_power` is not finite.
    """

    anneal_power: float = 2.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.anneal_power):
            raise ValueError(f"DenoisingScoreMatching: anneal_power is {self.anneal_power}, and must be finite")

    def __call__(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        weight = sigma ** (self.anneal_power - 2)
        return (weight * denoising_error(score, x, sigma) ** 2).flatten(1).sum(1) / 2


@dataclass(frozen=True)
class EDMScoreMatching(Objective):
    """Denoising score matching with EDM's weight (Karras et al., 2022, Table 1).

    (sigma^2 + data_std^2) / (sigma data_std)^2 on the denoiser's squared error ||D - x||^2 = sigma^2 ||sigma score
    + z||^2 makes the loss of EDMDenoiser's network F equal at every level: d/2 for a fresh one.

    Args:
        data_std: the standard deviation of the data, as given to `EDMDenoiser`.

    Raises:
        ValueError: where `data_std` is not positive.
    """

    data_std: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.data_std < math.inf:
            raise ValueError(f"EDMScoreMatching: data_std is {self.data_std}, and must be a positive number")

    def __call__(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        weight = (sigma / self.data_std) ** 2 + 1
        return (weight * denoising_error(score, x, sigma) ** 2).flatten(1).sum(1) / 2


def denoising_error(score: Score, x: Tensor, sigma: Tensor) -> Tensor:
    """sigma (score - target) for one draw of noise, whose target is the score -z / sigma of x + sigma z given x."""
    z = torch.randn_like(x)
    error = sigma * score(x + sigma * z, sigma) + z
    return error
