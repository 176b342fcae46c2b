"""Gaussian noise at a noise level."""

import torch
from torch import Tensor

__all__ = ["noisy"]


def noisy(x: Tensor, sigma: Tensor) -> Tensor:
    """Return x + sigma * z with z ~ N(0, I), a draw from p_sigma; the data itself at sigma = 0."""
    return x + sigma * torch.randn_like(x)
