"""Samplers: how is the score walked back to data?

A sampler is a choice with numbers; called with a score, a start `x` (B, ...) and a ladder of noise levels `sigmas`
(L,) from large to small, it yields the state once a level, in the dtype of `x`, and the caller keeps what it wants:

    *_, x = sampler(score, x, sigmas)

It asks for a score and nothing else: a network, an exact density and a guided sum of both go in the same place.
Yielded tensors are never written to again. The state is not clamped: it becomes pixels once, at the end.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ncsn.noise import langevin_step_size
from ncsn.score import Score, tweedie

__all__ = ["AnnealedLangevin", "Gibbs", "Langevin", "MetropolisAdjustedLangevin", "Sampler"]


class Sampler(ABC):
    """How the score is walked back to data. Subclass it to bring your own.

    `takes` says what it is given: the score of a model, or its log-probability (x, sigma) -> (B,).
    """

    takes: ClassVar[Literal["score", "log_prob"]] = "score"

    @abstractmethod
    def __call__(self, score: Score, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
        """Walk `x` (B, ...) down the ladder `sigmas` (L,), and yield the state once a level: L tensors like `x`."""

    def check(self, sigmas: Tensor) -> None:  # noqa: B027 (most samplers work on any ladder)
        """Refuse a ladder on which this sampler cannot work.

        Raises:
            ValueError: with the setting to change and what it may be.
        """


@dataclass(frozen=True)
class Langevin(Sampler):
    """Unadjusted Langevin dynamics of a single density: Euler-Maruyama steps on dX = grad log p(X) dt + sqrt(2) dW.

    Its stationary law is p but for a bias of the order of the step. A ladder of one level is enough, 0 for the data's
    own density; at each level of a longer one it takes as many steps of the same size.

    Args:
        epsilon: the step size alpha.
        steps: Langevin steps at each level.

    Raises:
        ValueError: where `epsilon` or `steps` is not positive.
    """

    epsilon: float
    steps: int

    def __post_init__(self) -> None:
        check_walk(type(self).__name__, self.epsilon, self.steps)

    @torch.no_grad()
    def __call__(self, score: Score, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
        for sigma in sigmas.to(x):
            for _ in range(self.steps):
                x = self.step(score, x, sigma)
            yield x

    def step(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        """The state after one step from `x`."""
        return euler_maruyama(score, x, sigma, torch.as_tensor(self.epsilon).to(x))


@dataclass(frozen=True)
class MetropolisAdjustedLangevin(Langevin):
    """Langevin dynamics without bias: each step is taken or not, by Metropolis and Hastings (Roberts & Tweedie, 1996).

    Args:
        epsilon: the step size alpha.
        steps: proposals at each level.
        log_prob: (x, sigma) -> (B,), the log-density up to a constant, of which the score is the gradient.

    Raises:
        ValueError: where `epsilon` or `steps` is not positive.
    """

    log_prob: Callable[[Tensor, Tensor], Tensor]

    def step(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        proposal = super().step(score, x, sigma)
        log_ratio = (
            self.log_prob(proposal, sigma)
            - self.log_prob(x, sigma)
            + self._log_transition(score, proposal, x, sigma)
            - self._log_transition(score, x, proposal, sigma)
        )
        accepted = torch.rand_like(log_ratio).log() < log_ratio
        return torch.where(accepted.view(-1, *[1] * (x.ndim - 1)), proposal, x)

    def _log_transition(self, score: Score, x: Tensor, to: Tensor, sigma: Tensor) -> Tensor:
        """log q(to given x) up to a constant, shape (B,)."""
        return -(to - x - self.epsilon * score(x, sigma)).square().flatten(1).sum(1) / (4 * self.epsilon)


@dataclass(frozen=True)
class Gibbs(Sampler):
    """Gibbs sampling of binary data: each bit in its turn is drawn given the others (Geman & Geman, 1984).

    It is given the log-probability of a model, up to a constant, in place of a score. The walk starts from the bits of
    the start that are above 1/2.

    Args:
        sweeps: how often it goes through all the bits, at each level.

    Raises:
        ValueError: where `sweeps` is not positive.
    """

    takes = "log_prob"
    sweeps: int

    def __post_init__(self) -> None:
        if self.sweeps < 1:
            raise ValueError(f"Gibbs: sweeps is {self.sweeps}, and must be at least 1")

    @torch.no_grad()
    def __call__(self, log_prob: Score, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
        x = (x > 0.5).to(x)
        for sigma in sigmas.to(x):
            for _ in range(self.sweeps):
                for bit in range(x[0].numel()):
                    on, off = (
                        x.flatten(1).index_fill(1, torch.tensor(bit, device=x.device), value) for value in (1, 0)
                    )
                    log_odds = log_prob(on.view_as(x), sigma) - log_prob(off.view_as(x), sigma)
                    x = torch.where(log_odds.sigmoid().bernoulli().bool().unsqueeze(1), on, off).view_as(x)
            yield x


@dataclass(frozen=True)
class AnnealedLangevin(Sampler):
    """Annealed Langevin dynamics (Song & Ermon, 2019, Algorithm 1).

    `steps` Langevin steps at each level, of size

        alpha = epsilon sigma^2 / sigma_min^2.

    This is the convention of the official code; the paper's own formula, alpha/2 and sqrt(alpha), is half the step.

    Args:
        epsilon: the step size at the lowest level, or "auto" for `ncsn.noise.langevin_step_size` of the ladder that is
            walked. Pictures fill few of their dimensions, and where the data has no width of its own the walk is
            stable only below 2 sigma_min^2.
        steps: Langevin steps at each level.
        denoise: take the posterior mean of the last state (Jolicoeur-Martineau et al., 2021), one more score.

    Raises:
        ValueError: where `epsilon` or `steps` is not positive.
    """

    epsilon: float | Literal["auto"]
    steps: int
    denoise: bool = True

    def __post_init__(self) -> None:
        check_walk(type(self).__name__, 1.0 if self.epsilon == "auto" else self.epsilon, self.steps)

    def step_size(self, sigmas: Tensor) -> float:
        """The step size at the lowest level of the ladder `sigmas` (L,).

        Raises:
            ValueError: where it is "auto", which needs two levels, and there is one.
        """
        if self.epsilon != "auto":
            return self.epsilon
        if len(sigmas) < 2:
            raise ValueError("AnnealedLangevin: epsilon is auto, which needs two levels or more; give a number")
        return langevin_step_size(sigmas, self.steps)

    def check(self, sigmas: Tensor) -> None:
        limit = 2 * float(sigmas[-1]) ** 2
        if self.step_size(sigmas) >= limit:
            raise ValueError(
                f"AnnealedLangevin: epsilon is {self.epsilon:g}, and the walk diverges from 2 sigma_min^2 = {limit:g} "
                f"on; about {0.04 * limit:.2g} is usual"
            )

    @torch.no_grad()
    def __call__(self, score: Score, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
        sigmas = sigmas.to(x)
        alphas = self.step_size(sigmas) * (sigmas / sigmas[-1]) ** 2
        last = len(sigmas) - 1
        for level, (sigma, alpha) in enumerate(zip(sigmas, alphas, strict=True)):
            for _ in range(self.steps):
                x = euler_maruyama(score, x, sigma, alpha)
            if self.denoise and level == last:
                x = tweedie(score, x, sigma)
            yield x


def check_walk(name: str, epsilon: float, steps: int) -> None:
    """Refuse numbers with which the sampler called `name` cannot walk.

    Raises:
        ValueError: where one of them is not positive, or `steps` is not whole.
    """
    if isinstance(epsilon, str) or not 0 < epsilon < math.inf:
        raise ValueError(f"{name}: epsilon is {epsilon}, and must be a positive number")
    if steps != int(steps) or steps < 1:
        raise ValueError(f"{name}: steps is {steps}, and must be a whole number from 1")


def euler_maruyama(score: Score, x: Tensor, sigma: Tensor, alpha: Tensor) -> Tensor:
    """One step of size `alpha` on dX = grad log p_sigma(X) dt + sqrt(2) dW."""
    z = torch.randn_like(x)
    return x + alpha * score(x, sigma) + (2 * alpha).sqrt() * z
