"""What a command says: in one line, where it cannot do what it was asked for; and none of what its libraries add."""

import atexit
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

__all__ = [
    "SIGNALS",
    "answered",
    "fail",
    "hush",
    "ignore_signals",
    "reason",
    "stop",
    "stopped_by_signals",
]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends a program: Ctrl-C, a scheduler or a user, a terminal that is closed."""

# What jsonargparse says besides the reason: the alternatives that did not fit either, and what it was given.
_NOISE = re.compile(
    r"Expected a path but|Expected a <class 'NoneType'>|Does not validate against|Subtypes:|Errors:|Given value|"
    r"Type typing\.Callable|Problem with given class_path '[^']*':$"
)
_UNION = "Does not validate against any of the Union subtypes"
_ALTERNATIVE = re.compile(r"- Expected a (?:<class '([^']*)'>|typing\.Literal\[(.*)\])$")
_GIVEN = re.compile(r"Given value: (.*?)(?:\. Got value: .*)?$")
# Where a number is wanted, torch would take a tensor too, which no configuration holds.
_TENSOR = "<class 'float'>, <class 'torch.Tensor'>"
_KEY = re.compile(r"""Parser key ["']([^"']*)["']:?""")


def fail(status: int, message: object) -> NoReturn:
    """End the program with one line on standard error: status 2 for a wrong setting, 1 for a failure of the world."""
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    sys.exit(status)


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """End the program for a signal: with one line, and the exit status that a shell gives it."""
    try:
        fail(128 + number, f"stopped by {signal.Signals(number).name}")
    finally:
        # Libraries swallow exceptions as they are imported, and fail later for want of what was not.
        if is_importing(frame):
            os._exit(128 + number)


def is_importing(frame: FrameType | None) -> bool:
    """Return True if a frame was called, however indirectly, by an import."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """End the program in one line for each of `SIGNALS`, with the exit status 128 and its number."""
    before = {number: signal.signal(number, stop) for number in SIGNALS}
    # The interpreter takes a second to end; a signal in that time would replace the exit status.
    atexit.register(ignore_signals)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals(*_: object) -> None:
    """Ignore all of `SIGNALS` from now on, whatever this is called with."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def answered(statuses: Mapping[type[Exception], int]) -> Iterator[None]:
    """End the program in one line for errors of the stated kinds, each with its status, and for Ctrl-C with 130."""
    try:
        yield
    except KeyboardInterrupt:
        fail(130, "interrupted")
    except tuple(statuses) as error:
        fail(
            next(status for kind, status in statuses.items() if isinstance(error, kind)),
            reason(error),
        )


def reason(error: Exception) -> str:
    """One line of a message of many, as a parser's or a worker's: the setting, and what is wrong with it."""
    if "\nOriginal Traceback" in str(error):
        return str(error).strip().splitlines()[-1]
    keys, reasons = [], []
    alternatives, given = [], None
    if not (_KEY.search(str(error)) or _UNION in str(error)):
        return " ".join(str(error).split())
    for line in str(error).splitlines():
        keys += _KEY.findall(line)
        alternative = _ALTERNATIVE.search(line)
        if alternative and alternative[1] != "NoneType":
            alternatives.append(alternative[1] or alternative[2])
            continue
        given = given or _GIVEN.search(line)
        text = re.sub(r"^\s*- ", "", _KEY.sub("", line)).strip()
        if text and not _NOISE.match(text):
            reasons.append(
                re.sub(r"Expected a <class '([^']*)'>(?:\. Got value:)?", r"expected \1, got", text)
            )
    if alternatives and given and (not reasons or _TENSOR in str(error)):
        reasons = [f"expected {' or '.join(alternatives)}, got {given[1]}"]
    return ": ".join([".".join(keys), *reasons[:1]] if keys else reasons[:1]) or str(error)


def hush() -> None:
    """Leave out what Lightning says that a user of this package cannot act on."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec.* is deprecated",  # Lightning's own use of torch
        ".*You have overridden `on_before_batch_transfer` in `LightningModule`",  # meant so: it seeds the step
        ".*The number of training batches .* is smaller than the logging interval",  # we log by steps, not by epochs
        ".*predict returned None if it was on purpose",  # of pictures that are there already
        ".*does not have many workers",  # data in memory needs none
        ".*your dataloader is not resumable",  # it is: see `Batches`
        ".*Checkpoint directory .* exists and is not empty",  # checkpoints are numbered, and the newest is the last
        r".*callbacks used to create the checkpoint .*\[.Checkpoint\{",  # an earlier version's had a state
    ):
        warnings.filterwarnings("ignore", message)
