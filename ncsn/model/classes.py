"""The classes that a file may name: those of this package, and trusted ones."""

import json
import re
import reprlib
import sys
from collections.abc import Collection
from functools import cache
from importlib import import_module
from inspect import isabstract
from pathlib import Path
from typing import Any

__all__ = [
    "ALL_ROOMS",
    "UnknownClassError",
    "class_named",
    "class_paths",
    "classes",
    "dotted",
    "is_class",
    "name_of",
    "shown",
    "trust_hint",
]

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
    "ncsn.score.densities": "ncsn.densities",
    "ncsn.score.toys": "ncsn.toys",
    "ncsn.training.optimisers": "ncsn.optim",
}
MOST_NAMED = 20  # classes in one message
SHORT = reprlib.Repr()
SHORT.maxstring, SHORT.maxlevel = 80, 2


class UnknownClassError(ValueError):
    """A class that may be the user's, but is not trusted."""


@cache
def classes(rooms: tuple[str, ...] = ROOMS) -> dict[str, type]:
    """Return the public concrete classes of some modules, by all their dotted names."""
    found: dict[str, type] = {}
    for room in map(import_module, rooms):
        for name in room.__all__:
            made = getattr(room, name)
            if isinstance(made, type) and not isabstract(made):
                home = made.__module__
                for module in ("ncsn", room.__name__, home, RENAMED.get(home, home)):
                    found[f"{module}.{name}"] = made
    return found


def class_named(path: str, kinds: tuple[type, ...], key: str, trust: Collection[str]) -> type:
    """Return the class with a dotted name, a subclass of one of the kinds.

    Only names in `trust` are imported; `key` is the setting, for the message.
    """
    table = classes() if path in classes() else classes(ALL_ROOMS)
    if path in table:
        found = table[path]
    elif is_trusted(path, trust):
        found = imported(path, key)
    else:
        error = UnknownClassError if may_be_trusted(path) else ValueError
        raise error(f"{key}: {shown(path)[1:-1]} is not a class of this package")
    if not (isinstance(found, type) and issubclass(found, kinds)):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{key}: {path} is not a subclass of {expected}")
    return found


def trust_hint(settings: object, trust: Collection[str]) -> str:
    """Return the option that allows the unknown classes in settings that JSON can hold."""
    named = class_paths(settings)
    unknown = [path for path in named if may_be_trusted(path) and not is_trusted(path, trust)]
    names = [path for path in unknown if path not in classes(ALL_ROOMS)][:MOST_NAMED]
    option = f"--trust {','.join(names)} (in Python, trust={json.dumps(names)})"
    return f"; if it is yours and you trust it: {option}"


def class_paths(settings: object) -> list[str]:
    """Return the names of the classes in settings that JSON can hold, each once."""
    return list(dict.fromkeys(re.findall('"class_path": "([^"]+)"', json.dumps(settings))))


def name_of(made: type) -> str:
    """Return the dotted name of a class, by which `class_named` finds it."""
    public = [path for path, found in classes().items() if found is made]
    module = main_module() if made.__module__ == "__main__" else made.__module__
    return public[1] if public else f"{module}.{made.__qualname__}"


def main_module() -> str:
    """Return the name by which other programs import the script that is run."""
    main: Any = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    return main.__spec__.name if main.__spec__ else Path(file).stem if file else "__main__"


def is_trusted(path: str, trust: Collection[str]) -> bool:
    """Return True if a name is in `trust`, which may be a single name."""
    return path in ([trust] if isinstance(trust, str) else trust)


def may_be_trusted(path: str) -> bool:
    """Return True for a dotted name outside this package and Python's library."""
    return dotted(path) and path.partition(".")[0] not in {"ncsn", *sys.stdlib_module_names}


def imported(path: str, key: str) -> type:
    """Import the object with a trusted name; the caller checks that it is a class."""
    module, _, name = path.rpartition(".")
    if module == main_module() and hasattr(sys.modules["__main__"], name):
        module = "__main__"  # it would run twice
    try:
        found: type = getattr(import_module(module), name)
    except Exception as error:  # the user's module may raise anything
        missing = isinstance(error, ModuleNotFoundError)
        hint = "; put it next to the command, or its folder on PYTHONPATH" if missing else ""
        raise ValueError(f"{key}: {path} cannot be imported: {error}{hint}") from error
    return found


def is_class(settings: Any) -> bool:
    """Return True for a class and its arguments, and nothing else."""
    return (
        isinstance(settings, dict)
        and settings.keys() <= {"class_path", "init_args"}
        and isinstance(settings.get("class_path"), str)
        and isinstance(settings.get("init_args", {}), dict)
    )


def dotted(path: object) -> bool:
    """Return True for a short string of two or more ASCII identifiers with dots."""
    return (
        isinstance(path, str)
        and len(path) <= 200
        and re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", path, re.A) is not None
    )


shown = SHORT.repr  # a value in a message: its start, if it is long
