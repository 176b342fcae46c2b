"""Examples of a density that is known."""

import torch

from ncsn.data.examples import Examples, HeldExamples
from ncsn.data.module import DataModule
from ncsn.score.densities import Density

__all__ = ["Points"]


class Points(DataModule):
    """Points drawn once from a density, the same ones every time, and a tenth as many others for validation.

    Args:
        density: what they are drawn from, such as one of `ncsn.score.toys`.
        count: how many for training.
        batch_size: points in a batch, on each device.

    Raises:
        ValueError: where a number is not positive, or `count` is above 100 million.
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
