"""Corruptions: how clean data becomes noisy, by laws whose score given the clean data is known."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Corruption", "GaussianNoise", "LaplaceNoise"]


class Corruption(ABC):
    """A law q(x~ given x) that can be drawn from, and whose score is known. Subclass it to bring your own."""

    @abstractmethod
    def __call__(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """A draw x~ of q(x~ given x) at the width `sigma`, and grad_x~ log q(x~ given x) there, both of x's shape."""


@dataclass(frozen=True)
class GaussianNoise(Corruption):
    """x~ = x + sigma z with z ~ N(0, I): the score given x is (x - x~) / sigma^2 = -z / sigma."""

    def __call__(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.randn_like(x)
        return x + sigma * z, -z / sigma


@dataclass(frozen=True)
class LaplaceNoise(Corruption):
    """x~ = x + sigma z with Laplace's z, of density exp(-sqrt(2) |z|) / sqrt(2) and unit variance.

    What is learned is the score of the data blurred by it; Tweedie's formula and the `denoise` of samplers, which
    suppose Gaussian noise, do not hold of it.
    """

    def __call__(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        z = self.draw(x)
        return x + sigma * z, -math.sqrt(2) * z.sign() / sigma

    def draw(self, x: Tensor) -> Tensor:
        """z, of the shape of `x`: a Gaussian whose variance has the exponential law."""
        return torch.empty_like(x).exponential_().sqrt() * torch.randn_like(x)
