"""Timings of several functions in turns, so that other load on the machine affects them equally.

Compare only ratios, or rates from the same run: rates of different runs are not comparable.
"""

import statistics
import time
from collections.abc import Callable, Mapping

from rich import box
from rich.console import Console
from rich.table import Table

__all__ = ["interleaved", "median_ratio", "show"]


def interleaved(things: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each function in each round, after one round of warm-up."""
    for thing in things.values():
        thing()
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for _ in range(rounds):
        for name, thing in things.items():
            began = time.perf_counter()
            thing()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def median_ratio(over: list[float], under: list[float]) -> float:
    """Return the median over rounds of `over` divided by `under`."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def show(columns: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    table = Table(*columns, box=box.MARKDOWN)
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)
