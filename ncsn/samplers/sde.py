"""The reverse of the diffusion: from each noise level to the next lower one, with noise."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ncsn.noise.streams import normal
from ncsn.samplers.sampler import Sampler, falling
from ncsn.score import Score

__all__ = ["Ancestral", "EulerMaruyama", "PredictorCorrector"]


@dataclass(frozen=True)
class EulerMaruyama(Sampler):
    """Euler-Maruyama steps on the reverse of the variance-exploding diffusion (Song et al., 2021, equation 46):

        x + (sigma^2 - lower^2) score(x, sigma) + sqrt(sigma^2 - lower^2) z

    The last step, to 0, is without its noise: the posterior mean.
    """

    @torch.no_grad()
    def __call__(self, score: Score, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
        for sigma, lower, last in falling(x, sigmas):
            x = self.correct(score, x, sigma)
            x = x + (sigma**2 - lower**2) * score(x, sigma)
            if not last:
                x = x + self.spread(sigma, lower) * normal(x)
            yield x

    def correct(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        """The state `x` at the level `sigma`, before it is left."""
        return x

    def spread(self, sigma: Tensor, lower: Tensor) -> Tensor:
        """The standard deviation of the noise of a step."""
        return (sigma**2 - lower**2).sqrt()


@dataclass(frozen=True)
class Ancestral(EulerMaruyama):
    """Ancestral sampling (Song et al., 2021, equation 47): with as much noise as the posterior given the clean x has.

    x + (sigma^2 - lower^2) score(x, sigma) + (lower / sigma) sqrt(sigma^2 - lower^2) z
    """

    def spread(self, sigma: Tensor, lower: Tensor) -> Tensor:
        return lower / sigma * super().spread(sigma, lower)


@dataclass(frozen=True)
class PredictorCorrector(EulerMaruyama):
    """Langevin steps at each level before each step to the next (Song et al., 2021, Algorithms 2 and 4).

    A Langevin step is of size alpha = 2 (snr ||z|| / ||score||)^2, with the norms of each sample; the original takes
    their means over the batch, so that a sample depends on the others. It is at most 2 (snr sigma)^2, which noise alone
    would make it: in few dimensions a walk comes so near to a mode, where the score is 0, that it would have no bound.
    In the plane samples are still some percent too wide, since a step depends on its own noise; in many dimensions, as
    of pictures, neither matters.

    Args:
        snr: the ratio of the size of a correction to that of its noise.
        corrector_steps: Langevin steps at each level.

    Raises:
        ValueError: where `snr` is not positive, or `corrector_steps` is negative.
    """

    remedy = "lower snr, or take more steps"
    snr: float = 0.16
    corrector_steps: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.snr < math.inf:
            raise ValueError(
                f"PredictorCorrector: snr is {self.snr}, and must be a positive number"
            )
        if self.corrector_steps < 0:
            raise ValueError(
                f"PredictorCorrector: corrector_steps is {self.corrector_steps}, and must be at least 0"
            )

    def correct(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        for _ in range(self.corrector_steps):
            z, pull = normal(x), score(x, sigma)
            alpha = (2 * (self.snr * norms(z) / norms(pull)) ** 2).clamp(
                max=2 * (self.snr * sigma) ** 2
            )
            x = x + alpha * pull + (2 * alpha).sqrt() * z
        return x


def norms(x: Tensor) -> Tensor:
    """The length of each example of `x` (B, ...): (B, 1, ..., 1)."""
    length: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)
    return length
