"""Hints at a name that was meant."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["closest", "did_you_mean"]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'NAME'?" for the known name that is close, or nothing."""
    close = closest(name, known)
    return f"; did you mean {close!r}?" if close != name else ""


def closest(name: str, known: Iterable[str]) -> str:
    """Return the known name that is closest, or the name itself if none is close."""
    by_case = {each.casefold(): each for each in known}
    close = get_close_matches(name.casefold(), by_case, 1)
    return by_case[close[0]] if close else name
