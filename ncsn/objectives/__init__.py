"""Objectives: how is the score learned?

An objective compares a score with data. The aim of all of them is the Fisher divergence from the data at noise level
sigma, explicit score matching (Hyvarinen, 2005),

    J = 1/2 E ||score(x~, sigma) - grad log p_sigma(x~)||^2,    x~ = x + sigma z,

whose target is not known. There are three ways round it, and each differs from J by a constant only:

    implicit     1/2 ||score||^2 + div score                         by partial integration (Hyvarinen, 2005)
    sliced       1/2 ||score||^2 + v . grad (v . score)              the divergence along random v (Song et al., 2019)
    denoising    1/2 ||score(x + sigma z, sigma) + z / sigma||^2     the score of the noise (Vincent, 2011)

Numbers go to the constructor, tensors to the call: `objective(score, x, sigma)` is one loss for each example,
shape (B,), summed over the example's dimensions; the caller reduces. Shapes: x (B, ...) clean data, sigma () or
(B, 1, ..., 1); 0 means on the data itself, for all but the denoising one. A score of zero costs the denoising
objective d/2 at every level under the weight lambda = sigma^2, d numbers an example. `Annealed` gives that weight to
the others.

Binary data has no score; `RatioMatching` and `PseudoLikelihood` take log p(x) in its place.
"""

from ncsn.objectives.annealed import Annealed
from ncsn.objectives.binary import PseudoLikelihood, RatioMatching
from ncsn.objectives.corruption import Corruption, GaussianNoise, LaplaceNoise
from ncsn.objectives.denoising import DenoisingScoreMatching, EDMScoreMatching
from ncsn.objectives.explicit import ExplicitScoreMatching
from ncsn.objectives.implicit import ImplicitScoreMatching
from ncsn.objectives.objective import Objective, of_gaussian_noise
from ncsn.objectives.sliced import FiniteDifferenceSlicedScoreMatching, SlicedScoreMatching

__all__ = [
    "Annealed",
    "Corruption",
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
    "of_gaussian_noise",
]
