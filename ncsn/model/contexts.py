"""Contexts in which the states of a model are computed."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ncsn.samplers import Sampler
from ncsn.score import Score

__all__ = ["evaluating", "finite", "inside"]


def inside(
    context: Callable[[], AbstractContextManager[Any]], states: Iterator[Tensor]
) -> Iterator[Tensor]:
    """Yield states, each computed in a context that the caller is outside of between steps."""
    while True:
        with context():
            x = next(states, None)
        if x is None:
            return
        yield x


def finite(sampler: Sampler, score: Score, start: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """Yield the states of a sampler, which must be finite.

    Raises:
        FloatingPointError: if a state is not finite; the message gives the level. On a GPU it
            comes at the last level.
    """
    unseen: list[Tensor] = []
    for level, x in enumerate(sampler(score, start, sigmas), 1):
        # A finite sum implies finite elements, and takes one kernel instead of six.
        unseen.append(x.sum(dtype=torch.float32))
        # Reading a value synchronises a GPU: there, all are read at the end.
        if x.device.type == "cpu" or level == len(sigmas):
            are_finite = [math.isfinite(total) for total in torch.stack(unseen).tolist()]
            if not all(are_finite):
                sigma = sigmas[level - len(are_finite) + are_finite.index(False)]
                where = f"{type(sampler).__name__} diverged at noise level {sigma:.4g}"
                raise FloatingPointError(f"{where}; {sampler.remedy}")
            unseen.clear()
        yield x


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and restore the mode of each part at the end."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
