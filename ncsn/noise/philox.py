"""The random function Philox 4x32-10: the same bits on every device.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011), section 3.3. It has no
state: a counter gives its numbers, whatever was generated before or next to them.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

__all__ = ["WORD", "philox"]

WORD = 2**32 - 1  # the largest word
ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85  # added to the key after each round


def philox(counter: Sequence[Any], key: Sequence[Any]) -> tuple[Tensor, ...]:
    """Return the four random words of a counter of four words and a key of two.

    Words have 32 bits. They are integers, or tensors of int64 whose shapes broadcast. Different
    counters or keys give independent words, each uniform in 0 ... 2^32 - 1.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # The product of two words has 64 bits, which int64 holds with another sign. `c1` and `c3`
        # are its lower word; the upper bits are removed once, at the end, or with the others'.
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1 = (p1 >> 32 ^ c1 ^ k0) & WORD, p1
        c2, c3 = (p0 >> 32 ^ c3 ^ k1) & WORD, p0
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return c0, c1 & WORD, c2, c3 & WORD
