"""Langevin dynamics: it equilibrates at a noise level, and the level is lowered."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor

from ncsn.noise import exact_steps
from ncsn.noise.checks import expect
from ncsn.noise.shapes import per_example, sum_per_example
from ncsn.noise.streams import normal, uniform
from ncsn.samplers.sampler import MAX_STEPS, Sampler
from ncsn.score import EnergyScore, Score, ScoreModel, log_prob_of, tweedie

__all__ = ["AnnealedLangevin", "ConsistentAnnealed", "Langevin", "MetropolisAdjustedLangevin"]


def langevin_step(x: Tensor, score: Tensor, alpha: Tensor, z: Tensor) -> Tensor:
    """Return the state after an Euler-Maruyama step on dX = grad log p(X) dt + sqrt(2) dW."""
    return x + alpha * score + (2 * alpha).sqrt() * z


@dataclass(frozen=True)
class Langevin(Sampler):
    """Unadjusted Langevin dynamics, with steps of the same size at every noise level.

    Its stationary distribution is p up to a bias of the order of the step. One level is
    enough; it may be 0, for the density of the data.

    Args:
        epsilon: step size alpha.
        steps: Langevin steps at each level.
    """

    remedy = "lower epsilon"
    rho = math.inf
    assumes_gaussian_noise = False
    epsilon: float
    steps: int

    def __post_init__(self) -> None:
        check_numbers(self, self.epsilon, self.steps)

    def check(self, sigmas: Tensor) -> None:
        """Accept any noise levels, 0 too."""

    @torch.no_grad()
    def __call__(self, score: Score, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
        for sigma in sigmas.to(x):
            for _ in range(self.steps):
                x = self.step(score, x, sigma)
            yield x

    def step(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the state after one step."""
        z = normal(x)
        return langevin_step(x, score(x, sigma), x.new_full((), self.epsilon), z)


