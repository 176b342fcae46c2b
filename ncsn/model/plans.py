"""Plans: settings of a file, checked against the classes they name before building.

Settings are plain values: None, bool, int, float, str, and lists and tuples of these.
`{class_path, init_args}` may stand for an argument whose declared type is one of our
kinds, such as `network: nn.Module`. An argument of another type, such as Callable,
takes nothing from a file. The training command writes defaults into the file, as text
if they are not plain, so such a value is left out.
"""

import re
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from inspect import Parameter, formatannotation, signature
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import nn

from ncsn.model.classes import class_named, is_class, shown
from ncsn.noise import NoiseSchedule
from ncsn.objectives import Corruption, Objective
from ncsn.samplers import Sampler
from ncsn.score.densities import Density

__all__ = ["Names", "Plan", "build", "declared_argument", "fitted", "plan_arguments", "plan_class"]

# The base classes of the parts of a model.
KINDS = (nn.Module, NoiseSchedule, Objective, Corruption, Density, Sampler)
MAX_VALUES = 10_000  # values in the settings of a file, or in a list of them
MAX_TEXT = 4096  # characters
VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
Names = Collection[str]


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


def plan_class(
    settings: Any, kinds: tuple[type, ...], key: str, trust: Names, given: Names = ()
) -> Plan:
    """Plan an object from `{class_path, init_args}`, of a subclass of one of the kinds.

    Classes in `trust` are the user's own, and the file must not have the arguments
    `given`. `key` is the setting, for the message.
    """
    if not is_class(settings):
        raise ValueError(f"{key}: expected class_path and init_args, got {shown(settings)}")
    made = class_named(settings["class_path"], kinds, key, trust)
    arguments = settings.get("init_args", {})
    return Plan(made, plan_arguments(made, arguments, key, trust, given))


def plan_arguments(
    made: type, settings: dict[str, Any], key: str, trust: Names, given: Names = ()
) -> dict[str, Any]:
    """Plan the arguments of a class, as `plan_class`; `key` is empty for the model."""
    try:
        signature(made).bind(**dict.fromkeys(given), **settings)
    except TypeError as error:  # an argument is missing, unknown or given elsewhere
        raise ValueError(f"{key or 'model'}: {made.__name__}: {error}") from error
    planned = {}
    for name, value in settings.items():
        declared, default = declared_argument(made, name)
        if not stands_for(value, default):
            planned[name] = fitted(value, declared, f"{key}.{name}".lstrip("."), trust)
    return planned


def declared_argument(made: type, name: str) -> tuple[Any, Any]:
    """Return the type and default of an argument, from the first class that names it.

    They are `Any` and `Parameter.empty` if there are none.
    """
    for owner in made.__mro__:
        initialiser: Any = owner.__init__  # type: ignore[misc]
        parameter = signature(initialiser).parameters.get(name)
        if parameter is not None and parameter.kind not in VARIADIC:
            return get_type_hints(initialiser).get(name, Any), parameter.default
    return Any, Parameter.empty


def stands_for(value: object, default: object) -> bool:
    """Return True if the training command writes this default as this value."""
    if value is None or isinstance(value, (dict, list)):
        return type(default) is type(value) and value == default
    plain = isinstance(default, (NoneType, bool, int, float, str))
    if not isinstance(value, str) or plain or default is Parameter.empty:
        return False
    module, _, name = value.rpartition(".")
    qualified = f"{getattr(default, '__module__', '')}.{getattr(default, '__qualname__', '')}"
    return (
        value in (str(default), getattr(default, "name", None), qualified)
        or value.startswith("Unable to serialize instance ")  # from jsonargparse
        or vars(sys.modules.get(module, object)).get(name) is default
    )


def fitted(value: Any, declared: Any, key: str, trust: Names) -> Any:
    """Return a plain value of the declared type; a list becomes a declared tuple.

    Raises:
        ValueError: if it is of another type, or describes an invalid object.
    """
    union = get_origin(declared) in (Union, UnionType)
    options = get_args(declared) if union else (declared,)
    if isinstance(value, dict) and (kinds := tuple(filter(is_kind, options))):
        return plan_class(value, kinds, key, trust)
    for option in options:
        with suppress(MisfitError):
            return of_type(value, option, key, trust)
    readable = re.sub(r"(\w+\.)+", "", formatannotation(declared))
    expected = "a plain value" if Any in options else readable
    raise MisfitError(
        f"{key}: expected {expected}, got {shown(value)}; only plain values are read from a file"
    )


def is_kind(declared: Any) -> bool:
    """Return True for a class of one of our kinds, which a file may describe."""
    plain = get_origin(declared) is None and isinstance(declared, type)
    return plain and issubclass(declared, KINDS)


def of_type(value: Any, declared: Any, key: str, trust: Names) -> Any:
    """Return a value of one declared type, as `fitted` does for unions."""
    kind, types = get_origin(declared) or declared, get_args(declared)
    if isinstance(value, (list, tuple)) and kind in (list, tuple, Sequence, Any):
        if kind is not tuple or not types or types[-1] is ...:
            types = (types or (Any,))[:1] * len(value)
        if len(types) != len(value) or len(value) > MAX_VALUES:
            raise MisfitError
        elements = [fitted(one, inner, key, trust) for one, inner in zip(value, types, strict=True)]
        return (kind if kind in (list, tuple) else type(value))(elements)
    if kind is Literal:
        fits = any(type(value) is type(one) and value == one for one in types)
    else:
        same = type(value) is declared or (declared is float and type(value) is int)
        fits = is_plain(value) and (same or declared is Any or value is declared)
    if not fits:
        raise MisfitError
    return value


def is_plain(value: object) -> bool:
    """Return True for None, a short text, or a number of at most 64 bits."""
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or isinstance(value, float)
