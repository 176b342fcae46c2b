"""Gaussian noise at a noise level."""

from torch import Tensor

from ncsn.noise.streams import normal

__all__ = ["noisy"]


def noisy(x: Tensor, sigma: Tensor) -> Tensor:
    """Return x + sigma * z with z ~ N(0, I), a draw from p_sigma; the data itself at sigma = 0."""
    return x + sigma * normal(x)
