"""The two commands: train, and sample from what was trained.

A wrong setting ends in one line on standard error and exit status 2, a failure of the world (disk, network) in 1, a
walk that diverged in 3, a signal in 128 and its number. A traceback is for bugs.
"""

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from ncsn.cli.config_file import check_config
from ncsn.cli.errors import answered, fail, stopped_by_signals
from ncsn.cli.options import sample_options

__all__ = ["sample", "train"]

DEFAULT_CONFIG = Path("configs/digits.yaml")


def train() -> None:
    """Train a model as the configuration and the command line say: `python train.py --help`."""
    names = {argument.split("=")[0] for argument in sys.argv[1:]}
    if not names & {"-c", "--config", "-h", "--help"}:
        if not DEFAULT_CONFIG.is_file():
            fail(
                2,
                f"--config: none given, and there is no {DEFAULT_CONFIG} here; give the path of a YAML file",
            )
        sys.argv[1:1] = ["--config", str(DEFAULT_CONFIG)]
    for config in configs(sys.argv[1:]):
        with answered({ValueError: 2, OSError: 1}):
            check_config(config)

    with stopped_by_signals():
        from ncsn.training.run import run  # takes seconds to import

        run()


def configs(arguments: Sequence[str]) -> list[str]:
    """The configurations that arguments name, as `--config FILE` or `--config=FILE`."""
    named = [
        argument.partition("=")[2]
        for argument in arguments
        if argument.startswith(("--config=", "-c="))
    ]
    return named + [file for option, file in pairwise(arguments) if option in ("--config", "-c")]


def sample(arguments: Sequence[str] | None = None) -> None:
    """Draw from a checkpoint, or denoise pictures with it: `python sample.py --help`."""
    options, of_sampler = sample_options(sys.argv[1:] if arguments is None else arguments)
    with stopped_by_signals():
        from ncsn.cli.sample import run  # takes seconds to import

        run(options, of_sampler)
