"""Matching for binary data, which has no gradient: by ratios, in which the normaliser cancels.

These objectives take log p(x), up to a constant, in place of a score:
`objective(log_prob, x, sigma)`, with x (B, ...) of zeros and ones and log_prob(x, sigma) of
shape (B,). Both compare x with its d neighbours, each with one bit flipped.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ncsn.noise.shapes import rows
from ncsn.objectives.objective import Objective
from ncsn.score import Score, ScoreModel, log_prob_of

__all__ = ["PseudoLikelihood", "RatioMatching"]


class BinaryObjective(Objective):
    """An objective that takes the log-probability of binary data."""

    binary_data = True

    def of(self, model: ScoreModel, label: Tensor | None = None) -> Score:
        return log_prob_of(model, self)


@dataclass(frozen=True)
class RatioMatching(BinaryObjective):
    """sum_i g(p(x) / p(x with bit i flipped))^2, g(u) = 1 / (1 + u) (Hyvarinen, 2007, eq. 17)."""

    def __call__(self, log_prob: Score, x: Tensor, sigma: Tensor) -> Tensor:
        return (-log_ratios(log_prob, x, sigma)).sigmoid().square().sum(1)


@dataclass(frozen=True)
class PseudoLikelihood(BinaryObjective):
    """-sum_i log p(x_i given the rest) (Besag, 1975)."""

    def __call__(self, log_prob: Score, x: Tensor, sigma: Tensor) -> Tensor:
        return functional.softplus(-log_ratios(log_prob, x, sigma)).sum(1)


def log_ratios(log_prob: Score, x: Tensor, sigma: Tensor) -> Tensor:
    """Return log p(x) - log p(x with bit i flipped), shape (B, d)."""
    dimension = x[0].numel()
    bits = torch.eye(dimension, dtype=x.dtype, device=x.device)
    flipped = (rows(x).unsqueeze(1) - bits).abs().reshape(-1, *x.shape[1:])
    levels = sigma.repeat_interleave(dimension, 0) if sigma.ndim else sigma
    return log_prob(x, sigma).unsqueeze(1) - log_prob(flipped, levels).view(-1, dimension)
