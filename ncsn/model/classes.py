"""The classes that a file may name: those of this package, and trusted ones."""

import json
import re
import sys
from collections.abc import Collection
from functools import cache
from importlib import import_module
from inspect import isabstract
from typing import TypeGuard

from torch import nn
from torch.optim import Optimizer

from ncsn.noise import NoiseSchedule
from ncsn.objectives import Corruption, Objective
from ncsn.samplers import Sampler
from ncsn.score.densities import Density

__all__ = [
    "KINDS",
    "UnknownClassError",
    "class_named",
    "classes",
    "dotted",
    "one_line",
    "shown",
    "unknown_classes",
]

# The base classes of the parts of a model.
KINDS = (nn.Module, NoiseSchedule, Objective, Corruption, Density, Sampler)
MOST_NAMED = 20  # classes in one message
# The modules whose public classes a file may name as parts of a model.
ROOMS = (
    "ncsn.noise",
    "ncsn.networks",
    "ncsn.score",
    "ncsn.score.densities",
    "ncsn.score.toys",
    "ncsn.objectives",
    "ncsn.samplers",
)
# With the data and the optimisers, which need more than torch to import.
ALL_ROOMS = (*ROOMS, "ncsn.data", "ncsn.training.optimisers", "torch.optim")
# The names that modules had in files of earlier versions.
RENAMED = {
    "ncsn.score.denoisers": "ncsn.score",
    "ncsn.score.energy": "ncsn.score",
    "ncsn.score.densities": "ncsn.densities",
    "ncsn.score.toys": "ncsn.toys",
    "ncsn.training.optimisers": "ncsn.optim",
}


@cache
def classes(rooms: tuple[str, ...] = ROOMS) -> dict[str, type]:
    """Return the public concrete classes of some modules, by all their dotted names."""
    found: dict[str, type] = {}
    for room in map(import_module, rooms):
        for name in room.__all__:
            made = getattr(room, name)
            if isinstance(made, type) and is_part(made):
                home = made.__module__
                for module in ("ncsn", room.__name__, home, RENAMED.get(home, home)):
                    found[f"{module}.{name}"] = made
    return found


def is_part(made: type) -> bool:
    """Return True for a concrete data module, optimiser or part of a model."""
    is_data = any(base.__name__ == "DataModule" for base in made.__mro__)
    return (is_data or issubclass(made, (*KINDS, Optimizer))) and not (
        isabstract(made) or made is Optimizer
    )


class UnknownClassError(ValueError):
    """A class named in a file that is neither of this package nor trusted."""

    def __init__(self, path: str, key: str, others: Collection[str] = ()) -> None:
        self.path, self.key = path, key
        hint = ""
        if may_be_trusted(path):
            names = list(dict.fromkeys([path, *others]))[:MOST_NAMED]
            one, many = "it is yours and you trust it", "they are yours and you trust them"
            it = one if len(names) == 1 else many
            hint = f"; if {it}: --trust {','.join(names)} (in Python, trust={json.dumps(names)})"
        super().__init__(
            f"{key}: {path if dotted(path) else shown(path)} is not a class of this package{hint}"
        )


def class_named(path: str, kinds: tuple[type, ...], key: str, trust: Collection[str]) -> type:
    """Return the class with a dotted name, a subclass of one of the kinds.

    Only names in `trust` are imported; `key` is the setting, for the message.

    Raises:
        UnknownClassError: if the class is neither of this package nor trusted.
        ValueError: if it is of another kind.
    """
    table = classes() if path in classes() else classes(ALL_ROOMS)
    if path in table:
        found = table[path]
    elif path in ([trust] if isinstance(trust, str) else trust):
        found = imported(path, key)
    else:
        raise UnknownClassError(path, key)
    if not (isinstance(found, type) and issubclass(found, kinds)):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{key}: {path} is not a subclass of {expected}")
    return found


def unknown_classes(settings: object, trust: Collection[str]) -> list[str]:
    """Return the unknown class names in plain settings that a user may trust."""
    unknown, left = [], [settings]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            path = value.get("class_path")
            if (
                may_be_trusted(path)
                and path not in classes(ALL_ROOMS)
                and path not in ([trust] if isinstance(trust, str) else trust)
            ):
                unknown.append(path)
            left += reversed(value.values())
        elif isinstance(value, (list, tuple)):
            left += reversed(value)
    return unknown


def may_be_trusted(path: object) -> TypeGuard[str]:
    """Return True for a dotted name outside this package and Python's library."""
    return dotted(path) and path.partition(".")[0] not in {"ncsn", *sys.stdlib_module_names}


def imported(path: str, key: str) -> type:
    """Import the object with a trusted name; the caller checks that it is a class."""
    module, _, name = path.rpartition(".")
    try:
        found: type = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"{key}: {path} cannot be imported: {one_line(error)}") from error
        package = module.partition(".")[0]
        raise ValueError(
            f"{key}: {path} is trusted, but Python finds no {package}.py; put it next to "
            "the command, or its folder on PYTHONPATH"
        ) from error
    except Exception as error:  # the user's module may raise anything
        raise ValueError(f"{key}: {path} cannot be imported: {one_line(error)}") from error
    return found


def dotted(path: object) -> TypeGuard[str]:
    """Return True for a short string of two or more ASCII identifiers with dots."""
    return (
        isinstance(path, str)
        and len(path) <= 200
        and re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", path, re.A) is not None
    )


def one_line(error: Exception) -> str:
    """Return the message of an error on one line."""
    return " ".join(str(error).split())


def shown(value: object) -> str:
    """Return the start of a value on one line of ASCII, or the type of a collection."""
    if isinstance(value, str):
        text = ascii(value)
        return text if len(text) <= 80 else f"{text[:80]}..."
    if value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63):
        return repr(value)
    return f"a value of type {type(value).__name__}"
