"""Plans: settings of a file, checked against the classes they name before building.

Settings are plain values: None, bool, int, float, str, and lists and tuples of these.
`{class_path, init_args}` may stand for an argument whose declared type is one of our
kinds, such as `network: nn.Module`. An argument of another type, such as Callable,
takes nothing from a file. The training command writes defaults into the file, as text
if they are not plain, so such a value is left out.
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

from ncsn.model.classes import KINDS, class_named, shown

__all__ = [
    "VARIADIC",
    "Plan",
    "build",
    "check_plain",
    "declared_argument",
    "fitted",
    "plan_arguments",
    "plan_class",
]

MAX_VALUES = 10_000  # values in the settings of a file, nested ones included
MAX_DEPTH = 32  # levels of nesting
MAX_TEXT = 4096  # characters
UNDECLARED = object()  # the type of an argument without a type hint: any plain value
VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Plan:
    """A class and its keyword arguments, some of which may be plans."""

    made: type
    arguments: dict[str, Any]


class MisfitError(ValueError):
    """A value that is not of the declared type."""


def build(planned: Any) -> Any:
    """Return the object that a plan describes, or any other value as it is."""
    if isinstance(planned, Plan):
        return planned.made(**{name: build(value) for name, value in planned.arguments.items()})
    if isinstance(planned, (list, tuple)):
        return type(planned)([build(value) for value in planned])
    return planned


def check_plain(settings: object, key: str) -> None:
    """Check that settings are plain values and not too many; `key` is for the message.

    Raises:
        ValueError: at the first such value.
    """
    left, seen = [(settings, 0)], 0
    while left:
        value, depth = left.pop()
        seen += 1
        if isinstance(value, (dict, list, tuple)):
            if seen + len(value) > MAX_VALUES or depth == MAX_DEPTH:
                raise ValueError(
                    f"{key}: more than {MAX_VALUES:,} values, or nested more than {MAX_DEPTH} deep"
                )
            if isinstance(value, dict) and not all(isinstance(name, str) for name in value):
                raise ValueError(f"{key}: a key that is not a text")
            inner = value.values() if isinstance(value, dict) else value
            left += [(one, depth + 1) for one in inner]
        elif isinstance(value, str):
            if len(value) > MAX_TEXT:
                raise ValueError(f"{key}: a text of more than {MAX_TEXT:,} characters")
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
        settings: plain values from a file.
        kinds: the base classes of which the class must be a subclass.
        key: the setting, for the message.
        trust: the names of the user's own classes.
        given_elsewhere: arguments that the file must not have.

    Raises:
        ValueError: if the settings name no such class, or do not fit its signature.
    """
    keys = settings.keys() if isinstance(settings, dict) else set()
    if not isinstance(settings, dict) or not {"class_path"} <= keys <= {"class_path", "init_args"}:
        got = sorted(map(shown, keys)) if isinstance(settings, dict) else shown(settings)
        raise ValueError(f"{key}: expected class_path and init_args, got {str(got)[:200]}")
    path, arguments = settings["class_path"], settings.get("init_args", {})
    if not isinstance(path, str) or not isinstance(arguments, dict):
        raise ValueError(f"{key}: expected a text as class_path and a dictionary as init_args")
    made = class_named(path, kinds, key, trust)
    return Plan(made, plan_arguments(made, arguments, key, trust, given_elsewhere))


def plan_arguments(
    made: type,
    settings: Mapping[str, Any],
    key: str,
    trust: Collection[str],
    given_elsewhere: Collection[str] = (),
) -> dict[str, Any]:
    """Plan the arguments of a class, as `plan_class`; `key` is empty for the model.

    Raises:
        ValueError: if an argument is missing, unknown, or not of its declared type.
    """
    owner = f"{key or 'model'}: {made.__name__}"
    accepted = signature(made).parameters.values()
    named = {parameter.name: parameter for parameter in accepted if parameter.kind not in VARIADIC}
    takes_more = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in accepted)
    planned = {}
    for name, value in settings.items():
        if name in given_elsewhere or not (name in named or (takes_more and name.isidentifier())):
            raise ValueError(f"{owner} takes no {shown(name)} from a file")
        declared, default = declared_argument(made, name)
        if not stands_for(value, default):
            planned[name] = fitted(value, declared, f"{key}.{name}".lstrip("."), trust)
    needed = [name for name in named if named[name].default is Parameter.empty]
    for name in needed:
        if name not in settings and name not in given_elsewhere:
            raise ValueError(f"{owner} needs {name}, which is missing")
    return planned


def declared_argument(made: type, name: str) -> tuple[Any, Any]:
    """Return the type and default of an argument, from the first class that names it.

    The type may be `UNDECLARED`, and the default `Parameter.empty`.
    """
    for owner in made.__mro__:
        initialiser: Any = owner.__init__  # type: ignore[misc]
        parameter = signature(initialiser).parameters.get(name)
        if parameter is not None and parameter.kind not in VARIADIC:
            return get_type_hints(initialiser).get(name, UNDECLARED), parameter.default
    return UNDECLARED, Parameter.empty


def stands_for(value: object, default: object) -> bool:
    """Return True if the training command writes this default as this value."""
    if value is None or isinstance(value, (dict, list)):
        return type(default) is type(value) and value == default
    plain = isinstance(default, (NoneType, bool, int, float, str))
    if not isinstance(value, str) or plain or default is Parameter.empty:
        return False
    if value.startswith("Unable to serialize instance "):  # from jsonargparse
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
    """Return a plain value of the declared type; a list becomes a declared tuple.

    Raises:
        ValueError: if it is of another type, or describes an invalid object.
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
    readable = re.sub(r"(\w+\.)+", "", formatannotation(declared))
    expected = "a plain value" if UNDECLARED in options else readable
    raise MisfitError(
        f"{key}: expected {expected}, got {shown(value)}; only plain values are read from a file"
    )


def is_kind(declared: Any) -> bool:
    """Return True for a class of one of our kinds, which a file may describe."""
    plain = get_origin(declared) is None and isinstance(declared, type)
    return plain and issubclass(declared, KINDS)


def of_type(value: Any, declared: Any, key: str, trust: Collection[str]) -> Any:
    """Return a value of one declared type, as `fitted` does for unions."""
    origin = get_origin(declared) or declared
    if isinstance(value, (list, tuple)):
        if declared is UNDECLARED:
            return type(value)([of_type(one, UNDECLARED, key, trust) for one in value])
        if origin in (list, tuple, Sequence):
            types = element_types(declared, value, key)
            elements = [
                fitted(one, inner, key, trust) for one, inner in zip(value, types, strict=True)
            ]
            keeps_list = origin is list or (origin is Sequence and isinstance(value, list))
            return elements if keeps_list else tuple(elements)
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
    """Return the declared type of each element of a list or tuple."""
    arguments = get_args(declared)
    if not arguments:
        return [UNDECLARED] * len(value)
    if get_origin(declared) is tuple and arguments[-1:] != (Ellipsis,):
        if len(arguments) != len(value):
            raise MisfitError(f"{key}: {len(value)} values in place of {len(arguments)}")
        return arguments
    return [arguments[0]] * len(value)
