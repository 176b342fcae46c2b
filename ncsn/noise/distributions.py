"""Random numbers of several distributions, made of the words of Philox."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ncsn.noise.philox import WORD, philox

__all__ = ["Make", "exponential", "fused", "integers", "normal", "one_kernel", "uniform"]

RECOMPILE_LIMIT = 64  # of distributions, dtypes, and sizes that are 1

Words = Callable[[], Sequence[Tensor]]
Make = Callable[..., Sequence[Tensor]]
"""(words, lower, ...) -> four rows of numbers, each of the shape of a word.

`words()` are four words of 32 bits, of int64, and `lower()` are four more.
"""


def normal(words: Words, lower: Words, dtype: torch.dtype, finest: torch.dtype) -> Sequence[Tensor]:
    """Return z ~ N(0, I) of `dtype`, by Box & Muller (1958) in the dtype `finest`."""
    first, second, *others = words()
    radii = [(2 * _exponential(word, finest)).sqrt() for word in (first, second)]
    # 2 pi / 2^32, as a literal: `math.pi` would be an input of the compiled function.
    angles = [word.to(finest) * 1.4629180792671596e-09 for word in others]
    pairs = [*zip(radii, angles, strict=True)]
    cosines = [(angle.cos() * radius).to(dtype) for radius, angle in pairs]
    return [*cosines, *((angle.sin() * radius).to(dtype) for radius, angle in pairs)]


def uniform(words: Words, lower: Words, dtype: torch.dtype) -> Sequence[Tensor]:
    """Return u ~ U[0, 1) of `dtype`, with as many bits as it holds."""
    bits = round(1 - math.log2(torch.finfo(dtype).eps))
    upper = words()
    if bits > 32:
        pairs = zip(upper, lower(), strict=True)
        upper = [word << (bits - 32) | more >> (64 - bits) for word, more in pairs]
    return [(word >> max(0, 32 - bits)).to(dtype) * 2.0**-bits for word in upper]


def integers(words: Words, lower: Words, count: Tensor) -> Sequence[Tensor]:
    """Return integers below `count` (at most 2^31), equally likely."""
    return [word * count >> 32 for word in words()]


def exponential(
    words: Words, lower: Words, dtype: torch.dtype, finest: torch.dtype
) -> Sequence[Tensor]:
    """Return positive numbers of density exp(-t) of `dtype`, computed in the dtype `finest`."""
    return [_exponential(word, finest).to(dtype) for word in words()]


def _exponential(word: Tensor, finest: torch.dtype) -> Tensor:
    """Return exponential numbers; the half keeps 0 out of the logarithm."""
    return -((word.to(finest) + 0.5) * 2.0**-32).log()


def fused(
    make: Make, streams: Tensor, steps: tuple[Tensor, Tensor], n: int, *settings: Any
) -> Tensor:
    """Return n numbers (B, n) for each of B streams, all of it element by element.

    Each number computes all four words of its block and takes one, so that a compiler makes
    one kernel of the function.

    Args:
        make: the distribution.
        streams: index and key, two words each (4, B, 1).
        steps: the second word of the counters of `words` and `lower`, each ().
        n: numbers of each stream.
        settings: further arguments of `make`.
    """
    place, blocks = torch.arange(n, device=streams.device), (n + 3) // 4
    # Without the mask it is an index to inductor, which multiplies it in 32 bits.
    block = place % blocks & WORD
    *index, first_key, second_key = streams.unbind()

    def words(step: Tensor) -> Sequence[Tensor]:
        return philox((block, step, *index), (first_key, second_key))

    a, b, c, d = make(lambda: words(steps[0]), lambda: words(steps[1]), *settings)
    row = place // blocks
    return torch.where(row < 2, torch.where(row < 1, a, b), torch.where(row < 3, c, d))


@cache
def one_kernel(backend: str | Callable[..., Any] = "inductor") -> Callable[..., Tensor]:
    """Return `fused`, compiled for tensors of any size."""
    settings = {"fullgraph": True, "dynamic": True, "recompile_limit": RECOMPILE_LIMIT}
    function: Callable[..., Tensor] = torch.compile(fused, backend=backend, **settings)  # type: ignore[call-overload]
    return function
