"""Implicit score matching: the divergence of the score replaces the unknown target."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ncsn.noise.checks import expect
from ncsn.noise.gaussian import noisy
from ncsn.noise.shapes import sum_per_example
from ncsn.objectives.directions import rademacher
from ncsn.objectives.objective import Objective
from ncsn.score import Score, jacobian_quadratic_forms, unit_vectors

__all__ = ["ImplicitScoreMatching"]


@dataclass(frozen=True)
class ImplicitScoreMatching(Objective):
    """1/2 ||score||^2 + sum_i d score_i / d x_i (Hyvarinen, 2005, theorem 1).

    The score of an example must not depend on the others of its batch.

    Args:
        probes: 0 computes the trace exactly, by one backward pass for each of the d numbers of
            an example. Otherwise it is Hutchinson's estimate, the mean of
            v . (d score / d x) v over so many random vectors v of signs.
    """

    probes: int = 0

    def __post_init__(self) -> None:
        expect("probes >= 0 (0: the exact trace)", self.probes >= 0, self, probes=self.probes)

    def __call__(self, score: Score, x: Tensor, sigma: Tensor) -> Tensor:
        x = noisy(x, sigma)
        probes = [rademacher(x) for _ in range(self.probes)]
        directions = torch.stack(probes) if probes else unit_vectors(x)
        psi, forms = jacobian_quadratic_forms(score, x, sigma, directions)
        divergence = forms.sum(0) / (self.probes or 1)
        return sum_per_example(psi.square()) / 2 + divergence
