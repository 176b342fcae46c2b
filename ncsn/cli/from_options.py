"""The model, sampler, noise levels, classes and data that the options of a command choose."""

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, get_loader
from torch import Tensor

import ncsn.samplers
from ncsn.cli.config_file import check_config
from ncsn.cli.devices import device_of
from ncsn.data import DataModule, ImageData
from ncsn.model.load import CHECKPOINTS, default_checkpoint, load, load_data
from ncsn.model.model import Model
from ncsn.model.names import did_you_mean
from ncsn.model.shipped import shipped_configs, shipped_models
from ncsn.samplers import Sampler
from ncsn.training.checks import with_hint

__all__ = [
    "chosen_data",
    "data_of",
    "image_model",
    "image_shape",
    "label_of",
    "loaded",
    "sampler_of",
    "sigmas_of",
]


def loaded(checkpoint: Path, options: Namespace) -> Model:
    """Return the model in a checkpoint, compiled if the options ask for it."""
    model = load(checkpoint, options.raw, options.trust)
    if vars(options).get("compile"):
        model.compile_network("reduce-overhead")
    return model


def image_model(options: Namespace) -> tuple[Path, Model]:
    """Return the checkpoint of --model, and its model on --device."""
    checkpoint = options.model or default_checkpoint(CHECKPOINTS)
    return checkpoint, loaded(checkpoint, options).to(device_of(options.device))


def image_shape(model: Model) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of a model's images."""
    if len(model.shape) != 3:
        raise ValueError(f"checkpoint: expected a model of images, got shape {model.shape}")
    channels, height, width = model.shape
    return channels, height, width


def sigmas_of(
    model: Model, options: Namespace, sampler: Sampler, levels: int | None = None
) -> Tensor:
    """Return the noise levels (L,) of --steps, --sigma-max and --sigma-min, for a sampler.

    What is not given is the model's own, but for `levels`, another default of --steps.
    """
    steps = options.steps or levels
    sigmas = model.sigmas_for(sampler, steps, options.sigma_max, options.sigma_min)
    model.check(sampler, sigmas)
    return sigmas


def label_of(model: Model, label: str | None) -> str | None:
    """Return --label, which must be a class of the model, `none`, `all`, or None for `all`."""
    try:
        model.labels.of(label, range(1))
    except ValueError as error:
        raise ValueError(f"--{error}") from error
    return label


def sampler_of(model: Model, arguments: Sequence[str]) -> Sampler:
    """Return the model's sampler, or what --sampler=CLASS and --sampler.NAME=VALUE ask for."""
    own, default = model.sampler, None
    if not arguments:
        return own
    name = dict(argument.split("=", 1) for argument in arguments).get("--sampler")
    if name and "." not in name and name not in ncsn.samplers.__all__:
        known = ", ".join(each for each in ncsn.samplers.__all__ if each != "Sampler")
        raise ValueError(
            f"--sampler: expected one of {known}, or the import path of yours, got {name}"
            f"{did_you_mean(name, ncsn.samplers.__all__)}"
        )
    if name is None:
        if not is_dataclass(own):
            key = arguments[0].partition("=")[0]
            raise ValueError(f"{key}: name the class too, --sampler CLASS with all of its settings")
        settings = {field.name: getattr(own, field.name) for field in fields(own)}
        name = f"{type(own).__module__}.{type(own).__qualname__}"
        default = {"class_path": name, "init_args": settings}
    sampler: Sampler = described(Sampler, "sampler", arguments, default)
    return sampler


def chosen_data(arguments: Sequence[str]) -> ImageData:
    """Return the data set that --data=CONFIG, or a class, and --data.NAME=VALUE describe."""
    given = [argument.partition("=")[::2] for argument in arguments]
    if "--data" not in dict(given):
        raise ValueError("--data: none given; give a configuration, or the class of a data set")
    sections = [(key, data_section(value) if key == "--data" else value) for key, value in given]
    data: ImageData = described(ImageData, "data", [f"{key}={value}" for key, value in sections])
    return data


def data_of(checkpoint: Path, options: Namespace) -> DataModule:
    """Return the data of --data, or else a checkpoint's own, with the settings of --data.NAME.

    For a model of the package, it is the data of its configuration, which may be downloaded.
    """
    given = [argument.partition("=")[::2] for argument in options.data]
    if "--data" in dict(given):
        return chosen_data(options.data)
    for name, file in shipped_models().items():
        if checkpoint.resolve() == file.resolve():
            return chosen_data([f"--data={shipped_configs()[name]}", *options.data])
    changes = {key.removeprefix("--data."): get_loader("yaml")(value) for key, value in given}
    return load_data(checkpoint, options.trust, **changes)


def data_section(text: str) -> str:
    """Return a YAML file's `data` section as JSON, or any other text as is."""
    if Path(text).suffix not in (".yaml", ".yml"):
        return text
    check_config(text, "--data")
    section = get_loader("yaml")(Path(text).read_text("utf-8")).get("data")
    if not isinstance(section, dict):
        raise ValueError(f"--data: {text} has no section `data`")
    return json.dumps(section)


def described(kind: Any, name: str, arguments: Sequence[str], default: Any = None) -> Any:
    """Return the object of a class and its settings, which training reads in the same way."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, name, required=True, default=default)
    try:
        settings = parser.parse_args(list(arguments))
    except ArgumentError as error:
        raise ValueError(with_hint(str(error), parser)) from error
    return parser.instantiate(settings)[name]
