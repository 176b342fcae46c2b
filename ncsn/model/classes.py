"""The classes that a file may name: those of this package, in a table, and those of the user's that the user names."""

import json
import re
import sys
from collections.abc import Collection
from importlib import import_module
from inspect import isabstract
from typing import TypeGuard

import torch
from torch import nn
from torch.optim import Optimizer

import ncsn.data
import ncsn.networks
import ncsn.noise
import ncsn.objectives
import ncsn.samplers
import ncsn.score
import ncsn.score.densities
import ncsn.score.toys
import ncsn.training.optimisers
from ncsn.data import DataModule
from ncsn.noise import NoiseSchedule
from ncsn.objectives import Corruption, Objective
from ncsn.samplers import Sampler
from ncsn.score.densities import Density

__all__ = [
    "CLASSES",
    "KINDS",
    "UnknownClassError",
    "class_named",
    "dotted",
    "one_line",
    "shown",
    "unknown_classes",
]

KINDS = (nn.Module, NoiseSchedule, Objective, Corruption, Density, Sampler, DataModule, Optimizer)
"""The base classes of what a file may describe; a `ScoreModel` is an `nn.Module`."""

MOST_NAMED = 20
"""Classes that one refusal names."""

ROOMS = (
    ncsn.data,
    ncsn.score.densities,
    ncsn.networks,
    ncsn.noise,
    ncsn.objectives,
    ncsn.training.optimisers,
    ncsn.samplers,
    ncsn.score,
    ncsn.score.toys,
)
"""The modules whose public classes a file may name."""


RENAMED = {
    "ncsn.score.denoisers": "ncsn.score",
    "ncsn.score.energy": "ncsn.score",
    "ncsn.score.densities": "ncsn.densities",
    "ncsn.score.toys": "ncsn.toys",
    "ncsn.training.optimisers": "ncsn.optim",
}
"""The modules of today, and what they were called in files of earlier versions."""


def public_classes() -> dict[str, type]:
    """Return the public concrete classes of our kinds, and torch's optimisers, under each dotted name they have."""
    classes: dict[str, type] = {}
    for room in ROOMS:
        public = {name: getattr(room, name) for name in room.__all__}
        for name, found in public.items():
            if isinstance(found, type) and issubclass(found, KINDS) and not isabstract(found):
                names = (
                    "ncsn",
                    room.__name__,
                    found.__module__,
                    RENAMED.get(found.__module__, "ncsn"),
                )
                classes |= {f"{module}.{name}": found for module in names}
    for name, found in vars(torch.optim).items():
        if isinstance(found, type) and issubclass(found, Optimizer) and found is not Optimizer:
            classes |= {f"{module}.{name}": found for module in ("torch.optim", found.__module__)}
    return classes


CLASSES = public_classes()


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
    if path in CLASSES:
        found = CLASSES[path]
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
                and path not in CLASSES
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
