"""Samplers: how is the score walked back to data?

A sampler is a choice with numbers; called with a score, a start `x` (B, ...) and a ladder of noise levels `sigmas`
(L,) from large to small, it yields the state once a level, in the dtype of `x`, and the caller keeps what it wants:

    *_, x = sampler(score, x, sigmas)

It asks for a score and nothing else: a network, an exact density and a guided sum of both go in the same place.
Yielded tensors are never written to again. The state is not clamped: it becomes pixels once, at the end.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ncsn.score import Score, tweedie

__all__ = ["AnnealedLangevin", "Sampler"]


class Sampler(ABC):
    """How the score is walked back to data. Subclass it to bring your own."""

    @abstractmethod
    def __call__(self, score: Score, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
        """Walk `x` (B, ...) down the ladder `sigmas` (L,), and yield the state once a level: L tensors like `x`."""

    def check(self, sigmas: Tensor) -> None:  # noqa: B027 (most samplers work on any ladder)
        """Refuse a ladder on which this sampler cannot work.

        Raises:
            ValueError: with the setting to change and what it may be.
        """


@dataclass(frozen=True)
class AnnealedLangevin(Sampler):
    """Annealed Langevin dynamics (Song & Ermon, 2019, Algorithm 1).

    `steps` Euler-Maruyama steps on dX = grad log p_sigma(X) dt + sqrt(2) dW at each level, of size

        alpha = epsilon sigma^2 / sigma_min^2.

    This is the convention of the official code; the paper's own formula, alpha/2 and sqrt(alpha), is half the step.

    Args:
        epsilon: the step size at the lowest level. Pictures fill few of their dimensions, and where the data has no
            width of its own the walk is stable only below 2 sigma_min^2.
        steps: Langevin steps at each level.
        denoise: take the posterior mean of the last state (Jolicoeur-Martineau et al., 2021), one more score.

    Raises:
        ValueError: where `epsilon` or `steps` is not positive.
    """

    epsilon: float
    steps: int
    denoise: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"AnnealedLangevin: epsilon is {self.epsilon}, and must be a positive number")
        if self.steps != int(self.steps) or self.steps < 1:
            raise ValueError(f"AnnealedLangevin: steps is {self.steps}, and must be a whole number from 1")

    def check(self, sigmas: Tensor) -> None:
        limit = 2 * float(sigmas[-1]) ** 2
        if self.epsilon >= limit:
            raise ValueError(
                f"AnnealedLangevin: epsilon is {self.epsilon:g}, and the walk diverges from 2 sigma_min^2 = {limit:g} "
                f"on; about {0.04 * limit:.2g} is usual"
            )

    @torch.no_grad()
    def __call__(self, score: Score, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
        sigmas = sigmas.to(x)
        alphas = self.epsilon * (sigmas / sigmas[-1]) ** 2
        last = len(sigmas) - 1
        for level, (sigma, alpha) in enumerate(zip(sigmas, alphas, strict=True)):
            for _ in range(self.steps):
                z = torch.randn_like(x)
                x = x + alpha * score(x, sigma) + (2 * alpha).sqrt() * z
            if self.denoise and level == last:
                x = tweedie(score, x, sigma)
            yield x
