"""Samplers: how is the score followed to data?

A sampler is a choice with numbers. Called with a score, a start `x` (B, ...) and noise levels
`sigmas` (L,) from high to low, it yields the state after each level, in the dtype of `x`, and
the caller keeps what it wants:

    *_, x = sampler(score, x, sigmas)

It asks for a score and nothing else, so a network, an exact density and a guided sum all go in
the same place. Yielded tensors are never written to again. The state is not clamped.

There are two families. Langevin dynamics equilibrates at a level before the next one:

    x + alpha score(x, sigma) + sqrt(2 alpha) z              Langevin, AnnealedLangevin (with
                                                             less noise if its step is "auto")

The others follow the reverse of dx = sqrt(d sigma^2 / dt) dW, with noise or without, from each
level to the next lower one and from the last to 0 (Song et al., 2021):

    x + (sigma^2 - lower^2) score(x, sigma) + sqrt(...) z    EulerMaruyama, Ancestral,
                                                             PredictorCorrector
    x + (sigma - lower) sigma score(x, sigma)                Euler, Heun, DPMSolver, SASolver
"""

from ncsn.samplers.flow import DPMSolver, Euler, Heun, SASolver
from ncsn.samplers.flow import ProbabilityFlow as ProbabilityFlow  # a name of earlier versions
from ncsn.samplers.flow import StochasticHeun as StochasticHeun  # another
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
    "Euler",
    "EulerMaruyama",
    "Gibbs",
    "Heun",
    "Langevin",
    "MetropolisAdjustedLangevin",
    "PredictorCorrector",
    "SASolver",
    "Sampler",
]
