"""The program `ncsn`, whose commands are the modules of this room."""

import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from io import TextIOWrapper
from types import ModuleType

from ncsn.cli.errors import exit_codes, exit_on_signals, silence_libraries
from ncsn.cli.options import COMMANDS, parse
from ncsn.model.names import did_you_mean

__all__ = ["main", "sample", "train"]

OWN_PARSERS = ("train", "advise")  # whose options are the settings of a run
# The ranks that Lightning reads at its import, in its order, and the number of processes.
RANKS = {"RANK": "WORLD_SIZE", "LOCAL_RANK": "WORLD_SIZE", "SLURM_PROCID": "SLURM_NTASKS"}
OF_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
OF_SRUN = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
NUMBERS = (*OF_TORCHRUN, *OF_SRUN, "GROUP_RANK", "NODE_RANK", "MASTER_PORT")
INTERACTIVE = ("bash", "interactive")  # jobs whose processes Lightning leaves apart


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command: `ncsn COMMAND ...`."""
    for stream in (sys.stdout, sys.stderr):  # of any encoding, and names that are no text
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = given.pop(0) if given else "--help"
    with exit_on_signals(), exit_codes():
        if command in ("-h", "--help"):
            lines = [f"  {name:12} {about}" for name, about in COMMANDS.items()]
            print("usage: ncsn COMMAND ...\n\ncommands:", *lines, sep="\n")
            print("\n`ncsn COMMAND --help` shows the options of a command.")
        elif command == "--version":
            print(f"ncsn {version('ncsn')}")
        elif command not in COMMANDS:
            hint = did_you_mean(command, COMMANDS)
            raise ValueError(f"expected a command of {', '.join(COMMANDS)}, got {command}{hint}")
        else:
            check_environment()
            options = given if command in OWN_PARSERS else parse(command, given)
            module = imported(f"ncsn.cli.{command}")
            silence_libraries()
            had_group = has_group()
            module.run(options)
            if has_group() and not had_group:
                # Its threads can abort the interpreter at its end.
                sys.modules["torch.distributed"].destroy_process_group()


def imported(name: str) -> ModuleType:
    """Return a module, imported with garbage collection off.

    torch and Lightning make many objects, all of which stay. They are frozen, so that no later
    collection looks through them, the one at the end of the program included.
    """
    if name in sys.modules:
        return sys.modules[name]
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return import_module(name)
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def has_group() -> bool:
    """Return True if this process is one of a group of torch's."""
    group = sys.modules.get("torch.distributed")
    return group is not None and group.is_available() and group.is_initialized()


def check_environment() -> None:
    """Refuse variables of torchrun and SLURM that neither of them sets like this.

    Lightning reads them when it is imported, and may take this process for one of many.
    """
    given, way_out = os.environ, "; unset it, or start the command by torchrun or srun"
    for name in NUMBERS:
        if not given.get(name, "0").isdecimal():
            found = f"expected a number in the environment, got {given[name]!r}"
            raise ValueError(f"{name}: {found}{way_out}")
    if "TORCHELASTIC_RUN_ID" in given and not given.keys() >= set(OF_TORCHRUN):
        needed = f"set in the environment without all of {', '.join(OF_TORCHRUN)}"
        raise ValueError(f"TORCHELASTIC_RUN_ID: {needed}{way_out}")
    rank = next((name for name in RANKS if name in given), None)
    if rank is not None:
        alone = rank == "SLURM_PROCID" and given.get("SLURM_JOB_NAME") in INTERACTIVE
        processes = 1 if alone else int(given.get(RANKS[rank], 1))
        if int(given[rank]) >= processes:
            expected = f"expected a number below that of the processes ({RANKS[rank]}), {processes}"
            raise ValueError(f"{rank}: {expected}, got {given[rank]}{way_out}")


def train() -> None:
    """Run `ncsn train`, for train.py."""
    main(["train", *sys.argv[1:]])


def sample(arguments: Sequence[str] | None = None) -> None:
    """Run `ncsn sample`, for sample.py."""
    main(["sample", *(sys.argv[1:] if arguments is None else arguments)])
