"""What every sampler is."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from ncsn.score import Score, ScoreModel

__all__ = ["Sampler", "falling"]


class Sampler(ABC):
    """A way to follow the score to data. Subclass it to bring your own.

    `remedy` is what to try if the trajectory diverges. `rho` is the spacing of the default
    Karras schedule when only a number of steps is given. The noise comes from
    `ncsn.noise.streams`, so that a seed gives the same sample in any batch.
    """

    remedy: ClassVar[str] = "take more steps"
    rho: ClassVar[float] = 7.0

    @abstractmethod
    def __call__(self, score: Score, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
        """Walk `x` (B, ...) down the ladder `sigmas` (L,), and yield the state once a level: L tensors like `x`."""

    def of(self, model: ScoreModel, label: Tensor | None = None) -> Score:
        """Return the function of a model that is followed: its score given the label (B,).

        Raises:
            ValueError: if the model does not give it.
        """
        return partial(model.score, label=label)

    def check(self, sigmas: Tensor) -> None:
        """Refuse a ladder on which this sampler cannot work: most step from one level down to the next, and to 0.

        Raises:
            ValueError: with the setting to change and what it may be.
        """
        if not sigmas[-1] > 0:
            raise ValueError(
                f"{type(self).__name__}: the ladder ends at {sigmas[-1].item():g}, and must end above; "
                "Langevin walks at a level of 0"
            )


def falling(x: Tensor, sigmas: Tensor) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Each level of the ladder, like `x`, with the next lower one, and whether that is the last: 0.

    Whether is told apart from the number, since to look at a number on a GPU is to wait for it.
    """
    levels = torch.cat([sigmas, sigmas.new_zeros(1)]).to(x)
    for i in range(len(sigmas)):
        yield levels[i], levels[i + 1], i == len(sigmas) - 1
