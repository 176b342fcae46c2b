"""A restricted Boltzmann machine: a density of binary data that is known up to a constant."""

import torch
from torch import Tensor
from torch.nn import functional

from ncsn.networks.layers import TiedUnits

__all__ = ["RBM"]


class RBM(TiedUnits):
    """log p(x) = a . x + sum_j softplus(W_j . x + b_j) + constant, for x of zeros and ones (Smolensky, 1986).

    Args:
        features: how many visible units.
        hidden: how many hidden units.

    Raises:
        ValueError: where a number is not positive.
    """

    def forward(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """log p(x) up to a constant, shape (B,), of `x` (B, ...); the same at every `sigma`."""
        x = x.flatten(1)
        return x @ self.visible_bias + functional.softplus(self.hidden(x)).sum(1)

    @torch.no_grad()
    def gibbs(self, x: Tensor, steps: int) -> Tensor:
        """`x` (B, ...) after so many rounds of drawing the hidden units given the visible ones, and the reverse."""
        visible = x.flatten(1)
        for _ in range(steps):
            hidden = self.hidden(visible).sigmoid().bernoulli()
            visible = (hidden @ self.weight + self.visible_bias).sigmoid().bernoulli()
        return visible.view_as(x)
