"""`ncsn train`: train a model as configurations and the options after them say."""

import json
import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from ncsn.cli.config_file import check_config, check_number
from ncsn.cli.errors import reason, silence_libraries
from ncsn.cli.help import class_help, short_help
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
FILE_LOGGER = re.compile(r"(--trainer\.logger=)?([\w.]+\.)?(CSV|TensorBoard)Logger")


def run(arguments: Sequence[str]) -> None:
    """Check the configurations, which takes no time, and train; or show the help."""
    if {"-h", "--help"} & set(arguments) and "all" not in arguments:
        print(short_help("train"))
        return
    words = [word.partition("=")[0] for word in arguments]
    asked = next((word for word in words if word.endswith(".help")), None)
    checked = ["--help"] if "--help" in arguments else settings(arguments)

    from ncsn.training.run import run  # takes seconds to import

    silence_libraries()  # Lightning, once it is imported
    if asked is None:
        run(checked)
        return
    text = StringIO()
    try:
        with redirect_stdout(text):
            run(checked)
    finally:  # the parser ends the program
        print(class_help(text.getvalue(), asked), end="")


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
        TypeError: if an option is no text.
    """
    if wrong := [option for option in options if not isinstance(option, str)]:
        raise TypeError(
            f"expected options as '--data.batch_size=64', each a text, got {wrong[0]!r}"
        )
    from ncsn.training.run import build_parts

    try:
        parts = build_parts(settings(["--config", str(config), *options]))[-1]
    except ValueError as error:
        raise ValueError(reason(error)) from error
    return parts.model, parts.data


def settings(arguments: Sequence[str]) -> list[str]:
    """Return arguments as the parser of training takes them, with the configurations checked."""
    words = list(pairwise(["", *with_config_files(arguments)]))
    for option, word in words:
        key, value = word.partition("=")[::2] if "=" in word else (option, word)
        check_number(key, value)
        if key == "--model" and not value.endswith((".yaml", ".yml", ".json")):
            advice = f"to start from a trained model: --model.weights {value}"
            raise ValueError(f"model: {value} is not a file of settings; {advice}")
    return [current(word) if option == "--config" else word for option, word in words]


def with_config_files(arguments: Sequence[str]) -> list[str]:
    """Return the configurations as `--config`, PATH, and then the options, which override them."""
    configs: list[str] = []
    options: list[str] = []
    words = iter(arguments)
    for word in words:
        key, equals, value = word.partition("=")
        if key in ("-c", "--config"):
            configs += ["--config", config_file(value if equals else next(words, ""))]
        else:
            options.append(word)
        if FILE_LOGGER.fullmatch(word):
            options += ["--trainer.logger.save_dir", "logs"]
    return [*(configs or ["--config", config_file(DEFAULT_CONFIG)]), *options]


def current(file: str) -> str:
    """Return a configuration's path, or its settings as JSON if they are of an earlier version."""
    check_config(file)
    text = Path(file).read_text("utf-8")
    if not EARLIER.search(text):
        return file
    settings = updated(yaml.safe_load(text) or {})
    if "score" in settings:
        settings["quality"] = settings.pop("score")
    return json.dumps(settings)
