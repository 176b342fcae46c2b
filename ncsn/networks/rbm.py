"""A restricted Boltzmann machine: a density of binary data that is known up to a constant."""

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["RBM"]


class RBM(nn.Module):
    """log p(x) = a . x + sum_j softplus(W_j . x + b_j) + constant, for x of zeros and ones (Smolensky, 1986).

    Args:
        features: how many visible units.
        hidden: how many hidden units.

    Raises:
        ValueError: where a number is not positive.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        for name, value in {"features": features, "hidden": hidden}.items():
            if value < 1:
                raise ValueError(f"RBM: {name} is {value}, and must be at least 1")
        self.weight = nn.Parameter(0.1 * torch.randn(hidden, features))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.visible_bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """log p(x) up to a constant, shape (B,), of `x` (B, ...); the same at every `sigma`."""
        x = x.flatten(1)
        hidden = functional.softplus(functional.linear(x, self.weight, self.hidden_bias))
        return x @ self.visible_bias + hidden.sum(1)

    @torch.no_grad()
    def gibbs(self, x: Tensor, steps: int) -> Tensor:
        """`x` (B, ...) after so many rounds of drawing the hidden units given the visible ones, and the reverse."""
        visible = x.flatten(1)
        for _ in range(steps):
            hidden = functional.linear(visible, self.weight, self.hidden_bias).sigmoid().bernoulli()
            visible = (hidden @ self.weight + self.visible_bias).sigmoid().bernoulli()
        return visible.view_as(x)
