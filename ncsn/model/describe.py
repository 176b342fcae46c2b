"""Settings of objects that were made in Python, as files hold them.

They are the class of an object and its arguments. The value of an argument is the
attribute of its name, which dataclasses have, and other classes must keep.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from inspect import Parameter, signature
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any

import torch
from torch import nn

from ncsn.model.classes import class_paths, name_of, shown
from ncsn.model.model import Model
from ncsn.model.plans import KINDS, VARIADIC, build, declared_argument, plan_class

__all__ = ["PARTS", "described", "plain_value", "settings_of"]

PARTS = ("denoiser", "schedule", "sampler")  # of a model
ABSENT = object()
Describe = Callable[[object, str], dict[str, Any]]


def settings_of(model: Model) -> dict[str, Any]:
    """Return the plain settings that a model can be rebuilt from.

    They describe the parts as they are now. For a part of a file that does not describe
    itself they are those of the file, if they give this part.

    Raises:
        ValueError: if a part cannot be described.
    """
    settings = model.settings or {}
    made = {"shape": list(model.shape), "gaussian_noise": model.gaussian_noise}
    made |= {"class_names": model.class_names, "label_dropout": model.label_dropout}
    known = dict(settings.get("hyper_parameters", made))
    known["shape"] = list(model.shape)
    for name in PARTS:  # any may have been changed since
        part = getattr(model, name)
        try:
            known[name] = described(part, f"model.{name}")
        except ValueError:
            if name not in known or is_dataclass(part) or not gives(known[name], part):
                raise
    return {**settings, "hyper_parameters": known}


def described(part: object, key: str) -> dict[str, Any]:
    """Return the settings that `part` can be built again from; `key` is its setting.

    Raises:
        ValueError: if they do not give it again: an argument is not kept as an
            attribute, or is not plain, or the class is defined inside a function.
    """
    settings = outline(part, key, described)
    plan = plan_class(settings, (type(part),), key, class_paths(settings))
    if isinstance(part, KINDS):  # data may take long to build
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                again = build(plan)
            same = outline(again, key) == settings and shapes(again) == shapes(part)
        except Exception as error:  # a constructor may raise anything
            raise ValueError(f"{key}: it is not built again: {error}") from error
        if not same:
            raise ValueError(
                f"{key}: its attributes give another {type(part).__name__}; "
                "keep each argument of __init__ as it is given"
            )
    return settings


def gives(settings: dict[str, Any], part: object) -> bool:
    """Return True if settings of a file give a part, as far as its attributes tell."""
    plan = plan_class(settings, (object,), "", class_paths(settings))
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return traits(build(plan)) == traits(part)


def traits(part: object) -> list[object]:
    """Return the class of each module of a part, and the attributes of its arguments' names."""
    modules = list(part.modules()) if isinstance(part, nn.Module) else [part]
    kept = [
        {
            name: repr(value)
            for name in signature(type(each)).parameters
            if isinstance(value := getattr(each, name, None), (bool, int, float, str, tuple, list))
        }
        for each in modules
    ]
    return [list(map(type, modules)), kept, shapes(part)]


def outline(part: object, key: str, of: Describe | None = None) -> dict[str, Any]:
    """Return the class of an object and its attributes; `of` describes the parts in it."""
    made, arguments = type(part), {}
    if "<locals>" in made.__qualname__:
        raise ValueError(
            f"{key}: {made.__name__} is defined inside a function; define it at the top of a file"
        )
    for name in argument_names(made, key):
        value, default = getattr(part, name, ABSENT), declared_argument(made, name)[1]
        if value is ABSENT:
            raise ValueError(
                f"{key}: {made.__name__} does not keep its argument {name}; "
                f"set self.{name} = {name} in its __init__"
            )
        if isinstance(value, float) and not math.isfinite(value) and value == default:
            continue  # JSON has no infinity
        try:
            arguments[name] = plain_value(value, f"{key}.{name}", of or outline)
        except ValueError:
            if value is not default:
                raise
    return {"class_path": name_of(made), "init_args": arguments}


def argument_names(made: type, key: str) -> Iterator[str]:
    """Yield the names of a class's arguments, and of those that **kwargs passes on."""
    for owner in made.__mro__:
        if "__init__" not in vars(owner) or owner in (nn.Module, object):
            continue
        _, *parameters = signature(vars(owner)["__init__"]).parameters.values()
        yield from (each.name for each in parameters if each.kind not in VARIADIC)
        kinds = {each.kind for each in parameters}
        if Parameter.VAR_KEYWORD not in kinds:
            if Parameter.VAR_POSITIONAL in kinds:
                raise ValueError(f"{key}: {made.__name__} takes *args, which have no names")
            return


def plain_value(value: object, key: str, of: Describe) -> Any:
    """Return a value as a file holds it; `of` describes parts."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Real):  # also of numpy
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [plain_value(each, key, of) for each in value]
    if isinstance(value, KINDS):
        return of(value, key)
    raise ValueError(
        f"{key}: no file can hold {shown(value)}; take a number, a text or a list of these, and "
        "make the object from it in __init__"
    )


def shapes(part: object) -> dict[str, torch.Size]:
    """Return the shapes of a module's weights and buffers, by name."""
    weights = part.state_dict() if isinstance(part, nn.Module) else {}
    return {name: weight.shape for name, weight in weights.items()}
