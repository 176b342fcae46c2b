"""Objectives: how is the score learned?

An objective compares a score with data. All of them aim at the Fisher divergence from the data
at noise level sigma, explicit score matching (Hyvarinen, 2005),

    J = 1/2 E ||score(x~, sigma) - grad log p_sigma(x~)||^2,    x~ = x + sigma z,

whose target is not known. There are three ways to avoid it, and each differs from J by a
constant only:

    implicit     1/2 ||score||^2 + div score                     (Hyvarinen, 2005)
    sliced       1/2 ||score||^2 + v . grad (v . score)          (Song et al., 2019)
    denoising    1/2 ||score(x + sigma z, sigma) + z / sigma||^2 (Vincent, 2011)

Numbers go to the constructor, tensors to the call: `objective(score, x, sigma)` is one loss for
each example, shape (B,), summed over the dimensions of the example; the caller reduces. Shapes:
x (B, ...) clean data, sigma () or (B, 1, ..., 1). For all but the denoising objectives sigma
may be 0, the data itself. With weight sigma^2, a zero score has a denoising loss of d/2 at
every level, where d is the dimension. `Weighted` gives that weight to the others.

Binary data has no score; `RatioMatching` and `PseudoLikelihood` take log p(x) in its place.
"""

from ncsn.objectives.binary import PseudoLikelihood, RatioMatching
from ncsn.objectives.corruption import Corruption, GaussianNoise, LaplaceNoise
from ncsn.objectives.denoising import (
    CorruptionScoreMatching,
    DenoisingScoreMatching,
    EDMScoreMatching,
)
from ncsn.objectives.explicit import ExplicitScoreMatching
from ncsn.objectives.implicit import ImplicitScoreMatching
from ncsn.objectives.objective import Objective
from ncsn.objectives.sliced import FiniteDifferenceSlicedScoreMatching, SlicedScoreMatching
from ncsn.objectives.weighted import Weighted

__all__ = [
    "Corruption",
    "CorruptionScoreMatching",
    "DenoisingScoreMatching",
    "EDMScoreMatching",
    "ExplicitScoreMatching",
    "FiniteDifferenceSlicedScoreMatching",
    "GaussianNoise",
    "ImplicitScoreMatching",
    "LaplaceNoise",
    "Objective",
    "PseudoLikelihood",
    "RatioMatching",
    "SlicedScoreMatching",
    "Weighted",
]
