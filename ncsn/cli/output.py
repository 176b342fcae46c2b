"""The output of a command, which one process writes at a time."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ncsn.cli.options import free
from ncsn.model.files import exclusive_file, exclusive_folder
from ncsn.training.processes import hold_outputs

__all__ = ["check_replaced", "held_output"]


@contextmanager
def held_output(options: Namespace) -> Iterator[None]:
    """Hold --out; if another command has just taken a default name, take the next."""
    with ExitStack() as held:
        while True:
            exclusive = exclusive_folder if options.kind == "folder" else exclusive_file
            try:
                held.enter_context(hold_outputs("--out", exclusive(options.out)))
                if options.default_out is None or not options.out.exists():
                    break
            except ValueError:
                if options.default_out is None:
                    raise
            held.close()
            options.out = free(options.default_out)
        yield


def check_replaced(option: str, file: Path, suffix: str, is_ours: Callable[[Path], bool]) -> None:
    """Refuse a name without the suffix, or a file that holds something else."""
    if file.suffix != suffix:
        raise ValueError(f"{option}: expected a name with {suffix}, got {file}")
    if file.exists() and not (file.is_file() and is_ours(file)):
        raise ValueError(f"{option}: {file} exists and holds something else; give another name")
