"""Measurements within a limit of time, each of which may fail without the others."""

import contextlib
import gc
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

__all__ = ["Row", "measured"]

Row = dict[str, Any]  # a measurement's columns and values, as a table shows them
AGAIN = 5  # seconds until the end of the time is raised again, if something swallows it


class TimeUp(BaseException):
    """The end of the time; no library takes it for an error of its own."""


def measured(what: Row, measure: Callable[[], Row], deadline: float) -> Row:
    """Return the row `what` with the columns measured, or with the reason that there are none.

    Args:
        what: the columns that say what is measured.
        measure: returns the other columns.
        deadline: the time of `time.monotonic` at which it is stopped.
    """
    skipped = {"note": "skipped: the time of this part is used up"}
    if (left := deadline - time.monotonic()) <= 0:
        return what | skipped
    try:
        with time_limit(left):
            return what | measure()
    except TimeUp:
        return what | skipped
    except (Exception, SystemExit) as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        return what | {"note": f"failed: {type(error).__name__}: {reason}"}
    finally:
        release()


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeUp` inside the context after so many seconds."""
    before = signal.signal(signal.SIGALRM, time_up)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def time_up(*_: object) -> None:
    """Raise `TimeUp`, for a signal."""
    raise TimeUp


def release() -> None:
    """Free the GPU's memory and the compiled networks of a measurement."""
    torch.compiler.reset()
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
