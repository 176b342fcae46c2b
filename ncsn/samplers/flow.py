"""The probability flow: from each noise level to the next lower one, along an ordinary differential equation.

dx / dsigma = -sigma score(x, sigma) carries p_sigma from level to level without noise (Song et al., 2021, equation 13;
Karras et al., 2022, equation 1). In terms of the denoiser it is (x - D(x, sigma)) / sigma.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ncsn.noise.streams import normal
from ncsn.samplers.sampler import Sampler, falling
from ncsn.score import Score, tweedie

__all__ = ["DPMSolver", "ProbabilityFlow", "SASolver", "StochasticHeun"]


@dataclass(frozen=True)
class ProbabilityFlow(Sampler):
    """Steps down the probability flow: of Euler, one score a level, or of Heun, two.

    Args:
        order: 1 for Euler's method, 2 for Heun's. The last step, to 0, is Euler's: the posterior mean.

    Raises:
        ValueError: where `order` is neither.
    """

    order: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(
                f"ProbabilityFlow: order is {self.order}, and must be 1 (Euler) or 2 (Heun)"
            )

    @torch.no_grad()
    def __call__(self, score: Score, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
        for sigma, lower, last in falling(x, sigmas):
            step = euler if self.order == 1 or last else heun
            x = step(score, x, sigma, lower)
            yield x


@dataclass(frozen=True)
class StochasticHeun(Sampler):
    """EDM's stochastic sampler (Karras et al., 2022, Algorithm 2): some noise is added before each step of Heun's.

    The level is raised from sigma to sigma (1 + gamma), gamma = min(churn / L, sqrt(2) - 1), and from there a step goes
    down to the next. Without churn it is `ProbabilityFlow`.

    Args:
        churn: how much noise is added over the L levels of the ladder.
        churn_min, churn_max: it is added between these noise levels alone.
        inflation: the standard deviation of the noise that is added; a little above 1 makes up for a network that
            removes too much.

    Raises:
        ValueError: where a number is negative or not finite, but for `churn_max`, or the levels are out of order.
    """

    remedy = "lower churn, or take more steps"
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    inflation: float = 1.0

    def __post_init__(self) -> None:
        for name in ("churn", "churn_min", "inflation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"StochasticHeun: {name} is {getattr(self, name)}, and must be at least 0"
                )
        if not self.churn_min <= self.churn_max:
            raise ValueError(
                f"StochasticHeun: churn_min is {self.churn_min}, and must be at most churn_max, {self.churn_max}"
            )

    @torch.no_grad()
    def __call__(self, score: Score, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
        gamma = min(self.churn / len(sigmas), math.sqrt(2) - 1)
        within = [
            gamma > 0 and self.churn_min <= sigma <= self.churn_max for sigma in sigmas.tolist()
        ]
        for (sigma, lower, last), churned in zip(falling(x, sigmas), within, strict=True):
            start = sigma
            if churned:
                start = sigma * (1 + gamma)
                x = x + self.inflation * (start**2 - sigma**2).sqrt() * normal(x)
            x = (euler if last else heun)(score, x, start, lower)
            yield x


@dataclass(frozen=True)
class DPMSolver(Sampler):
    """DPM-Solver++(2M) (Lu et al., 2022, Algorithm 2): second order at one score a level, with noise or without.

    Exact in the linear part of dx = (1 + eta) (x - D) dsigma / sigma + noise, all of which have the same p_sigma: the
    probability flow at eta = 0, the reverse diffusion that `Ancestral` walks at 1, nearer to Langevin dynamics beyond.
    With h = ln(sigma / lower), and D' the slope of D in -ln sigma from the last level to this one,

        exp(-(1 + eta) h) x + (1 - exp(-(1 + eta) h)) (D + D' h / 2) + lower sqrt(1 - exp(-2 eta h)) z

    The first step and the last, to 0, are of first order: the posterior mean at the end.

    Args:
        eta: how much noise is added and removed on the way; it corrects what a network gets wrong.

    Raises:
        ValueError: where `eta` is negative or not finite.
    """

    remedy = "lower eta, or take more steps"
    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta < math.inf:
            raise ValueError(f"{type(self).__name__}: eta is {self.eta}, and must be at least 0")

    def check(self, sigmas: Tensor) -> None:
        super().check(sigmas)
        for sigma, lower in pairwise(sigmas.tolist()):
            if not lower < sigma:
                raise ValueError(
                    f"{type(self).__name__}: the ladder goes from {sigma:g} to {lower:g}, and must fall at each level; "
                    "take fewer levels, or further apart"
                )

    @torch.no_grad()
    def __call__(self, score: Score, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
        # As numbers: what each level makes of them takes no kernel.
        levels = pairwise([*sigmas.tolist(), 0.0])
        before: tuple[Tensor, float] | None = None
        for level, (sigma, lower) in zip(sigmas.to(x), levels, strict=True):
            denoised = tweedie(score, x, level).to(x)
            h = math.log(sigma / lower) if lower else math.inf
            shrink = math.exp(-(1 + self.eta) * h)
            x = torch.lerp(denoised, x, shrink)
            if before is not None and lower:
                previous, last_h = before
                x = x.add(denoised - previous, alpha=self.ahead(h, shrink) / last_h)
            if self.eta and lower:
                x = x.add(normal(x), alpha=lower * math.sqrt(-math.expm1(-2 * self.eta * h)))
            yield x
            before = denoised, h

    def ahead(self, h: float, shrink: float) -> float:
        """How much of D' a step of `h` adds to x, which it multiplies by `shrink`."""
        return (1 - shrink) * h / 2


@dataclass(frozen=True)
class SASolver(DPMSolver):
    """`DPMSolver` with the slope of D integrated exactly: the two-step predictor of SA-Solver (Xue et al., 2023).

        exp(-(1 + eta) h) x + (1 - exp(-(1 + eta) h)) D + (h - (1 - exp(-(1 + eta) h)) / (1 + eta)) D'
            + lower sqrt(1 - exp(-2 eta h)) z

    Their tau^2 is `eta`, and their corrector is left out. The two agree where (1 + eta) h is small. On a short ladder
    this one goes further along D', of which with `eta` a part is the noise of the step before: over 20 levels from 10,
    at 3, a Gaussian's variance comes out half as much again. What networks gain by it, or do not: docs/recipes.md.
    """

    def ahead(self, h: float, shrink: float) -> float:
        return h - (1 - shrink) / (1 + self.eta)


def euler(score: Score, x: Tensor, sigma: Tensor, lower: Tensor) -> Tensor:
    """One step of Euler's down the flow."""
    return x + (sigma - lower) * sigma * score(x, sigma)


def heun(score: Score, x: Tensor, sigma: Tensor, lower: Tensor) -> Tensor:
    """One step of Heun's down the flow, to a level that is not 0."""
    slope = sigma * score(x, sigma)
    ahead = x + (sigma - lower) * slope
    return x + (sigma - lower) * (slope + lower * score(ahead, lower)) / 2
