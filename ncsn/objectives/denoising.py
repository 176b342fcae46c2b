"""Denoising score matching: the score of noisy data is the mean score of the noise on it."""

import math
from dataclasses import dataclass

from torch import Tensor

from ncsn.noise.checks import expect
from ncsn.noise.shapes import sum_per_example
from ncsn.noise.streams import normal
from ncsn.objectives.corruption import Corruption
from ncsn.objectives.objective import Objective
from ncsn.score import Score

__all__ = ["CorruptionScoreMatching", "DenoisingScoreMatching", "EDMScoreMatching"]


@dataclass(frozen=True)
class DenoisingScoreMatching(Objective):
    """Denoising score matching (Vincent, 2011, eq. 9), with the weight sigma^2.

    1/2 ||sigma score(x + sigma z, sigma) + z||^2 is the loss of Song & Ermon (2019, equations
    5 and 6): a zero score has a loss of d/2 at every level, where d is the dimension.
    """

    def __call__(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        z = normal(x)
        error = sigma * score(x + sigma * z, sigma) + z
        return sum_per_example(error**2) / 2


@dataclass(frozen=True)
class EDMScoreMatching(DenoisingScoreMatching):
    """Denoising score matching with EDM's weight (Karras et al., 2022, Table 1).

    The weight (sigma^2 + data_std^2) / (sigma data_std)^2 on the denoiser's squared error
    ||D - x||^2 = sigma^2 ||sigma score + z||^2 makes the loss of EDMDenoiser's network F equal
    at every level: d/2 for one that has learned nothing.

    Args:
        data_std: the standard deviation of the data, as given to `EDMDenoiser`.
    """

    data_std: float = 0.25

    def __post_init__(self) -> None:
        expect("data_std > 0", 0 < self.data_std < math.inf, self, data_std=self.data_std)

    def __call__(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        weight = (sigma / self.data_std) ** 2 + 1
        return weight.reshape(-1) * super().__call__(score, x, sigma)


@dataclass(frozen=True)
class CorruptionScoreMatching(DenoisingScoreMatching):
    """Denoising score matching with another corruption, and the weight sigma^2.

    Args:
        corruption: how data becomes noisy. The score that is learned is that of such data.
    """

    corruption: Corruption

    def __post_init__(self) -> None:
        object.__setattr__(self, "gaussian_noise", self.corruption.gaussian_noise)

    def __call__(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        noisy, target = self.corruption(x, sigma)
        error = sigma * (score(noisy, sigma) - target)
        return sum_per_example(error**2) / 2
