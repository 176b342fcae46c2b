"""Matching for binary data, where there is no gradient: by ratios of probabilities, in which the normaliser cancels.

These take log p(x), up to a constant, where the others take a score: `objective(log_prob, x, sigma)`, with x (B, ...)
of zeros and ones and log_prob(x, sigma) of shape (B,). Both compare x with each of its d neighbours, one bit flipped.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ncsn.noise import checked
from ncsn.objectives.objective import Objective
from ncsn.score import Score, ScoreModel, log_prob_of

__all__ = ["PseudoLikelihood", "RatioMatching"]

LogProb = Callable[[Tensor, Tensor], Tensor]


class BinaryObjective(Objective):
    """An objective for binary data, which works on the log-probability of a model."""

    def of(self, model: ScoreModel, label: Tensor | None = None) -> Score:
        return log_prob_of(model, self)


@dataclass(frozen=True)
class RatioMatching(BinaryObjective):
    """sum_i g(p(x) / p(x with bit i flipped))^2, g(u) = 1 / (1 + u) (Hyvarinen, 2007, equation 17).

    Raises:
        ValueError: when called, where `x` is not of zeros and ones.
    """

    def __call__(self, log_prob: LogProb, x: Tensor, sigma: Tensor) -> Tensor:
        return (-log_ratios(log_prob, x, sigma)).sigmoid().square().sum(1)


@dataclass(frozen=True)
class PseudoLikelihood(BinaryObjective):
    """-sum_i log p(x_i given the rest) (Besag, 1975).

    Raises:
        ValueError: when called, where `x` is not of zeros and ones.
    """

    def __call__(self, log_prob: LogProb, x: Tensor, sigma: Tensor) -> Tensor:
        return functional.softplus(-log_ratios(log_prob, x, sigma)).sum(1)


def log_ratios(log_prob: LogProb, x: Tensor, sigma: Tensor) -> Tensor:
    """log p(x) - log p(x with bit i flipped), shape (B, d).

    Raises:
        ValueError: where `x` is not of zeros and ones, or `sigma` not what it should be.
    """
    sigma = checked(sigma, x)
    if not ((x == 0) | (x == 1)).all():
        raise ValueError(
            f"x is not binary: it has {x[(x != 0) & (x != 1)][0].item():g}, and must be of zeros and ones"
        )
    dimension = x[0].numel()
    flat = x.flatten(1).unsqueeze(1)
    flipped = (flat - torch.eye(dimension).to(x)).abs().view(-1, *x.shape[1:])
    levels = sigma.repeat_interleave(dimension, 0) if sigma.ndim else sigma
    return log_prob(x, sigma).unsqueeze(1) - log_prob(flipped, levels).view(-1, dimension)
