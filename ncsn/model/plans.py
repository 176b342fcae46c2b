"""Plans: settings of a file, checked against the signatures of the classes that they name, before anything is built.

Settings are plain values: None, bool, int, float, str, and lists and tuples of these. `{class_path, init_args}` may
stand where a signature asks for one of our kinds, as `network: nn.Module` does, and names a class of that kind. Any
other declared type, such as Callable, Tensor or Path, takes nothing from a file; but the training command writes
defaults into the file, as text if they are not plain, so that a value that stands for the default is left out.
"""

import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from inspect import Parameter, formatannotation, signature
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ncsn.model.classes import KINDS, class_named, renewed, shown

__all__ = [
    "VARIADIC",
    "Plan",
    "build",
    "check_plain",
    "declared_argument",
    "fitted",
    "plan_arguments",
    "plan_class",
    "stands_for",
]

MOST_VALUES = 10_000
"""Values in the settings of a file, nested ones counted."""
DEEPEST = 32
"""Levels of nesting in the settings of a file."""
LONGEST = 4096
"""Characters of a text."""
UNDECLARED = object()
"""The type of an argument that the signature says nothing about: it takes any plain value."""
VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Plan:
    """A class, and the keyword arguments that it is to be called with, some of which may be plans."""

    made: type
    arguments: dict[str, Any]


class MisfitError(ValueError):
    """A value that is not of the declared type."""


def build(planned: Any) -> Any:
    """Build what a plan describes; return any other value as it is, with the plans in lists and tuples built."""
    if isinstance(planned, Plan):
        return planned.made(**{name: build(value) for name, value in planned.arguments.items()})
    if isinstance(planned, (list, tuple)):
        return type(planned)([build(value) for value in planned])
    return planned


def check_plain(settings: object, key: str) -> None:
    """Refuse settings that are not plain values in lists, tuples and dictionaries, or are too many.

    Raises:
        ValueError: with the key.
    """
    left, seen = [(settings, 0)], 0
    while left:
        value, depth = left.pop()
        seen += 1
        if isinstance(value, (dict, list, tuple)):
            if seen + len(value) > MOST_VALUES or depth == DEEPEST:
                raise ValueError(
                    f"{key}: more than {MOST_VALUES:,} values, or nested more than {DEEPEST} deep"
                )
            names = value if isinstance(value, dict) else ()
            if not all(isinstance(name, str) for name in names):
                raise ValueError(f"{key}: a key that is not a text")
            inner = value.values() if isinstance(value, dict) else value
            left += [(one, depth + 1) for one in inner]
        elif isinstance(value, str):
            if len(value) > LONGEST:
                raise ValueError(
                    f"{key}: a text of {len(value):,} characters, and at most {LONGEST:,} are read"
                )
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise ValueError(f"{key}: an integer of more than 64 bits")
        elif not isinstance(value, (float, NoneType)):
            raise ValueError(f"{key}: {shown(value)}, which is not a plain value")


def plan_class(
    settings: object,
    kinds: tuple[type, ...],
    key: str,
    trust: Collection[str],
    given_elsewhere: Collection[str] = (),
) -> Plan:
    """Plan an object from `{class_path, init_args}`.

    Args:
        settings: what a file has, plain values.
        kinds: the base classes of which the class must be a subclass.
        key: the setting, for the error.
        trust: the names of the user's own classes.
        given_elsewhere: arguments that the file must not have.

    Raises:
        ValueError: if they name no such class, or do not fit its signature.
    """
    if not isinstance(settings, dict) or not {"class_path"} <= settings.keys() <= {
        "class_path",
        "init_args",
    }:
        got = sorted(map(shown, settings)) if isinstance(settings, dict) else shown(settings)
        raise ValueError(f"{key}: expected class_path and init_args, got {str(got)[:200]}")
    path, arguments = settings["class_path"], settings.get("init_args", {})
    if not isinstance(path, str) or not isinstance(arguments, dict):
        raise ValueError(f"{key}: expected a text as class_path and a dictionary as init_args")
    path, arguments = renewed(path, arguments)
    made = class_named(path, kinds, key, trust)
    return Plan(made, plan_arguments(made, arguments, key, trust, given_elsewhere))


def plan_arguments(
    made: type,
    settings: Mapping[str, Any],
    key: str,
    trust: Collection[str],
    given_elsewhere: Collection[str] = (),
) -> dict[str, Any]:
    """Plan the arguments of a class.

    Args:
        made: the class.
        settings: what a file has, plain values.
        key: the setting that the arguments are of, for the error; empty for the model itself.
        trust: the names of the user's own classes.
        given_elsewhere: arguments that the file must not have.

    Raises:
        ValueError: if an argument is missing, not known, or not of its declared type.
    """
    accepted = signature(made).parameters.values()
    named = {parameter.name: parameter for parameter in accepted if parameter.kind not in VARIADIC}
    takes_more = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in accepted)
    planned = {}
    for name, value in settings.items():
        if name in given_elsewhere or not (name in named or (takes_more and name.isidentifier())):
            raise ValueError(
                f"{key or 'model'}: {made.__name__} takes no {shown(name)} from a file"
            )
        declared, default = declared_argument(made, name)
        if not stands_for(value, default):
            planned[name] = fitted(value, declared, f"{key}.{name}".lstrip("."), trust)
    for name, parameter in named.items():
        if (
            parameter.default is Parameter.empty
            and name not in settings
            and name not in given_elsewhere
        ):
            raise ValueError(f"{key or 'model'}: {made.__name__} needs {name}, which is missing")
    return planned


