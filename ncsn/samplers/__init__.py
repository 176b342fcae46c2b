"""Samplers: how is the score walked back to data?

A sampler is a choice with numbers; called with a score, a start `x` (B, ...) and a ladder of noise levels `sigmas`
(L,) from large to small, it yields the state once a level, in the dtype of `x`, and the caller keeps what it wants:

    *_, x = sampler(score, x, sigmas)

It asks for a score and nothing else: a network, an exact density and a guided sum of both go in the same place.
Yielded tensors are never written to again. The state is not clamped: it becomes pixels once, at the end.

There are two families. Langevin dynamics stay at a level and let the walk come to rest there:

    x + alpha score(x, sigma) + sqrt(2 alpha) z                         Langevin, AnnealedLangevin

The others move with the level, down the reverse of dx = sqrt(d sigma^2 / dt) dW, with noise or without, from each level
to the next lower one and from the last to 0 (Song et al., 2021):

    x + (sigma^2 - lower^2) score(x, sigma) + sqrt(...) z               EulerMaruyama, Ancestral, PredictorCorrector
    x + (sigma - lower) sigma score(x, sigma)                           ProbabilityFlow, StochasticHeun, DPMSolver,
                                                                        SASolver
"""

from ncsn.samplers.flow import DPMSolver, ProbabilityFlow, SASolver, StochasticHeun
from ncsn.samplers.gibbs import Gibbs
from ncsn.samplers.langevin import (
    AnnealedLangevin,
    ConsistentAnnealed,
    Langevin,
    MetropolisAdjustedLangevin,
)
from ncsn.samplers.sampler import Sampler
from ncsn.samplers.sde import Ancestral, EulerMaruyama, PredictorCorrector

__all__ = [
    "Ancestral",
    "AnnealedLangevin",
    "ConsistentAnnealed",
    "DPMSolver",
    "EulerMaruyama",
    "Gibbs",
    "Langevin",
    "MetropolisAdjustedLangevin",
    "PredictorCorrector",
    "ProbabilityFlow",
    "SASolver",
    "Sampler",
    "StochasticHeun",
]
