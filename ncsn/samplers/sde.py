"""The reverse diffusion: from each noise level to the next lower one, with noise."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from ncsn.noise.checks import expect
from ncsn.noise.shapes import norm_per_example
from ncsn.noise.streams import normal
from ncsn.samplers.langevin import langevin_step
from ncsn.samplers.sampler import MAX_STEPS, Sampler, level_pairs
from ncsn.score import Score

__all__ = ["Ancestral", "EulerMaruyama", "PredictorCorrector"]


@dataclass(frozen=True)
class EulerMaruyama(Sampler):
    """Euler-Maruyama steps on the reverse variance-exploding SDE (Song et al., 2021, eq. 46):

        x + (sigma^2 - lower^2) score(x, sigma) + sqrt(sigma^2 - lower^2) z

    The last step, to 0, adds no noise: it returns the posterior mean.
    """

    @torch.no_grad()
    def __call__(self, score: Score, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
        for sigma, lower, last in level_pairs(x, sigmas):
            x = self.correct(score, x, sigma)
            x = x + (sigma**2 - lower**2) * score(x, sigma)
            if not last:
                x = x + self.std(sigma, lower) * normal(x)
            yield x

    def correct(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the state from which the step to the next level is taken."""
        return x

    def std(self, sigma: Tensor, lower: Tensor) -> Tensor:
        """Return the standard deviation of the noise of a step."""
        return (sigma**2 - lower**2).sqrt()


@dataclass(frozen=True)
class Ancestral(EulerMaruyama):
    """Ancestral sampling (Song et al., 2021, eq. 47).

    x + (sigma^2 - lower^2) score(x, sigma) + (lower / sigma) sqrt(sigma^2 - lower^2) z,

    with the noise variance of the posterior q(x_lower given x, clean x).
    """

    def std(self, sigma: Tensor, lower: Tensor) -> Tensor:
        return lower / sigma * super().std(sigma, lower)


@dataclass(frozen=True)
class PredictorCorrector(EulerMaruyama):
    """Langevin steps at each level before the step to the next (Song et al., 2021, Alg. 2 and 4).

    The step size is alpha = 2 (snr ||z|| / ||score||)^2, with the norms of each sample; the
    original takes means over the batch, which couples the samples. It is at most
    2 (snr sigma)^2, its value for pure noise: in few dimensions the score vanishes near a mode,
    and alpha would have no bound. In two dimensions samples are still some percent too wide,
    because a step depends on its own noise; in many dimensions neither matters.

    Args:
        snr: ratio of the size of a correction to that of its noise.
        corrector_steps: Langevin steps at each level.
    """

    remedy = "lower snr, or take more steps"
    snr: float = 0.16
    corrector_steps: int = 1

    def __post_init__(self) -> None:
        steps = self.corrector_steps
        expect("snr > 0", 0 < self.snr < math.inf, self, snr=self.snr)
        rule = f"an integer corrector_steps from 0 to {MAX_STEPS:,}"
        holds = isinstance(steps, Integral) and 0 <= steps <= MAX_STEPS
        expect(rule, holds, self, corrector_steps=steps)

    def correct(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        for _ in range(self.corrector_steps):
            z, s = normal(x), score(x, sigma)
            alpha = 2 * (self.snr * norm_per_example(z) / norm_per_example(s)) ** 2
            x = langevin_step(x, s, alpha.clamp(max=2 * (self.snr * sigma) ** 2), z)
        return x
