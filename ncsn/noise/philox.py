"""The random function Philox 4x32-10: the same bits on every device.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011), section 3.3. It has no
state: a counter gives its numbers, whatever was generated before or next to them.
"""

import torch
from torch import Tensor

__all__ = ["WORD", "philox"]

WORD = 2**32 - 1  # the largest word
ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85  # added to the key after each round


def philox(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Return random words (4, ...) of `counter` (4, ...), words of 32 bits as int64.

    Different counters or keys give independent words, each uniform in 0 ... 2^32 - 1.
    """
    row = torch.arange(2, device=counter.device).view(2, *[1] * (counter.ndim - 1))

    def pair(first: int, second: int) -> Tensor:  # made on the device, without a copy
        return row * (second - first) + first

    multipliers, rounds = pair(*MULTIPLIERS), torch.arange(ROUNDS, device=counter.device)
    keys = (rounds.view(ROUNDS, *[1] * counter.ndim) * pair(*WEYL) + pair(*key)) & WORD
    even, odd = counter[0::2], counter[1::2]
    for round_key in keys.unbind():
        # The product of two words has 64 bits, which int64 holds with another sign. `odd` is its
        # lower word; the upper bits are removed once, at the end, or with those of `even`.
        product = (even * multipliers).flip(0)
        even = (product >> 32).bitwise_xor_(odd).bitwise_xor_(round_key).bitwise_and_(WORD)
        odd = product
    return torch.stack((even, odd & WORD), dim=1).flatten(0, 1)
