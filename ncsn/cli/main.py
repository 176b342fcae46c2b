"""The program `ncsn`, whose commands are the modules of this room."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from io import TextIOWrapper

from ncsn.cli.errors import exit_codes, exit_on_signals, fail, silence_libraries
from ncsn.cli.options import COMMANDS, parse
from ncsn.training.hints import did_you_mean

__all__ = ["main", "sample", "train"]

OWN_PARSERS = ("train", "advise")  # whose options are the settings of a run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command: `ncsn COMMAND ...`."""
    for stream in (sys.stdout, sys.stderr):  # of any encoding, and names that are no text
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = given.pop(0) if given else "--help"
    if command in ("-h", "--help"):
        lines = [f"  {name:12} {about}" for name, about in COMMANDS.items()]
        print("usage: ncsn COMMAND ...\n\ncommands:", *lines, sep="\n")
        print("\n`ncsn COMMAND --help` shows the options of a command.")
    elif command == "--version":
        print(f"ncsn {version('ncsn')}")
    elif command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS)
        fail(2, f"expected a command of {', '.join(COMMANDS)}, got {command}{hint}")
    else:
        with exit_on_signals(), exit_codes():
            options = given if command in OWN_PARSERS else parse(command, given)
            module = import_module(f"ncsn.cli.{command}")  # which may take seconds
            silence_libraries()
            module.run(options)


def train() -> None:
    """Run `ncsn train`, for train.py."""
    main(["train", *sys.argv[1:]])


def sample(arguments: Sequence[str] | None = None) -> None:
    """Run `ncsn sample`, for sample.py."""
    main(["sample", *(sys.argv[1:] if arguments is None else arguments)])
