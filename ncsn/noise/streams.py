"""Random numbers of samples: one seed, one sample.

Samplers draw their noise here. Inside `with Streams(seed, indices):` every sample has a stream of
its own, which follows from the seed and the sample's index alone, so that it does not depend on
the batch, its place there, or the number of devices. Outside, the noise is that of torch's own
generator.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar, Token
from typing import Any

import torch
from torch import Tensor

__all__ = ["Streams", "mixed_seed", "normal", "uniform"]


MOST_AHEAD = 2**16  # numbers that are drawn ahead for a sample


class Streams:
    """A context in which `normal` and `uniform` use the streams of the samples of a seed.

    Re-entering continues the streams. Do not share one between devices.

    Args:
        seed: the seed.
        indices: the indices of the samples.
        device: the device of the numbers.
    """

    def __init__(
        self, seed: int, indices: Iterable[int], device: torch.device | str = "cpu"
    ) -> None:
        # On a CPU only the last 32 bits of a seed count: they must differ between indices.
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
        """Return `draw(shape, generator=...)` for each example of `x` (B, ...), of its shape.

        Raises:
            ValueError: if there are not as many examples as streams.
        """
        if len(x) != len(self.generators):
            raise ValueError(
                f"there are {len(self.generators)} streams of random numbers, but {len(x)} samples"
            )
        kind = draw, x.shape, x.dtype, x.device
        z = next(self._ahead.get(kind, iter(())), None)
        if z is None:
            # A start asks for no more than one.
            several = (
                min(10, max(1, MOST_AHEAD // max(1, x.shape[1:].numel())))
                if kind in self._ahead
                else 1
            )
            self._ahead[kind] = self._drawn(several, *kind)
            z = next(self._ahead[kind])
        return z

    def _drawn(
        self,
        several: int,
        draw: Callable[..., Tensor],
        shape: torch.Size,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Iterator[Tensor]:
        """Draw several at once: a call takes longer than the numbers."""
        of_each = (several, *shape[1:])
        parts = [
            draw(of_each, generator=generator, dtype=dtype, device=device)
            for generator in self.generators
        ]
        return iter(torch.stack(parts, dim=1))


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
    """Return a seed of 63 bits that is a hash of the numbers."""
    return random.Random(repr(numbers)).getrandbits(63)
