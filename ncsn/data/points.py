"""Samples of a known density as training data."""

import torch

from ncsn.data.examples import Examples, HeldExamples
from ncsn.data.module import DataModule
from ncsn.score.densities import Density

__all__ = ["Points"]


class Points(DataModule):
    """Fixed samples of a density, and a tenth as many others for validation.

    Args:
        density: the density, such as one of `ncsn.score.toys`.
        count: the number of training points, up to 100 million.
        batch_size: points per batch, on each device.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(self, density: Density, count: int = 50_000, batch_size: int = 512) -> None:
        if not 1 <= count <= 100_000_000:
            raise ValueError(f"Points: count is {count}, and must be from 1 to 100,000,000")
        super().__init__(tuple(density.sample(1).shape[1:]), batch_size)
        self.density = density
        self.count = count

    def load(self) -> dict[str, Examples]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            sizes = {"train": self.count, "val": max(1, self.count // 10)}
            return {
                name: HeldExamples(self.density.sample(size), torch.zeros(size))
                for name, size in sizes.items()
            }
