"""Gibbs sampling of binary data."""

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from ncsn.noise.checks import expect
from ncsn.noise.streams import uniform
from ncsn.samplers.sampler import MAX_STEPS, Sampler
from ncsn.score import Score, ScoreModel, log_prob_of

__all__ = ["Gibbs"]


@dataclass(frozen=True)
class Gibbs(Sampler):
    """Gibbs sampling: each bit in turn, given the others (Geman & Geman, 1984).

    It works on the log-probability of a model, up to a constant. The first state has a 1 where
    the start is above 1/2.

    Args:
        sweeps: passes over all bits, at each noise level.
    """

    assumes_gaussian_noise = False
    sweeps: int

    def __post_init__(self) -> None:
        whole = isinstance(self.sweeps, Integral) and 1 <= self.sweeps <= MAX_STEPS
        expect(f"an integer sweeps from 1 to {MAX_STEPS:,}", whole, self, sweeps=self.sweeps)

    def of(self, model: ScoreModel, label: Tensor | None = None) -> Score:
        return log_prob_of(model, self)

    def check(self, sigmas: Tensor) -> None:
        """Accept any noise levels, 0 too."""

    @torch.no_grad()
    def __call__(self, log_prob: Score, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
        x = (x > 0.5).to(x)
        bits = torch.arange(x[0].numel(), device=x.device)
        for sigma in sigmas.to(x):
            for _ in range(self.sweeps):
                numbers = uniform(x.flatten(1)).unbind(1)
                for bit, u in zip(bits, numbers, strict=True):
                    on, off = (x.flatten(1).index_fill(1, bit, value) for value in (1, 0))
                    log_odds = log_prob(on.view_as(x), sigma) - log_prob(off.view_as(x), sigma)
                    chosen = u < log_odds.sigmoid()
                    x = torch.where(chosen.unsqueeze(1), on, off).view_as(x)
            yield x
