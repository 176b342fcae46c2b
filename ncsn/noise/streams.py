"""Random numbers for samples: one seed, one sample, on any device.

Samplers take their noise from here, and so does training. Inside `with Streams(seed, indices):`
every sample has a stream of its own, which depends on the seed and on the sample's index alone.
So a sample does not change with the batch that it is part of, its place there, or the number and
the kind of devices. Outside of it, the noise is that of torch's own generator.
"""

import math
import random
from collections.abc import Iterable
from contextvars import ContextVar, Token

import torch
from torch import Tensor

from ncsn.noise.checks import expect
from ncsn.noise.philox import WORD, philox

__all__ = ["Streams", "exponential", "finest_dtype", "integers", "mixed_seed", "normal", "uniform"]


class Streams:
    """A context in which the functions below use the streams of the samples `indices`.

    Re-entering continues the streams. The numbers are a function of (seed, index, how many
    were drawn before) alone: uniform numbers and integers are equal bit for bit on every device,
    the others up to a unit in the last place, on Apple's GPUs (MPS) up to float32's rounding.
    """

    def __init__(
        self, seed: int, indices: Iterable[int], device: torch.device | str = "cpu"
    ) -> None:
        mixed = mixed_seed(seed)
        self.key = mixed & WORD, mixed >> 32
        self.draws = 0
        if isinstance(indices, range):  # made on the device, without a copy
            bounds = indices.start, indices.stop, indices.step
            index = torch.arange(*bounds, device=device)
        else:
            index = torch.tensor(list(indices), dtype=torch.int64, device=device)
        self.index = torch.stack((index & WORD, (index >> 32) & WORD)).unsqueeze(-1)
        self._tokens: list[Token[Streams | None]] = []

    def __enter__(self) -> "Streams":
        self._tokens.append(_current.set(self))
        return self

    def __exit__(self, *_: object) -> None:
        _current.reset(self._tokens.pop())

    def words(self, x: Tensor, lower: bool = False) -> Tensor:
        """Return random words (4, B, n), 4n of 32 bits for each example of `x` (B, ...).

        Args:
            x: at most 4n numbers for each example.
            lower: return further words for the numbers that were drawn last.

        Raises:
            ValueError: if there are not as many examples as streams.
        """
        streams, samples = self.index.shape[1], len(x)
        rule = "as many samples as streams"
        expect(rule, samples == streams, self, streams=streams, samples=samples)
        self.draws += not lower
        blocks = math.ceil(x.shape[1:].numel() / 4)
        counter = self.index.new_empty(4, samples, blocks)
        counter[0] = torch.arange(blocks, device=counter.device)
        counter[1] = 2 * self.draws + lower
        counter[2:] = self.index
        return philox(counter, self.key)

    def normal(self, x: Tensor) -> Tensor:
        """Return z ~ N(0, I) like `x` (B, ...), by Box & Muller (1958)."""
        words = self.words(x).to(finest_dtype(x.device))
        radius = (2 * _exponential(words[:2])).sqrt()
        angle = words[2:] * (2 * math.pi / 2**32)
        return _like(x, (torch.stack((angle.cos(), angle.sin())) * radius).flatten(0, 1))

    def uniform(self, x: Tensor) -> Tensor:
        """Return u ~ U[0, 1) like `x` (B, ...), with as many bits as its dtype holds."""
        bits = round(1 - math.log2(torch.finfo(x.dtype).eps))
        words = self.words(x)
        if bits > 32:
            words = words << (bits - 32) | self.words(x, lower=True) >> (64 - bits)
        return _like(x, words >> max(0, 32 - bits)) * 2.0**-bits

    def integers(self, x: Tensor, count: int) -> Tensor:
        """Return integers below `count` (at most 2^31), equally likely, of the shape of `x`."""
        return _like(x, self.words(x) * count >> 32, torch.int64)

    def exponential(self, x: Tensor) -> Tensor:
        """Return positive numbers of density exp(-t), like `x` (B, ...)."""
        return _like(x, _exponential(self.words(x).to(finest_dtype(x.device))))


def _exponential(words: Tensor) -> Tensor:
    """Return exponential numbers of words, as floats; the half keeps 0 out of the logarithm."""
    return -((words + 0.5) * 2.0**-32).log()


def _like(x: Tensor, values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return the first of `values` (4, B, n), as many as `x` has, in the shape of `x`."""
    rows = values.to(dtype or x.dtype).movedim(0, 1).flatten(1)
    return rows[:, : x.shape[1:].numel()].reshape(x.shape)


_current: ContextVar[Streams | None] = ContextVar("streams", default=None)


def normal(x: Tensor) -> Tensor:
    """Return z ~ N(0, I), of the shape, dtype and device of `x` (B, ...)."""
    streams = _current.get()
    return torch.randn_like(x) if streams is None else streams.normal(x)


def uniform(x: Tensor) -> Tensor:
    """Return u ~ U[0, 1), of the shape, dtype and device of `x` (B, ...)."""
    streams = _current.get()
    return torch.rand_like(x) if streams is None else streams.uniform(x)


def integers(x: Tensor, count: int) -> Tensor:
    """Return integers 0 ... count - 1, of the shape and device of `x` (B, ...)."""
    streams = _current.get()
    if streams is None:
        return torch.randint(count, x.shape, device=x.device)
    return streams.integers(x, count)


def exponential(x: Tensor) -> Tensor:
    """Return t > 0 of density exp(-t), of the shape, dtype and device of `x` (B, ...)."""
    streams = _current.get()
    return torch.empty_like(x).exponential_() if streams is None else streams.exponential(x)


def finest_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on Apple's GPUs (MPS), which have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def mixed_seed(*numbers: int) -> int:
    """Return a seed of 63 bits that depends on all of the numbers, and hides their pattern."""
    return random.Random(repr(numbers)).getrandbits(63)