@dataclass(frozen=True)
class MetropolisAdjustedLangevin(Langevin):
    """Langevin dynamics without bias: each step is a Metropolis-Hastings proposal
    (Roberts & Tweedie, 1996).

    Args:
        epsilon: step size alpha.
        steps: proposals at each level.
        log_prob: (x, sigma) -> (B,), the log-density up to a constant; the score is its gradient.
            None: it takes the model's own, which an energy has, in place of a score.
    """

    log_prob: Callable[[Tensor, Tensor], Tensor] | None = None

    def of(self, model: ScoreModel, label: Tensor | None = None) -> Score:
        return log_prob_of(model, self) if self.log_prob is None else super().of(model, label)

    @torch.no_grad()
    def __call__(self, score: Score, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
        if self.log_prob is not None:
            return super().__call__(score, x, sigmas)
        energy = EnergyScore(lambda x, sigma: -score(x, sigma))
        return replace(self, log_prob=energy.log_prob)(energy, x, sigmas)

    def step(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        z, s = normal(x), score(x, sigma)
        proposal = langevin_step(x, s, torch.tensor(self.epsilon, dtype=torch.float64), z)
        assert self.log_prob is not None
        log_ratio = (
            self.log_prob(proposal, sigma)
            - self.log_prob(x, sigma)
            + self._log_transition(x, proposal, score(proposal, sigma))
            - self._log_transition(proposal, x, s)
        )
        accepted = uniform(log_ratio).log() < log_ratio
        return torch.where(accepted.view(per_example(x)), proposal, x)

    def _log_transition(self, to: Tensor, x: Tensor, s: Tensor) -> Tensor:
        """Return log q(to given x) up to a constant, shape (B,), where s is the score at x."""
        return -sum_per_example((to - x - self.epsilon * s).square()) / (4 * self.epsilon)


@dataclass(frozen=True)
class AnnealedLangevin(Sampler):
    """Annealed Langevin dynamics (Song & Ermon, 2019, Algorithm 1).

    It takes `steps` Langevin steps at each level, of size

        alpha = epsilon sigma^2 / sigma_min^2.

    This is the convention of the official code. The formula of the paper, alpha / 2 and
    sqrt(alpha), gives half the step.

    By Euler and Maruyama's noise, sqrt(2 alpha) z, the result is too noisy for every `epsilon`
    (Song & Ermon, 2020, Proposition 3). "auto" chooses the step size and, in place of
    sqrt(2 alpha), a smaller factor of z, with which it is not (`ncsn.noise.exact_steps`): along
    directions in which the data have no extent, and nearly so along others.

    Args:
        epsilon: step size at the lowest level, or "auto". Images fill few of their dimensions;
            along the others the dynamics is stable only below 2 sigma_min^2.
        steps: Langevin steps at each level.
        denoise: return the posterior mean of the last state (Jolicoeur-Martineau et al., 2021),
            at the cost of one more score. It assumes Gaussian noise; the steps do not, but for
            the numbers that "auto" chooses.
    """

    remedy = "take more levels or steps, or lower epsilon"
    rho = math.inf
    epsilon: float | Literal["auto"] = "auto"
    steps: int = 5
    denoise: bool = True

    def __post_init__(self) -> None:
        check_numbers(self, 1.0 if self.epsilon == "auto" else self.epsilon, self.steps)

    @property
    def assumes_gaussian_noise(self) -> bool:
        return self.denoise

    def check(self, sigmas: Tensor) -> None:
        super().check(sigmas)
        epsilon, limit = self.epsilon, 2 * float(sigmas[-1]) ** 2
        if epsilon == "auto":
            expect(
                "two noise levels or a number for epsilon", len(sigmas) > 1, self, epsilon=epsilon
            )
            return
        rule = f"epsilon < 2 sigma_min^2 = {limit:g}, beyond which it diverges"
        usual = f"; about {0.04 * limit:.2g} is usual"
        expect(rule + usual, epsilon < limit, self, epsilon=epsilon)

    def moves(self, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha, and the factor of its noise sqrt(2 alpha) z, at each of the levels (L,)."""
        if self.epsilon == "auto":
            eta, q = exact_steps(sigmas, self.steps)
            return eta * sigmas**2, (q / (2 * eta)).sqrt()
        alphas = self.epsilon * (sigmas / sigmas[-1]) ** 2
        return alphas, torch.ones_like(alphas)

    @torch.no_grad()
    def __call__(self, score: Score, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
        moves, sigmas = self.moves(sigmas), sigmas.to(x)
        alphas, factors = (move.to(x) for move in moves)
        last = len(sigmas) - 1
        levels = zip(sigmas, alphas, factors, strict=True)
        for level, (sigma, alpha, factor) in enumerate(levels):
            for _ in range(self.steps):
                z = factor * normal(x)
                x = langevin_step(x, score(x, sigma), alpha, z)
            if self.denoise and level == last:
                x = tweedie(score, x, sigma)
            yield x


@dataclass(frozen=True)
class ConsistentAnnealed(Sampler):
    """Consistent annealed sampling (Jolicoeur-Martineau et al., 2021, Alg. 2): one step a level.

    An annealed Langevin step leaves more or less noise than the next level has. This one adds
    what is missing:

        x + eta sigma^2 score(x, sigma) + lower beta z,
        beta^2 = 1 - ((1 - eta) sigma / lower)^2,    eta = epsilon / sigma_min^2.

    The last state is denoised, at the cost of one more score.

    Args:
        epsilon: step size at the lowest level.
    """

    remedy = "lower epsilon"
    rho = math.inf
    epsilon: float

    def __post_init__(self) -> None:
        check_numbers(self, self.epsilon)

    def check(self, sigmas: Tensor) -> None:
        super().check(sigmas)
        if len(sigmas) < 2:
            return
        ratio = (sigmas[1:] / sigmas[:-1]).double().min().item()
        low, high = ((1 + sign * ratio) * float(sigmas[-1]) ** 2 for sign in (-1, 1))
        rule = f"{low:.3g} < epsilon < {high:.3g} (more levels widen the range)"
        expect(rule, low < self.epsilon < high, self, epsilon=self.epsilon)

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


def check_numbers(sampler: Sampler, epsilon: float | str, steps: int = 1) -> None:
    """Refuse a step size or a number of steps that is not positive."""
    positive = not isinstance(epsilon, str) and 0 < epsilon < math.inf
    expect("epsilon > 0", positive, sampler, epsilon=epsilon)
    whole = isinstance(steps, Integral) and 1 <= steps <= MAX_STEPS
    expect(f"an integer steps from 1 to {MAX_STEPS:,}", whole, sampler, steps=steps)
