"""The option `--data`: a configuration with a data section, or a data set's class."""

import json
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, get_loader

from ncsn.data.module import ImageData

__all__ = ["chosen_data", "data_section", "given_data"]


def data_section(text: str) -> str:
    """Return a YAML file's `data` section as JSON, or any other text as is.

    Raises:
        ValueError: if the file has no such section.
    """
    path = Path(text)
    if path.suffix not in (".yaml", ".yml"):
        return text
    if not path.is_file():
        raise ValueError(f"--data: there is no file {path}")
    try:
        config = get_loader("yaml")(path.read_text())
    except Exception as error:  # the loader raises errors of many kinds
        raise ValueError(f"--data: {path} is not YAML ({error})") from error
    if not isinstance(config, dict) or not isinstance(config.get("data"), dict):
        raise ValueError(f"--data: {path} has no section `data`")
    return json.dumps(config["data"])


def given_data(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with each `--data CONFIG` replaced by its data section.

    Raises:
        ValueError: if a file has no such section.
    """
    given: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key == "--data" and equals:
            argument = f"--data={data_section(value)}"
        given.append(data_section(argument) if given[-1:] == ["--data"] else argument)
    return given


def chosen_data(arguments: Sequence[str]) -> ImageData:
    """Return the data set that `--data` and `--data.NAME` describe.

    Raises:
        ArgumentError, ValueError: if a setting is wrong.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageData, "data", required=True)
    instantiate = getattr(
        parser, "instantiate", parser.instantiate_classes
    )  # the name before jsonargparse 4.49
    data = instantiate(parser.parse_args(given_data(arguments))).data
    assert isinstance(data, ImageData)
    return data
