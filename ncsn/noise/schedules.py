"""Schedules: which noise levels there are, and how often each is trained at."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "MAX_LEVELS",
    "GeometricSchedule",
    "KarrasSchedule",
    "Ladder",
    "LogNormalSchedule",
    "NoNoise",
    "NoiseSchedule",
    "checked",
    "per_example",
    "positive",
]

MAX_LEVELS = 100_000
SINGLE = torch.finfo(torch.float32)


class NoiseSchedule(ABC):
    """Which noise levels there are. Subclass it to bring your own."""

    @abstractmethod
    def sigmas(self) -> Tensor:
        """The ladder of noise levels, shape (L,), strictly from large to small, none negative."""

    @abstractmethod
    def sample(self, x: Tensor) -> Tensor:
        """One noise level for each example of `x` (B, ...): shape (B, 1, ..., 1), dtype and device of `x`."""


@dataclass(frozen=True)
class Ladder(NoiseSchedule):
    """A finite ladder from `sigma_max` down to `sigma_min`; an example gets each of its levels equally often.

    Raises:
        ValueError: where not 0 < sigma_min < sigma_max < inf, in 32 bits, or `levels` is not a whole number from 2 to
            100,000 (1 where sigma_min equals sigma_max).
    """

    sigma_max: float
    sigma_min: float
    levels: int

    def __post_init__(self) -> None:
        name = type(self).__name__
        for field in ("sigma_max", "sigma_min"):
            value = getattr(self, field)
            if not SINGLE.tiny <= value <= SINGLE.max:
                raise ValueError(
                    f"{name}: {field} is {value}, and must be a positive number that 32 bits hold"
                )
        if self.sigma_min > self.sigma_max:
            raise ValueError(
                f"{name}: sigma_min ({self.sigma_min}) is above sigma_max ({self.sigma_max}); swap them"
            )
        if self.levels != int(self.levels) or not 1 <= self.levels <= MAX_LEVELS:
            raise ValueError(
                f"{name}: levels is {self.levels}, and must be a whole number from 1 to {MAX_LEVELS:,}"
            )
        if (self.levels == 1) != (self.sigma_min == self.sigma_max):
            raise ValueError(
                f"{name}: levels is {self.levels} from sigma_max {self.sigma_max} to sigma_min {self.sigma_min}; "
                "one level has sigma_min equal to sigma_max, several have it below"
            )

    @abstractmethod
    def at(self, u: Tensor) -> Tensor:
        """The noise level at position `u` in [0, 1] of the ladder: sigma_max at 0, sigma_min at 1."""

    def sigmas(self) -> Tensor:
        positions = torch.linspace(0, 1, self.levels, dtype=torch.float64)
        return self.at(positions).to(torch.get_default_dtype())

    def sample(self, x: Tensor) -> Tensor:
        rung = torch.randint(self.levels, per_example(x), device=x.device)
        return self.at(rung.to(x.dtype) / max(self.levels - 1, 1))


@dataclass(frozen=True)
class GeometricSchedule(Ladder):
    """Levels in geometric progression, sigma_max^(1-u) sigma_min^u (Song & Ermon, 2019, section 4.2)."""

    def at(self, u: Tensor) -> Tensor:
        return self.sigma_max ** (1 - u) * self.sigma_min**u


@dataclass(frozen=True)
class KarrasSchedule(Ladder):
    """Levels evenly spaced in sigma^(1/rho) (Karras et al., 2022, equation 5); a large rho tends to the geometric.

    Raises:
        ValueError: as `Ladder` does, and where `rho` is not positive.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rho < math.inf:
            raise ValueError(
                f"{type(self).__name__}: rho is {self.rho}, and must be a positive number"
            )

    def at(self, u: Tensor) -> Tensor:
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        sigma: Tensor = (high + u * (low - high)) ** self.rho
        return sigma


@dataclass(frozen=True)
class LogNormalSchedule(NoiseSchedule):
    """Training levels with ln sigma ~ N(mean, std^2) (Karras et al., 2022, Table 1), drawn from on Karras's ladder.

    The defaults are EDM's for images in [-1, 1], brought to the [0, 1] of this project: every sigma halved.

    Raises:
        ValueError: where `std` is not positive, `mean` not finite, or the ladder is refused by `KarrasSchedule`.
    """

    mean: float = -1.2 - math.log(2)
    std: float = 1.2
    sigma_max: float = 40.0
    sigma_min: float = 0.001
    levels: int = 18
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean):
            raise ValueError(f"LogNormalSchedule: mean is {self.mean}, and must be finite")
        if not 0 < self.std < math.inf:
            raise ValueError(f"LogNormalSchedule: std is {self.std}, and must be a positive number")
        self.ladder()

    def ladder(self) -> KarrasSchedule:
        """The ladder that samplers walk."""
        return KarrasSchedule(self.sigma_max, self.sigma_min, self.levels, self.rho)

    def sigmas(self) -> Tensor:
        return self.ladder().sigmas()

    def sample(self, x: Tensor) -> Tensor:
        return torch.exp(
            self.mean + self.std * torch.randn(per_example(x), dtype=x.dtype, device=x.device)
        )


@dataclass(frozen=True)
class NoNoise(NoiseSchedule):
    """The data itself, sigma = 0: for binary data, and for energies that are matched without noise."""

    def sigmas(self) -> Tensor:
        return torch.zeros(1)

    def sample(self, x: Tensor) -> Tensor:
        return x.new_zeros(per_example(x))


def per_example(x: Tensor) -> tuple[int, ...]:
    """(B, 1, ..., 1): the shape of one number for each example of `x` (B, ...)."""
    return (len(x), *[1] * (x.ndim - 1))


def checked(sigma: Tensor, x: Tensor) -> Tensor:
    """`sigma` as a tensor like `x`, once both are what they should be.

    Raises:
        ValueError: where `x` is not floating-point, has no examples, or is not finite, or `sigma` is of another shape
            than () and (B, 1, ..., 1), negative or not finite.
    """
    if not x.is_floating_point():
        raise ValueError(f"x is of {x.dtype}, and must be floating-point")
    if x.ndim < 2 or not x.numel():
        raise ValueError(
            f"x is of shape {tuple(x.shape)}, and must be (B, ...): a batch of examples of some numbers"
        )
    if not x.isfinite().all():
        raise ValueError(f"x has {int((~x.isfinite()).sum())} numbers that are NaN or infinite")
    sigma = torch.as_tensor(sigma).to(x)
    if sigma.ndim and sigma.shape != per_example(x):
        raise ValueError(
            f"sigma is of shape {tuple(sigma.shape)}, and must be () or {per_example(x)} beside this x"
        )
    wrong = sigma[~((sigma >= 0) & sigma.isfinite())]
    if len(wrong):
        raise ValueError(f"sigma is {wrong[0].item():g}, and must be at least 0 and finite")
    return sigma


def positive(sigma: Tensor, x: Tensor) -> Tensor:
    """`sigma` as `checked`, where 0 will not do either.

    Raises:
        ValueError: as `checked`, and where a sigma is 0.
    """
    sigma = checked(sigma, x)
    if not (sigma > 0).all():
        raise ValueError(
            "sigma is 0, and must be positive here: there is no density without a width, no noise to match"
        )
    return sigma
