"""`ncsn train`: train a model as configurations and the options after them say."""

import json
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from ncsn.cli.config_file import check_config, check_number
from ncsn.cli.errors import reason, silence_libraries
from ncsn.model.renamed import updated
from ncsn.model.shipped import config_file

if TYPE_CHECKING:
    from ncsn.data import DataModule
    from ncsn.training.module import ScoreModule

__all__ = ["from_config", "run"]

DEFAULT_CONFIG = "digits"
# What only configurations of earlier versions contain.
EARLIER = re.compile(
    r"^score:|\b(anneal_power|corruption|Annealed|ProbabilityFlow|StochasticHeun)\b", re.MULTILINE
)


def run(arguments: Sequence[str]) -> None:
    """Check the configurations, which takes no time, and train."""
    arguments = with_config_files(arguments)
    options = {argument.split("=")[0] for argument in arguments}
    if not options & {"--config", "-h", "--help"}:
        arguments = ["--config", config_file(DEFAULT_CONFIG), *arguments]
    words = list(pairwise(["", *arguments]))
    for option, word in words:
        check_number(*(word.partition("=")[::2] if "=" in word else (option, word)))
    sys.argv[1:] = [current(word) if option == "--config" else word for option, word in words]

    from ncsn.training.run import run  # takes seconds to import

    silence_libraries()  # Lightning, once it is imported
    run()


def from_config(config: str | Path, *options: str) -> tuple["ScoreModule", "DataModule"]:
    """Return the training module and the data of a configuration, for a Lightning trainer.

    The weights and all later random numbers follow from its seed. Its trainer and its
    callbacks, such as the moving average, are left out. It may name any class: read it
    as you would read a script.

    Args:
        config: a file, or the name of a shipped configuration, as `mnist`.
        options: as on the command line: "--data.batch_size=64".

    Raises:
        ValueError: if a setting is wrong.
    """
    from ncsn.training.run import build_parts

    file = current(config_file(str(config)))
    try:
        parts = build_parts(["--config", file, *options])[-1]
    except ValueError as error:
        raise ValueError(reason(error)) from error
    return parts.model, parts.data


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


def current(file: str) -> str:
    """Return a configuration's path, or its settings as JSON if they are of an earlier version."""
    with suppress(OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        text = Path(file).read_text("utf-8")
        if EARLIER.search(text):
            settings = updated(yaml.safe_load(text))
            if "score" in settings:
                settings["quality"] = settings.pop("score")
            return json.dumps(settings)
    check_config(file)
    return file
