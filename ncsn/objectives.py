"""Objectives: how is the score learned?

An objective compares a score with data it has never seen the score of. Denoising score matching (Vincent, 2011)
needs only to make noise: the score of x + sigma z given x is -z / sigma, and the score of p_sigma is its mean
over all clean x, so that least squares finds it,

    loss = lambda(sigma) / 2 E ||score(x + sigma z, sigma) + z / sigma||^2.

Numbers go to the constructor, tensors to the call: `objective(score, x, sigma)` is one loss for each example,
shape (B,), summed over the example's dimensions; the caller reduces. Shapes: x (B, ...) clean data, sigma () or
(B, 1, ..., 1). A score of zero costs d/2 at every level under the weight lambda = sigma^2, d numbers an example.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ncsn.score import Score

__all__ = ["DenoisingScoreMatching", "EDMScoreMatching", "Objective"]


class Objective(ABC):
    """How the score is learned. Subclass it to bring your own."""

    @abstractmethod
    def __call__(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        """The loss (B,) of `score` on clean data `x` (B, ...) at noise level `sigma` () or (B, 1, ..., 1)."""


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
