"""Random numbers for samples: one seed, one sample, on any device.

Samplers take their noise from here, and so does training. Inside `with Streams(seed, indices):`
every sample has a stream of its own, which depends on the seed and on the sample's index alone.
So a sample does not change with the batch that it is part of, its place there, or the number and
the kind of devices. Outside of it, the noise is that of torch's own generator.
"""

import math
import operator
import random
import warnings
from collections.abc import Iterable
from contextvars import ContextVar, Token
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ncsn.noise import distributions
from ncsn.noise.checks import expect
from ncsn.noise.distributions import Make, one_kernel
from ncsn.noise.philox import WORD, philox

__all__ = ["Streams", "exponential", "finest_dtype", "integers", "mixed_seed", "normal", "uniform"]


class Streams:
    """A context in which the functions below use the streams of the samples `indices`.

    Re-entering continues the streams. The numbers are a function of (seed, index, how many
    were drawn before) alone: uniform numbers and integers are equal bit for bit on every device,
    the others up to a unit in the last place, on Apple's GPUs (MPS) up to float32's rounding.

    On a CUDA GPU each draw is one kernel, which torch compiles. If it cannot, a warning says so,
    and each draw takes some hundred kernels.
    """

    compiles: ClassVar[bool] = True  # until it fails

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
        if not lower:
            self._count(x)
        place = torch.arange(math.ceil(x.shape[1:].numel() / 4), device=self.index.device)
        return torch.stack(philox((place, 2 * self.draws + lower, *self.index), self.key))

    def normal(self, x: Tensor) -> Tensor:
        """Return z ~ N(0, I) like `x` (B, ...)."""
        return self._numbers(distributions.normal, x, x.dtype, finest_dtype(x.device))

    def uniform(self, x: Tensor) -> Tensor:
        """Return u ~ U[0, 1) like `x` (B, ...), with as many bits as its dtype holds."""
        return self._numbers(distributions.uniform, x, x.dtype)

    def integers(self, x: Tensor, count: int) -> Tensor:
        """Return integers below `count` (at most 2^31), equally likely, of the shape of `x`."""
        with torch.inference_mode(False):  # a tensor of another kind would be compiled for
            bound = torch.tensor(count)
        return self._numbers(distributions.integers, x, bound)

    def exponential(self, x: Tensor) -> Tensor:
        """Return positive numbers of density exp(-t), like `x` (B, ...)."""
        return self._numbers(distributions.exponential, x, x.dtype, finest_dtype(x.device))

    def _numbers(self, make: Make, x: Tensor, *settings: Any) -> Tensor:
        """Return numbers of a distribution, in the shape of `x`."""
        size = x.shape[1:].numel()
        if Streams.compiles and is_compiled_on(x.device) and x.numel():
            self._count(x)
            try:
                with (  # one context alone, because torch compiles for each
                    torch.inference_mode(False),
                    torch.no_grad(),
                    torch.autocast(x.device.type, enabled=False),
                ):
                    # A tensor of no dimension on the CPU is an argument of the kernel, without a copy.
                    steps = torch.tensor(2 * self.draws), torch.tensor(2 * self.draws + 1)
                    flat = one_kernel()(make, self._index_and_key, steps, size, *settings)
                return flat.view(x.shape)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a compiler may raise anything
                Streams.compiles = False
                self.draws -= 1
                reason = " ".join(str(error).split())[:200]
                warnings.warn(
                    f"noise takes longer, as torch.compile failed: {reason}", stacklevel=4
                )
        rows = make(partial(self.words, x), partial(self.words, x, lower=True), *settings)
        return torch.stack(tuple(rows), dim=1).flatten(1)[:, :size].reshape(x.shape)

    @cached_property
    def _index_and_key(self) -> Tensor:
        """The index and the key of each stream, four words (4, B, 1)."""
        return torch.stack((*self.index, *(torch.full_like(self.index[0], k) for k in self.key)))

    def _count(self, x: Tensor) -> None:
        """Count a draw, for as many examples `x` as streams."""
        streams, samples = self.index.shape[1], len(x)
        rule = "as many samples as streams"
        expect(rule, samples == streams, self, streams=streams, samples=samples)
        self.draws += 1


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


def is_compiled_on(device: torch.device) -> bool:
    """Return True if a launch costs so much that the numbers are worth compiling."""
    return device.type == "cuda"


def finest_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on Apple's GPUs (MPS), which have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def mixed_seed(*numbers: int) -> int:
    """Return a seed of 63 bits that depends on all of the integers, and hides their pattern.

    Raises:
        TypeError: if one is not an integer, of Python or another library.
    """
    plain = tuple(int(operator.index(number)) for number in numbers)
    return random.Random(repr(plain)).getrandbits(63)
