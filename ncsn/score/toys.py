"""Toys: the usual densities in the plane, for which a score can be plotted.

Each is a mixture of equal, isotropic Gaussians of width `std`, with centres along a curve or on a
lattice, within about [-4, 4] x [-4, 4]. So each has a density and a score at every noise level,
0 included. If `std` is at least about the distance of neighbours, the components merge.
"""

import math

import torch
from torch import Tensor

from ncsn.noise.checks import expect
from ncsn.score.densities import GaussianMixture

__all__ = ["Checkerboard", "EightGaussians", "Pinwheel", "Rings", "Toy", "TwoMoons", "TwoSpirals"]


class Toy(GaussianMixture):
    """A mixture of Gaussians of width `std` at `centres` (K, 2), with equal or given weights (K,).

    Raises:
        ValueError: if `std` is not positive.
    """

    def __init__(self, centres: Tensor, std: float, weights: Tensor | None = None) -> None:
        expect("std > 0", 0 < std < math.inf, self, std=std)
        weights = torch.ones(len(centres)) if weights is None else weights
        super().__init__(weights, centres, torch.tensor(std))
        self.std = std


class EightGaussians(Toy):
    """Eight Gaussians on a circle of radius 3."""

    def __init__(self, std: float = 0.3) -> None:
        super().__init__(3 * on_circle(torch.arange(8) * math.pi / 4), std)


class TwoMoons(Toy):
    """Two interlocking half circles of radius 2."""

    def __init__(self, std: float = 0.2) -> None:
        arc = 2 * on_circle(torch.linspace(0, math.pi, 64))
        middle = torch.tensor([1.0, 0.5])
        super().__init__(torch.cat([arc - middle, middle - arc]), std)


class TwoSpirals(Toy):
    """Two spirals of one and a half turns, uniform along their length except innermost."""

    def __init__(self, std: float = 0.12) -> None:
        angle = 3 * math.pi * torch.linspace(0.01, 1, 256).sqrt().unsqueeze(1)
        spiral = angle / 3 * on_circle(angle.squeeze(1))
        super().__init__(torch.cat([spiral, -spiral]), std)


class Rings(Toy):
    """Four rings about the origin, of radius 0.9, 1.8, 2.7 and 3.6."""

    def __init__(self, std: float = 0.12) -> None:
        ring = on_circle(torch.arange(96) * math.pi / 48)
        super().__init__(torch.cat([0.9 * i * ring for i in (1, 2, 3, 4)]), std)


class Checkerboard(Toy):
    """Every other square of a 4 x 4 board, each of side 2, with edges softened by `std`."""

    def __init__(self, std: float = 0.15) -> None:
        inside = (torch.arange(8) + 0.5) / 4
        fields = [(i, j) for i in range(4) for j in range(4) if (i + j) % 2]
        squares = [torch.cartesian_prod(2 * i - 4 + inside, 2 * j - 4 + inside) for i, j in fields]
        super().__init__(torch.cat(squares), std)


class Pinwheel(Toy):
    """Five bent blades (Johnson et al., 2016), denser in the middle of each."""

    def __init__(self, std: float = 0.2) -> None:
        along = torch.linspace(-2, 2, 24)
        radius = (2 + 0.6 * along).unsqueeze(1)
        blades = [
            radius * on_circle(2 * math.pi * blade / 5 + (0.3 * along).exp() / 1.5)
            for blade in range(5)
        ]
        super().__init__(torch.cat(blades), std, (-(along**2) / 2).exp().repeat(5))


def on_circle(angle: Tensor) -> Tensor:
    """Return the points (N, 2) of the unit circle at the angles (N,), in radians."""
    return torch.stack([angle.cos(), angle.sin()], dim=1)
