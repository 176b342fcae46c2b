"""What the options of a command choose: the model, the sampler, the noise levels, the classes."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from inspect import isabstract, signature
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

import ncsn.samplers
from ncsn.model.load import load
from ncsn.model.model import Model
from ncsn.model.plans import declared_argument, fitted
from ncsn.samplers import Sampler

__all__ = [
    "label_of",
    "loaded",
    "sampler_of",
    "sigmas_of",
    "with_images",
]


def loaded(checkpoint: Path, options: Namespace) -> Model:
    """Return the model in a checkpoint, compiled if the options ask for it.

    Raises:
        ValueError: as `load`, or if it is an energy and to be compiled.
    """
    model = load(checkpoint, options.raw, options.trust)
    if vars(options).get("compile"):
        model.compile_network("reduce-overhead")
    return model


def with_images(model: Model, command: str) -> tuple[int, int]:
    """Return the channels and the size of a model's images.

    Raises:
        ValueError: if its examples are not images.
    """
    if len(model.shape) != 3:
        raise ValueError(f"ncsn {command}: expected a model of images, got shape {model.shape}")
    return model.shape[0], model.shape[1]


def sigmas_of(
    model: Model, options: Namespace, sampler: Sampler, levels: int | None = None
) -> Tensor:
    """Return the noise levels (L,) of --steps, --sigma-max and --sigma-min, or the model's own.

    Args:
        model: it has the ends that are not given.
        options: the options.
        sampler: it chooses their spacing.
        levels: their number if the options do not say; the model's own if it is None.

    Raises:
        ValueError: if the sampler does not work on them, or the model has a single level.
    """
    own = model.schedule.sigmas()
    names = ("steps", "sigma_max", "sigma_min")
    given = {name.replace("_", "-"): getattr(options, name) for name in names}
    asked = ", ".join(f"--{name}: {value}" for name, value in given.items() if value is not None)
    sigmas = own
    if asked or levels:
        if len(own) == 1:
            raise ValueError(
                f"{asked or f'{levels} levels'}: the model has the single noise level {own.item():g}"
            )
        count = options.steps or levels or len(own)
        try:
            sigmas = model.sigmas_for(sampler, count, options.sigma_max, options.sigma_min)
        except ValueError as error:
            raise ValueError(f"{asked}: {error}") from error
    sampler.check(sigmas)
    sampler.of(model.denoiser)
    return sigmas


def label_of(model: Model, label: str | None) -> Callable[[Tensor], Tensor | None] | None:
    """Return a function from indices (B,) to the classes (B,) of --label, or None.

    Raises:
        ValueError: if the model takes no labels, or has no such class.
    """
    if label is None:
        return None
    if not model.classes:
        raise ValueError(
            f"--label: {label}, but the model was trained without labels (--data.labels true)"
        )
    if label == "all":
        return lambda indices: indices % model.classes
    if not label.isdecimal() or int(label) >= model.classes:
        raise ValueError(
            f"--label: expected `all` or a class from 0 to {model.classes - 1}, got {label}"
        )
    return lambda indices: torch.full_like(indices, int(label))


def sampler_of(model: Model, arguments: Sequence[str]) -> Sampler:
    """Return the model's sampler, or what --sampler CLASS and --sampler.NAME VALUE ask for.

    Raises:
        ValueError: if there is no such class or setting, or it does not take the value.
    """
    given = dict(pairs(arguments))
    name = given.pop("", None)
    if name is None and not given:
        return model.sampler
    kind = type(model.sampler) if name is None else sampler_class(name)
    accepted = [each for each in signature(kind).parameters if not each.startswith("_")]
    settings: dict[str, Any] = {}
    for key, text in given.items():
        if key not in accepted:
            raise ValueError(
                f"--sampler.{key}: {kind.__name__} has no such setting; it has {', '.join(accepted)}"
            )
        declared, _ = declared_argument(kind, key)
        try:
            settings[key] = fitted(number(text), declared, f"--sampler.{key}", ())
        except ValueError as error:
            raise ValueError(str(error).partition(";")[0]) from error
    if name is not None:
        try:
            return kind(**settings)
        except TypeError as error:
            raise ValueError(f"--sampler: {error}") from error
    if not is_dataclass(model.sampler) or {f.name for f in fields(model.sampler)} < {*settings}:
        raise ValueError(
            f"--sampler.{next(iter(settings))}: name the class too, --sampler CLASS with all of its "
            f"settings, because {kind.__name__} is not a dataclass"
        )
    changed: Sampler = replace(model.sampler, **settings)
    return changed


def pairs(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Return (setting, value) of `--sampler.SETTING=VALUE` and of `--sampler.SETTING`, `VALUE`."""
    found, rest = [], iter(arguments)
    for argument in rest:
        key, equals, value = argument.partition("=")
        found.append((key.removeprefix("--sampler").lstrip("."), value if equals else next(rest)))
    return found


def sampler_class(name: str) -> type[Sampler]:
    """Return a sampler of this package by its name, or one of the user's by its import path.

    Raises:
        ValueError: if there is none.
    """
    public = {each: getattr(ncsn.samplers, each) for each in ncsn.samplers.__all__}
    found = public.get(name.removeprefix("ncsn.samplers.").removeprefix("ncsn."))
    module, _, attribute = name.rpartition(".")
    if found is None and module and not module.startswith("ncsn"):
        try:
            found = getattr(import_module(module), attribute, None)
        except ImportError as error:
            raise ValueError(f"--sampler: {name} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Sampler)) or isabstract(found):
        known = [each for each, kind in public.items() if not isabstract(kind)]
        raise ValueError(f"--sampler: expected one of {', '.join(known)}, or yours, got {name}")
    return found


def number(text: str) -> Any:
    """Return the value of a text: a number, true, false, null, a list, or the text itself."""
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        return float(text)  # YAML takes 1e-5 for a text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
