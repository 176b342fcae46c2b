"""The classes that a file may name: those of this package, in a table, and those of the user's that the user names."""

import json
import re
import sys
from collections.abc import Collection
from functools import cache
from importlib import import_module
from inspect import isabstract
from typing import Any, TypeGuard

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
    "renewed",
    "shown",
    "unknown_classes",
]

KINDS = (nn.Module, NoiseSchedule, Objective, Corruption, Density, Sampler)
"""The base classes of the parts of a model."""
MOST_NAMED = 20  # classes in one refusal
ROOMS = (
    "ncsn.noise",
    "ncsn.networks",
    "ncsn.score",
    "ncsn.score.densities",
    "ncsn.score.toys",
    "ncsn.objectives",
    "ncsn.samplers",
)
"""The modules whose public classes a file may name as parts of a model."""
ALL_ROOMS = (*ROOMS, "ncsn.data", "ncsn.training.optimisers", "torch.optim")
"""The same with the data and the optimisers, which need more than torch to import."""
RENAMED = {
    "ncsn.score.denoisers": "ncsn.score",
    "ncsn.score.energy": "ncsn.score",
    "ncsn.score.densities": "ncsn.densities",
    "ncsn.score.toys": "ncsn.toys",
    "ncsn.training.optimisers": "ncsn.optim",
}
"""Modules, and the names that they had in files of earlier versions."""


@cache
def classes(rooms: tuple[str, ...] = ROOMS) -> dict[str, type]:
    """Return the public concrete classes of some modules, under each dotted name they have."""
    found: dict[str, type] = {}
    for room in map(import_module, rooms):
        for name in room.__all__:
            made = getattr(room, name)
            if isinstance(made, type) and is_part(made):
                home = made.__module__
                for module in ("ncsn", room.__name__, home, RENAMED.get(home, home)):
                    found[f"{module}.{name}"] = made
    return found


def renewed(path: str, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the class path and arguments of this version for those of earlier ones."""
    module, _, name = path.rpartition(".")
    if module.partition(".")[0] != "ncsn":
        return path, arguments
    given = dict(arguments)
    match name:
        case "ProbabilityFlow":
            name = "Euler" if given.pop("order", 2) == 1 else "Heun"
        case "StochasticHeun":
            name = "Heun"
        case _:
            return path, arguments
    return f"ncsn.{name}", given


def is_part(made: type) -> bool:
    """Return True for a concrete class of data, of an optimiser or of a part of a model."""
    is_data = any(base.__name__ == "DataModule" for base in made.__mro__)
    return (is_data or issubclass(made, (*KINDS, Optimizer))) and not (
        isabstract(made) or made is Optimizer
    )


class UnknownClassError(ValueError):
    """A class that a file names, which is neither of this package nor trusted.

    Args:
        path: its dotted name.
        key: the setting.
        others: more such names in the same settings.
    """

    def __init__(self, path: str, key: str, others: Collection[str] = ()) -> None:
        self.path, self.key = path, key
        hint = ""
        if may_be_trusted(path):
            names = list(dict.fromkeys([path, *others]))[:MOST_NAMED]
            it = (
                "it is yours and you trust it"
                if len(names) == 1
                else "they are yours and you trust them"
            )
            hint = f"; if {it}: --trust {','.join(names)} (in Python, trust={json.dumps(names)})"
        super().__init__(
            f"{key}: {path if dotted(path) else shown(path)} is not a class of this package{hint}"
        )


def class_named(path: str, kinds: tuple[type, ...], key: str, trust: Collection[str]) -> type:
    """Return the class with a dotted name, which must be a subclass of one of the kinds.

    A name is looked up in the table of this package. Nothing is imported, except for a name that the user trusts.

    Args:
        path: the dotted name that a file has.
        kinds: the classes that may stand there.
        key: the setting, for the error.
        trust: the names of the user's own classes.

    Raises:
        UnknownClassError: if there is no such class in the table, and it is not trusted.
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
    """Return the names of classes anywhere in plain settings that are not known, but that a user may trust."""
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
    """Return True for a dotted name outside of this package and Python's own library."""
    return dotted(path) and path.partition(".")[0] not in {"ncsn", *sys.stdlib_module_names}


def imported(path: str, key: str) -> type:
    """Import what a trusted name leads to; the caller checks that it is a class.

    Raises:
        ValueError: if there is no such module, it cannot be imported, or it has no such name.
    """
    module, _, name = path.rpartition(".")
    try:
        found: type = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"{key}: {path} cannot be imported: {one_line(error)}") from error
        package = module.partition(".")[0]
        raise ValueError(
            f"{key}: {path} is trusted, but Python finds no {package}.py; put it beside the command, or its folder on "
            "PYTHONPATH"
        ) from error
    except Exception as error:  # of any kind, as the user's own module raises it
        raise ValueError(f"{key}: {path} cannot be imported: {one_line(error)}") from error
    return found


def dotted(path: object) -> TypeGuard[str]:
    """Return True for a short text of at least two ASCII identifiers with dots between them."""
    return (
        isinstance(path, str)
        and len(path) <= 200
        and re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", path, re.A) is not None
    )


def one_line(error: Exception) -> str:
    """Return the message of an error on one line."""
    return " ".join(str(error).split())


def shown(value: object) -> str:
    """Return the start of a value from a file on one line of ASCII, for an error; of a collection, its type alone."""
    if isinstance(value, str):
        text = ascii(value)
        return text if len(text) <= 80 else f"{text[:80]}..."
    if value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63):
        return repr(value)
    return f"a value of type {type(value).__name__}"
