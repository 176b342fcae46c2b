"""Where tensors live on a CPU: what a process does with the memory that they free."""

import ctypes
import sys
from functools import cache

__all__ = ["keep_freed_memory"]

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's mallopt: how much may lie free before it is given back, and how many blocks are maps of their own."""


@cache
def keep_freed_memory() -> None:
    """Let this process keep the memory that its tensors free for the next ones, until it ends.

    Else glibc gives what one step frees back to the system, and the next one asks for it again, page by page, each of
    which the system clears; `benchmarks/memory.py` measures what that costs. Training on a CPU calls this, and so
    do the commands that draw; a program of one's own may. With other C libraries nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, -1)  # never
        mallopt(M_MMAP_MAX, 0)  # such a map is given back as soon as it is free
