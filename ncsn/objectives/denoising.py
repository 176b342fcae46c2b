"""Denoising score matching: the score of noisy data is the mean of the scores of the noise that made it."""

import math
from dataclasses import dataclass

from torch import Tensor

from ncsn.noise import positive
from ncsn.objectives.corruption import Corruption, GaussianNoise
from ncsn.objectives.objective import Objective
from ncsn.score import Score

__all__ = ["DenoisingScoreMatching", "EDMScoreMatching"]

GAUSSIAN = GaussianNoise()


@dataclass(frozen=True)
class DenoisingScoreMatching(Objective):
    """Multi-sigma denoising score matching (Vincent, 2011, equation 9; Song & Ermon, 2019, equations 5 and 6).

    Args:
        anneal_power: lambda(sigma) = sigma^anneal_power; 2, as in the paper, makes every level count alike.
        corruption: how the data is made noisy. The score that is learned is that of data made noisy so.

    Raises:
        ValueError: where `anneal_power` is not finite; when called, as every objective, and where a sigma is 0.
    """

    anneal_power: float = 2.0
    corruption: Corruption = GAUSSIAN

    def __post_init__(self) -> None:
        if not math.isfinite(self.anneal_power):
            raise ValueError(
                f"DenoisingScoreMatching: anneal_power is {self.anneal_power}, and must be finite"
            )

    def __call__(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        sigma = positive(sigma, x)
        weight = sigma ** (self.anneal_power - 2)
        return (weight * denoising_error(score, x, sigma, self.corruption) ** 2).flatten(1).sum(
            1
        ) / 2


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
            raise ValueError(
                f"EDMScoreMatching: data_std is {self.data_std}, and must be a positive number"
            )

    def __call__(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        sigma = positive(sigma, x)
        weight = (sigma / self.data_std) ** 2 + 1
        return (weight * denoising_error(score, x, sigma) ** 2).flatten(1).sum(1) / 2


def denoising_error(
    score: Score, x: Tensor, sigma: Tensor, corruption: Corruption = GAUSSIAN
) -> Tensor:
    """sigma (score - target) for one draw of noise, whose target is its score given x: -z / sigma for x + sigma z."""
    noisy, target = corruption(x, sigma)
    error = sigma * (score(noisy, sigma) - target)
    return error
