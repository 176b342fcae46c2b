"""Corruptions: how clean data becomes noisy, by distributions whose score is known."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ncsn.noise.streams import exponential, normal

__all__ = ["Corruption", "GaussianNoise", "LaplaceNoise"]


class Corruption(ABC):
    """A distribution q(x~ given x) with a known score. Subclass it to add your own."""

    gaussian_noise = False
    """True if q is N(x, sigma^2 I), which all but Langevin samplers and Tweedie's formula assume."""

    @abstractmethod
    def __call__(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return x~ ~ q(x~ given x) of width `sigma`, and grad_x~ log q, both of x's shape."""


@dataclass(frozen=True)
class GaussianNoise(Corruption):
    """x~ = x + sigma z with z ~ N(0, I), whose score given x is (x - x~) / sigma^2."""

    gaussian_noise = True

    def __call__(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        z = normal(x)
        return x + sigma * z, -z / sigma


@dataclass(frozen=True)
class LaplaceNoise(Corruption):
    """x~ = x + sigma z with Laplace's z, of density exp(-sqrt(2) |z|) / sqrt(2), variance 1.

    The learned score is that of data blurred by it, for Langevin samplers without `denoise`.
    """

    def __call__(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        z = self.draw(x)
        return x + sigma * z, -math.sqrt(2) * z.sign() / sigma

    def draw(self, x: Tensor) -> Tensor:
        """Return z, of the shape of `x`: a Gaussian whose variance is exponential."""
        return exponential(x).sqrt() * normal(x)
