"""Contexts in which the states of a model are computed."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["evaluating", "inside"]


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
