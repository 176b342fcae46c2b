"""Schedules: the noise levels, and the frequency of each in training."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from ncsn.noise.checks import expect
from ncsn.noise.shapes import per_example
from ncsn.noise.streams import integers, normal

__all__ = [
    "DiscreteSchedule",
    "GeometricSchedule",
    "KarrasSchedule",
    "LogNormalSchedule",
    "NoNoise",
    "NoiseSchedule",
]

MAX_LEVELS = 100_000
SINGLE = torch.finfo(torch.float32)


class NoiseSchedule(ABC):
    """The noise levels of sampling and training. Subclass it to add your own."""

    @abstractmethod
    def sigmas(self) -> Tensor:
        """Return the noise levels (L,) of a sampler, strictly falling, none negative."""

    @abstractmethod
    def sample(self, x: Tensor) -> Tensor:
        """Return one noise level for each example of `x` (B, ...): (B, 1, ..., 1), like `x`."""


@dataclass(frozen=True)
class DiscreteSchedule(NoiseSchedule):
    """A finite number of levels from `sigma_max` to `sigma_min`, each trained equally often.

    Args:
        sigma_max: the highest noise level, in the units of the data.
        sigma_min: the lowest noise level, above 0.
        levels: the number of levels, L.

    Raises:
        ValueError: if not 0 < sigma_min < sigma_max, in 32 bits, or `levels` is not an integer
            from 2 to 100,000 (1 if sigma_min equals sigma_max).
    """

    sigma_max: float
    sigma_min: float
    levels: int

    def __post_init__(self) -> None:
        high, low, levels = self.sigma_max, self.sigma_min, self.levels
        ends = {"sigma_min": low, "sigma_max": high}
        expect("0 < sigma_min <= sigma_max", SINGLE.tiny <= low <= high <= SINGLE.max, self, **ends)
        is_count = isinstance(levels, Integral) and 1 <= levels <= MAX_LEVELS
        expect(f"an integer levels from 1 to {MAX_LEVELS:,}", is_count, self, levels=levels)
        rule = "one level if sigma_min equals sigma_max, and several if it is below"
        expect(rule, (levels == 1) == (low == high), self, levels=levels, **ends)

    @abstractmethod
    def at(self, u: Tensor) -> Tensor:
        """Return the noise level at position `u` in [0, 1]: sigma_max at 0, sigma_min at 1."""

    def sigmas(self) -> Tensor:
        positions = torch.linspace(0, 1, self.levels, dtype=torch.float64)
        return self.at(positions).to(torch.get_default_dtype())

    def sample(self, x: Tensor) -> Tensor:
        index = integers(x.new_empty(per_example(x)), self.levels)
        return self.at(index.to(x.dtype) / max(self.levels - 1, 1))


@dataclass(frozen=True)
class GeometricSchedule(DiscreteSchedule):
    """Levels in geometric progression, sigma_max^(1-u) sigma_min^u (Song & Ermon, 2019, 4.2).

    Args:
        sigma_max: the highest noise level, in the units of the data.
        sigma_min: the lowest noise level, above 0.
        levels: the number of levels, L.
    """

    def at(self, u: Tensor) -> Tensor:
        return self.sigma_max ** (1 - u) * self.sigma_min**u


@dataclass(frozen=True)
class KarrasSchedule(DiscreteSchedule):
    """Levels evenly spaced in sigma^(1/rho) (Karras et al., 2022, equation 5).

    As rho grows they tend to `GeometricSchedule`.

    Args:
        sigma_max: the highest noise level, in the units of the data.
        sigma_min: the lowest noise level, above 0.
        levels: the number of levels, L.
        rho: a larger one puts more levels at low noise.

    Raises:
        ValueError: as `DiscreteSchedule`, and if `rho` is not positive.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        super().__post_init__()
        expect("rho > 0", 0 < self.rho < math.inf, self, rho=self.rho)

    def at(self, u: Tensor) -> Tensor:
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        sigma: Tensor = (high + u * (low - high)) ** self.rho
        return sigma


@dataclass(frozen=True)
class LogNormalSchedule(NoiseSchedule):
    """Training levels with ln sigma ~ N(mean, std^2) (Karras et al., 2022, Table 1).

    Samplers use a Karras schedule. The defaults are EDM's for images in [-1, 1], with every
    sigma halved for the [0, 1] of this package.

    Args:
        mean: of ln sigma in training.
        std: of ln sigma in training.
        sigma_max: the highest noise level of sampling, in the units of the data.
        sigma_min: the lowest noise level of sampling, above 0.
        levels: the number of levels in sampling.
        rho: the spacing of the levels in sampling, as `KarrasSchedule` has it.

    Raises:
        ValueError: if `std` is not positive, `mean` is not finite, or `KarrasSchedule` refuses
            the other numbers.
    """

    mean: float = -1.2 - math.log(2)
    std: float = 1.2
    sigma_max: float = 40.0
    sigma_min: float = 0.001
    levels: int = 18
    rho: float = 7.0

    def __post_init__(self) -> None:
        expect("a finite mean", math.isfinite(self.mean), self, mean=self.mean)
        expect("std > 0", 0 < self.std < math.inf, self, std=self.std)
        self.karras()

    def karras(self) -> KarrasSchedule:
        """Return the schedule of samplers."""
        return KarrasSchedule(self.sigma_max, self.sigma_min, self.levels, self.rho)

    def sigmas(self) -> Tensor:
        return self.karras().sigmas()

    def sample(self, x: Tensor) -> Tensor:
        z = normal(x.new_empty(per_example(x)))
        return torch.exp(self.mean + self.std * z)


@dataclass(frozen=True)
class NoNoise(NoiseSchedule):
    """The data itself, sigma = 0: for binary data, and for energies trained without noise."""

    def sigmas(self) -> Tensor:
        return torch.zeros(1)

    def sample(self, x: Tensor) -> Tensor:
        return x.new_zeros(per_example(x))
