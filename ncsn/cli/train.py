"""`ncsn train`: train a model as configurations and the options after them say."""

import sys
from collections.abc import Sequence
from itertools import pairwise

from ncsn.cli.config_file import check_config
from ncsn.cli.shipped import config_file

__all__ = ["run"]

DEFAULT_CONFIG = "digits"


def run(arguments: Sequence[str]) -> None:
    """Check the configurations, which takes no time, and train."""
    arguments = with_config_files(arguments)
    options = {argument.split("=")[0] for argument in arguments}
    if not options & {"--config", "-h", "--help"}:
        arguments = ["--config", config_file(DEFAULT_CONFIG), *arguments]
    for option, file in pairwise(arguments):
        if option == "--config":
            check_config(file)
    sys.argv[1:] = arguments

    from ncsn.training.run import run  # takes seconds to import

    run()


def with_config_files(arguments: Sequence[str]) -> list[str]:
    """Return arguments in which each configuration is given as `--config`, PATH."""
    given: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key in ("-c", "--config"):
            given += ["--config", config_file(value)] if equals else ["--config"]
        else:
            given.append(config_file(argument) if given[-1:] == ["--config"] else argument)
    return given
