"""Langevin dynamics: the walk rests at a noise level, and the level is lowered."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ncsn.noise import langevin_step_size
from ncsn.noise.streams import normal, uniform
from ncsn.samplers.sampler import Sampler
from ncsn.score import Score, tweedie

__all__ = ["AnnealedLangevin", "ConsistentAnnealed", "Langevin", "MetropolisAdjustedLangevin"]

GEOMETRIC_RHO = 100.0
"""So large that Karras's ladder is all but geometric: a walk that rests at each level needs them all as near."""


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

    remedy = "lower epsilon"
    rho = GEOMETRIC_RHO
    epsilon: float
    steps: int

    def __post_init__(self) -> None:
        check_walk(type(self).__name__, self.epsilon, self.steps)

    def check(self, sigmas: Tensor) -> None:
        """Any level will do, 0 too."""

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
        z, pull = normal(x), score(x, sigma)
        proposal = x + self.epsilon * pull + math.sqrt(2 * self.epsilon) * z
        log_ratio = (
            self.log_prob(proposal, sigma)
            - self.log_prob(x, sigma)
            + self._log_transition(x, proposal, score(proposal, sigma))
            - self._log_transition(proposal, x, pull)
        )
        accepted = uniform(log_ratio).log() < log_ratio
        return torch.where(accepted.view(-1, *[1] * (x.ndim - 1)), proposal, x)

    def _log_transition(self, to: Tensor, x: Tensor, pull: Tensor) -> Tensor:
        """log q(to given x) up to a constant, shape (B,), where the score at x is `pull`."""
        return -(to - x - self.epsilon * pull).square().flatten(1).sum(1) / (4 * self.epsilon)


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

    remedy = "lower epsilon"
    rho = GEOMETRIC_RHO
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
            raise ValueError(
                "AnnealedLangevin: epsilon is auto, which needs two levels or more; give a number"
            )
        return langevin_step_size(sigmas, self.steps)

    def check(self, sigmas: Tensor) -> None:
        super().check(sigmas)
        limit = 2 * float(sigmas[-1]) ** 2
        epsilon = self.step_size(sigmas)
        if epsilon >= limit:
            raise ValueError(
                f"AnnealedLangevin: epsilon is {epsilon:g}, and the walk diverges from 2 sigma_min^2 = {limit:g} "
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


@dataclass(frozen=True)
class ConsistentAnnealed(Sampler):
    """Consistent annealed sampling (Jolicoeur-Martineau et al., 2021, Algorithm 2): one step a level.

    Where an annealed Langevin step leaves another amount of noise than the next level has, this adds what is missing:

        x + eta sigma^2 score(x, sigma) + lower beta z,    beta^2 = 1 - ((1 - eta) sigma / lower)^2,

    eta = epsilon / sigma_min^2. The last state is denoised, one more score.

    Args:
        epsilon: the step size at the lowest level.

    Raises:
        ValueError: where `epsilon` is not positive.
    """

    remedy = "lower epsilon"
    rho = GEOMETRIC_RHO
    epsilon: float

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise ValueError(
                f"ConsistentAnnealed: epsilon is {self.epsilon}, and must be a positive number"
            )

    def check(self, sigmas: Tensor) -> None:
        super().check(sigmas)
        ratio = (sigmas[1:] / sigmas[:-1]).double()
        if not len(ratio):
            return
        scale = float(sigmas[-1]) ** 2
        low, high = (1 - ratio.min().item()) * scale, (1 + ratio.min().item()) * scale
        if not low < self.epsilon < high:
            raise ValueError(
                f"ConsistentAnnealed: epsilon is {self.epsilon:g}, and must be between {low:.3g} and {high:.3g} on "
                "this ladder; more levels widen that"
            )

    @torch.no_grad()
    def __call__(self, score: Score, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
        sigmas = sigmas.to(x)
        eta = self.epsilon / sigmas[-1] ** 2
        for sigma, lower in pairwise(sigmas):
            beta = (1 - ((1 - eta) * sigma / lower) ** 2).sqrt()
            x = x + eta * sigma**2 * score(x, sigma) + lower * beta * normal(x)
            yield x
        x = x + eta * sigmas[-1] ** 2 * score(x, sigmas[-1])
        yield tweedie(score, x, sigmas[-1])


def check_walk(name: str, epsilon: float, steps: int) -> None:
    """Refuse numbers with which the sampler called `name` cannot walk.

    Raises:
        ValueError: where one of them is not positive, or `steps` is not whole.
    """
    if isinstance(epsilon, str) or not 0 < epsilon < math.inf:
        raise ValueError(f"{name}: epsilon is {epsilon}, and must be a positive number")
    if not (isinstance(steps, int) and steps >= 1):
        raise ValueError(f"{name}: steps is {steps}, and must be a whole number from 1")


def euler_maruyama(score: Score, x: Tensor, sigma: Tensor, alpha: Tensor) -> Tensor:
    """One step of size `alpha` on dX = grad log p_sigma(X) dt + sqrt(2) dW."""
    z = normal(x)
    return x + alpha * score(x, sigma) + (2 * alpha).sqrt() * z
