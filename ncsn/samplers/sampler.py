"""The base class of samplers."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from ncsn.noise.checks import expect
from ncsn.score import Score, ScoreModel

__all__ = ["MAX_STEPS", "Sampler", "level_pairs"]

MAX_STEPS = 1_000_000  # at a noise level


class Sampler(ABC):
    """A way to follow the score to data. Subclass it to bring your own.

    `remedy` is what to try if the trajectory diverges. `rho` is the spacing of the default
    Karras schedule when only a number of steps is given; infinity is geometric. The noise comes from
    `ncsn.noise.streams`, so that a seed gives the same sample in any batch.
    """

    remedy: ClassVar[str] = "take more steps"
    rho: ClassVar[float] = 7.0

    @property
    def assumes_gaussian_noise(self) -> bool:
        """True if it samples only by the score of data with Gaussian noise."""
        return True

    @abstractmethod
    def __call__(self, score: Score, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
        """Yield the state (B, ...) after each of the levels `sigmas` (L,), from the start `x`."""

    def of(self, model: ScoreModel, label: Tensor | None = None) -> Score:
        """Return the function of a model that is followed: its score given the label (B,).

        Raises:
            ValueError: if the model does not give it.
        """
        return partial(model.score, label=label)

    def check(self, sigmas: Tensor) -> None:
        """Refuse noise levels (L,) on which this sampler cannot work.

        Raises:
            ValueError: with the setting to change.
        """
        low = sigmas[-1].item()
        expect("a lowest noise level above 0 (Langevin works at 0)", low > 0, self, sigma=low)


def level_pairs(x: Tensor, sigmas: Tensor) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Yield each level with the next lower one, and True for the last, whose next is 0.

    The flag is separate because reading a value from a GPU tensor would force a synchronisation.
    """
    levels = torch.cat([sigmas, sigmas.new_zeros(1)]).to(x)
    for i in range(len(sigmas)):
        yield levels[i], levels[i + 1], i == len(sigmas) - 1
