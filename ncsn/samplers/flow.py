"""The probability flow, and its stochastic relatives, from each level to the next lower one."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ncsn.noise.checks import expect
from ncsn.noise.streams import normal
from ncsn.samplers.sampler import Sampler, level_pairs
from ncsn.score import Score, tweedie
from ncsn.score.flow import euler_step, heun_step

__all__ = ["DPMSolver", "Euler", "Heun", "SASolver"]


@dataclass(frozen=True)
class Euler(Sampler):
    """Euler steps down the probability flow: one score a level."""

    @torch.no_grad()
    def __call__(self, score: Score, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
        for sigma, lower, _ in level_pairs(x, sigmas):
            x = euler_step(score, x, sigma, lower)
            yield x


@dataclass(frozen=True)
class Heun(Sampler):
    """Heun steps down the probability flow: two scores a level (Karras et al., 2022, Alg. 2).

    With churn, the level is first raised from sigma to sigma (1 + gamma) by added noise, where
    gamma = min(churn / L, sqrt(2) - 1) and L is the number of levels. The last step, to 0, is
    an Euler step, to the posterior mean.

    Args:
        churn: amount of noise that is added over all levels.
        churn_min: lowest noise level at which it is added.
        churn_max: highest noise level at which it is added.
        inflation: standard deviation of the added noise; slightly above 1 it compensates for a
            network that removes too much.
    """

    remedy = "take more steps, or lower churn"
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    inflation: float = 1.0

    def __post_init__(self) -> None:
        for name in ("churn", "churn_min", "inflation"):
            value = getattr(self, name)
            expect(f"{name} >= 0", 0 <= value < math.inf, self, **{name: value})
        low, high = self.churn_min, self.churn_max
        expect("churn_min <= churn_max", low <= high, self, churn_min=low, churn_max=high)

    @torch.no_grad()
    def __call__(self, score: Score, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
        gamma = min(self.churn / len(sigmas), math.sqrt(2) - 1)
        churned = [gamma > 0 and self.churn_min <= s <= self.churn_max for s in sigmas.tolist()]
        for (sigma, lower, last), churn in zip(level_pairs(x, sigmas), churned, strict=True):
            start = sigma
            if churn:
                start = sigma * (1 + gamma)
                x = x + self.inflation * (start**2 - sigma**2).sqrt() * normal(x)
            x = (euler_step if last else heun_step)(score, x, start, lower)
            yield x


@dataclass(frozen=True)
class DPMSolver(Sampler):
    """DPM-Solver++(2M) (Lu et al., 2022, Alg. 2): second order at one score a level.

    It is exact in the linear part of dx = (1 + eta) (x - D) dsigma / sigma + noise. For every
    eta these have the same p_sigma: eta = 0 is the probability flow, 1 the reverse diffusion of
    `Ancestral`, and larger values approach Langevin dynamics. With h = ln(sigma / lower), and
    the slope D' of D in -ln sigma between the previous level and this one, a step is

        exp(-(1 + eta) h) x + (1 - exp(-(1 + eta) h)) (D + D' h / 2)
            + lower sqrt(1 - exp(-2 eta h)) z

    The first step and the last, to 0, are of first order; the last gives the posterior mean.

    Args:
        eta: amount of noise that is added and removed; it corrects errors of the network.
    """

    remedy = "lower eta, or take more steps"
    eta: float = 0.0

    def __post_init__(self) -> None:
        expect("eta >= 0", 0 <= self.eta < math.inf, self, eta=self.eta)

    def check(self, sigmas: Tensor) -> None:
        super().check(sigmas)
        for sigma, lower in pairwise(sigmas.tolist()):
            rule = "decreasing noise levels (take fewer, or further apart)"
            expect(rule, lower < sigma, self, sigma=sigma, lower=lower)

    @torch.no_grad()
    def __call__(self, score: Score, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
        # As Python numbers, so that the coefficients of a step take no kernels.
        levels = pairwise([*sigmas.tolist(), 0.0])
        before: tuple[Tensor, float] | None = None
        for level, (sigma, lower) in zip(sigmas.to(x), levels, strict=True):
            denoised = tweedie(score, x, level).to(x)
            h = math.log(sigma / lower) if lower else math.inf
            shrink = math.exp(-(1 + self.eta) * h)
            x = torch.lerp(denoised, x, shrink)
            if before is not None and lower:
                previous, last_h = before
                x = x.add(denoised - previous, alpha=self.slope_weight(h, shrink) / last_h)
            if self.eta and lower:
                x = x.add(normal(x), alpha=lower * math.sqrt(-math.expm1(-2 * self.eta * h)))
            yield x
            before = denoised, h

    def slope_weight(self, h: float, shrink: float) -> float:
        """Return the coefficient of D' in a step of `h`, which multiplies x by `shrink`."""
        return (1 - shrink) * h / 2


@dataclass(frozen=True)
class SASolver(DPMSolver):
    """`DPMSolver` with D' integrated exactly: SA-Solver's two-step predictor (Xue et al., 2023).

        exp(-(1 + eta) h) x + (1 - exp(-(1 + eta) h)) D
            + (h - (1 - exp(-(1 + eta) h)) / (1 + eta)) D' + lower sqrt(1 - exp(-2 eta h)) z

    Their tau^2 is `eta`, and their corrector is left out. The two agree if (1 + eta) h is small.
    With few steps and large `eta` it overshoots, because D' contains the previous step's noise:
    at eta=3 and 20 levels from sigma=10 to 0.02, the variance of a Gaussian comes out 50 % too
    large.

    Args:
        eta: amount of noise that is added and removed.
    """

    def slope_weight(self, h: float, shrink: float) -> float:
        return h - (1 - shrink) / (1 + self.eta)


StochasticHeun = Heun  # its name in earlier versions


def ProbabilityFlow(order: Literal[1, 2] = 2) -> Sampler:  # noqa: N802 - as well
    """Return `Euler()` or `Heun()`, by the order: the class of this name in earlier versions."""
    return Euler() if order == 1 else Heun()