def declared_argument(made: type, name: str) -> tuple[Any, Any]:
    """Return the type and default of an argument, of a base class if only that one names it.

    The type may be `UNDECLARED`, and the default `Parameter.empty`.
    """
    for owner in made.__mro__:
        initialiser: Any = owner.__init__  # type: ignore[misc]
        parameter = signature(initialiser).parameters.get(name)
        if parameter is not None and parameter.kind not in VARIADIC:
            return get_type_hints(initialiser).get(name, UNDECLARED), parameter.default
    return UNDECLARED, Parameter.empty


def stands_for(value: object, default: object) -> bool:
    """Return True if the training command writes this default as this value. Nothing is imported to find out."""
    if value is None or isinstance(value, (dict, list)):
        return type(default) is type(value) and value == default
    if (
        not isinstance(value, str)
        or isinstance(default, (NoneType, bool, int, float, str))
        or default is Parameter.empty
    ):
        return False
    if value.startswith(
        "Unable to serialize instance "
    ):  # what jsonargparse writes of any other object
        return True
    module, _, name = value.rpartition(".")
    if module in sys.modules and vars(sys.modules[module]).get(name) is default:
        return True
    if isinstance(default, Enum):
        return value == default.name
    if isinstance(default, PurePath):
        return value == str(default)
    return value == f"{getattr(default, '__module__', '')}.{getattr(default, '__qualname__', '')}"


def fitted(value: Any, declared: Any, key: str, trust: Collection[str]) -> Any:
    """Return a plain value if it is of the declared type: as it is, except that a list becomes a declared tuple.

    Raises:
        ValueError: if it is not, or describes an object that is refused.
    """
    options = get_args(declared) if get_origin(declared) in (Union, UnionType) else (declared,)
    options = tuple(UNDECLARED if option is Any else option for option in options)
    kinds = tuple(option for option in options if is_kind(option))
    if kinds and isinstance(value, dict):
        return plan_class(value, kinds, key, trust)
    for option in options:
        try:
            return of_type(value, option, key, trust)
        except MisfitError:
            continue
    expected = (
        "a plain value"
        if UNDECLARED in options
        else re.sub(r"(\w+\.)+", "", formatannotation(declared))
    )
    raise MisfitError(
        f"{key}: expected {expected}, got {shown(value)}; only plain values are read from a file"
    )


def is_kind(declared: Any) -> bool:
    """Return True for a class of one of our kinds, whose objects a file may describe."""
    return (
        get_origin(declared) is None and isinstance(declared, type) and issubclass(declared, KINDS)
    )


def of_type(value: Any, declared: Any, key: str, trust: Collection[str]) -> Any:
    """Return a value of one declared type, as `fitted` does for unions.

    Raises:
        MisfitError: if it is not of that type, or a file can have no value of it.
    """
    origin = get_origin(declared) or declared
    if isinstance(value, (list, tuple)):
        if declared is UNDECLARED:
            return type(value)([of_type(one, UNDECLARED, key, trust) for one in value])
        if origin in (list, tuple, Sequence):
            elements = [
                fitted(one, inner, key, trust)
                for one, inner in zip(value, element_types(declared, value, key), strict=True)
            ]
            return (
                elements
                if origin is list or (origin is Sequence and isinstance(value, list))
                else tuple(elements)
            )
    elif (
        (declared is UNDECLARED and not isinstance(value, dict))
        or (
            origin is Literal
            and any(type(value) is type(one) and value == one for one in get_args(declared))
        )
        or (declared in (None, NoneType) and value is None)
        or (declared in (bool, int, float, str) and type(value) is declared)
        or (declared is float and type(value) is int)
    ):
        return value
    raise MisfitError(f"{key}: a value of another type")


def element_types(declared: Any, value: Sequence[Any], key: str) -> Sequence[Any]:
    """Return the declared type of each element of a list or tuple.

    Raises:
        MisfitError: if a tuple of another length is declared.
    """
    arguments = get_args(declared)
    if not arguments:
        return [UNDECLARED] * len(value)
    if get_origin(declared) is tuple and arguments[-1:] != (Ellipsis,):
        if len(arguments) != len(value):
            raise MisfitError(f"{key}: {len(value)} values in place of {len(arguments)}")
        return arguments
    return [arguments[0]] * len(value)
