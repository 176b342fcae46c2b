"""Things measured side by side: in turns, so that whatever else the machine does disturbs them alike.

Only ratios are told, and rates that come from one run: never hold a number of one run against one of another.
"""

import statistics
import time
from collections.abc import Callable, Mapping

from rich import box
from rich.console import Console
from rich.table import Table

__all__ = ["interleaved", "median_ratio", "show"]


def interleaved(things: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """The seconds that each of `things` takes in each of the rounds, after one round that does not count."""
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
    """The median over rounds of one thing's seconds over another's in the same round."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def show(columns: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    table = Table(*columns, box=box.MARKDOWN)
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)
