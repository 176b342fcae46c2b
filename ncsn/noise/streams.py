"""Random numbers for samples: one seed, one image.

Samplers take their noise from here. Inside `with Streams(seed, indices):` every sample has a
stream of its own, which depends on the seed and on the sample's index alone. So a sample does not
change with the batch that it is part of, its place there, or the number of devices. Outside of
it, the noise is that of torch's own generator.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar, Token
from typing import Any

import torch
from torch import Tensor

from ncsn.noise.checks import expect

__all__ = ["Streams", "mixed_seed", "normal", "uniform"]

NUMBERS_AHEAD = 2**16  # for each sample
STEPS_AHEAD = 10


class Streams:
    """A context in which `normal` and `uniform` use the streams of the samples `indices`.

    Re-entering continues the streams. Do not share them between devices.
    """

    def __init__(
        self, seed: int, indices: Iterable[int], device: torch.device | str = "cpu"
    ) -> None:
        # A CPU generator uses only the last 32 bits of a seed, which must differ by index.
        first = mixed_seed(seed)
        self.generators = [
            torch.Generator(device).manual_seed((first + index) % 2**32) for index in indices
        ]
        self._ahead: dict[Any, Iterator[Tensor]] = {}
        self._tokens: list[Token[Streams | None]] = []

    def __enter__(self) -> "Streams":
        self._tokens.append(_current.set(self))
        return self

    def __exit__(self, *_: object) -> None:
        _current.reset(self._tokens.pop())

    def fill(self, draw: Callable[..., Tensor], x: Tensor) -> Tensor:
        """Return `draw(shape, generator=...)` of each example of `x` (B, ...), in x's shape.

        Raises:
            ValueError: if there are not as many examples as streams.
        """
        streams, samples = len(self.generators), len(x)
        rule = "as many samples as streams"
        expect(rule, samples == streams, self, streams=streams, samples=samples)
        kind = draw, x.shape, x.dtype, x.device
        z = next(self._ahead.get(kind, iter(())), None)
        if z is None:
            # A generator call costs more than its numbers, so several steps are sampled at
            # once, except for the first, because a start needs no more.
            steps = min(STEPS_AHEAD, max(1, NUMBERS_AHEAD // max(1, x.shape[1:].numel())))
            shape = (steps if kind in self._ahead else 1, *x.shape[1:])
            parts = [
                draw(shape, generator=generator, dtype=x.dtype, device=x.device)
                for generator in self.generators
            ]
            self._ahead[kind] = iter(torch.stack(parts, dim=1))
            z = next(self._ahead[kind])
        return z


_current: ContextVar[Streams | None] = ContextVar("streams", default=None)


def normal(x: Tensor) -> Tensor:
    """Return z ~ N(0, I), of the shape, dtype and device of `x` (B, ...)."""
    streams = _current.get()
    return torch.randn_like(x) if streams is None else streams.fill(torch.randn, x)


def uniform(x: Tensor) -> Tensor:
    """Return u ~ U[0, 1), of the shape, dtype and device of `x` (B, ...)."""
    streams = _current.get()
    return torch.rand_like(x) if streams is None else streams.fill(torch.rand, x)


def mixed_seed(*numbers: int) -> int:
    """Return a seed of 63 bits that depends on all of the numbers, and hides their pattern."""
    return random.Random(repr(numbers)).getrandbits(63)
