"""The end of a command: one line on standard error, and an exit code.

The code is 2 for a wrong setting, 1 for a failed run (disk, network, memory), 3 for a
diverged sampler, and 128 + N for signal N. A traceback is a bug.
"""

import atexit
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

__all__ = ["SIGNALS", "exit_codes", "exit_on_signals", "fail", "silence_libraries", "stop"]

SIGNALS = tuple(n for n in signal.Signals if n.name in ("SIGINT", "SIGTERM", "SIGHUP"))
CODES = {
    "ArgumentError": 2,  # jsonargparse
    "MisconfigurationException": 2,  # Lightning
    "ValueError": 2,
    "FloatingPointError": 3,
    "OSError": 1,
}  # exit codes by class name, which needs no imports
MEMORY = {"OutOfMemoryError", "MemoryError"}  # of torch on a GPU, and of NumPy
NO_MEMORY = re.compile("can't allocate memory|bad_alloc")  # torch's RuntimeErrors on a CPU

# jsonargparse lists every alternative that did not match, and repeats its input.
_KEY = re.compile(r"""Parser key ["']([^"']*)["']:?""")
_KIND = re.compile(r"- Expected a (?:<class '(?!NoneType)(.*)'>|typing\.Literal\[(.*)\])$", re.M)
_GIVEN = re.compile(r"Given value: (.*?)(?:\. Got value: .*)?$", re.M)
_UNION = "Does not validate against any of the Union subtypes"
_NOISE = re.compile(
    rf"Expected a (path but|<class '[^']*'>$|typing\.Literal\[.*\]$)|{_UNION}|Subtypes:|Errors:"
    r"|Given value|Type typing\.Callable|Problem with given class_path '[^']*':$"
)
# For a number torch would also accept a tensor, which no configuration contains.
_TENSOR = "<class 'float'>, <class 'torch.Tensor'>"


def fail(code: int, message: object) -> NoReturn:
    """End the program with one line on standard error."""
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    sys.exit(code)


@contextmanager
def exit_codes() -> Iterator[None]:
    """End the program in one line on an exception of `CODES` or a lack of memory.

    It ends silently if nobody reads its output any more, as a program that SIGPIPE ends.
    """
    try:
        try:
            yield
        finally:
            print(end="", flush=True)
    except KeyboardInterrupt:
        fail(130, "interrupted")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at its end
        sys.exit(141)
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        if MEMORY.intersection(kinds) or ("RuntimeError" in kinds and NO_MEMORY.search(str(error))):
            what = (str(error).splitlines() or ["out of memory"])[0]
            fail(1, f"{what}; lower the batch size (--batch-size; --data.batch_size in training)")
        code = next((CODES[kind] for kind in kinds if kind in CODES), None)
        if code is None:
            raise
        fail(code, reason(error))


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """End the program for a signal, with the shell's exit code."""
    try:
        fail(128 + number, f"stopped by {signal.Signals(number).name}")
    finally:
        # Libraries swallow exceptions during their import, and fail later.
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                os._exit(128 + number)
            frame = frame.f_back


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """End the program in one line for each of `SIGNALS`."""
    ends = [number for number in SIGNALS if not is_kept_out(number)]
    before = {number: signal.signal(number, stop) for number in ends}
    # The interpreter takes a second to end, and a signal would change the exit code.
    atexit.register(ignore_signals)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_kept_out(number: signal.Signals) -> bool:
    """Return True for SIGHUP if the parent process ignores it, as `nohup` does."""
    return number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN


def ignore_signals(*_: object) -> None:
    """Ignore all of `SIGNALS` from now on."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def reason(error: Exception) -> str:
    """Return one line of an error's message: the setting, and what is wrong with it."""
    text = str(error)
    if "\nOriginal Traceback" in text:  # raised in a worker process
        return text.strip().splitlines()[-1]
    keys, given = _KEY.findall(text), _GIVEN.search(text)
    if not keys and _UNION not in text:
        return " ".join(text.split())
    lines = [_KEY.sub("", line).strip(" -") for line in text.splitlines()]
    reasons = [line for line in lines if line and not _NOISE.match(line)]
    kinds = [name or values for name, values in _KIND.findall(text)]
    if kinds and given and (not reasons or _TENSOR in text):
        reasons = [f"expected {' or '.join(kinds)}, got {given[1]}"]
    found = ": ".join([*[".".join(keys)][: len(keys)], *reasons[:1]])
    found = re.sub(r"Expected a <class '([^']*)'>. Got value:", r"expected \1, got", found)
    return re.sub(r"(expected str, got [^\[{]*)$", r"\1; put it in quotes", found)


def one_line(message: Warning | str, *_: object, **__: object) -> str:
    """Return a warning as one line, without the place in the code that raised it."""
    return f"warning: {' '.join(str(message).split())}\n"


def silence_libraries() -> None:
    """Print warnings in one line, without those of Lightning that a user cannot act on."""
    warnings.formatwarning = one_line
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec.* is deprecated",  # Lightning's own use of torch
        ".*You have overridden `on_before_batch_transfer` in `LightningModule`",  # to seed a step
        ".*The number of training batches .* is smaller than the logging interval",  # in steps here
        ".*does not have many workers",  # data in memory needs none
        ".*your dataloader is not resumable",  # it is: see `Batches`
        ".*Checkpoint directory .* exists and is not empty",  # checkpoints are numbered
        r".*callbacks used to create the checkpoint .*\[.(Best)?Checkpoint\{",  # of an earlier version
    ):
        warnings.filterwarnings("ignore", message)
