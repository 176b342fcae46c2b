"""Checks of a configuration file, which do not import torch."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from ncsn.model.names import did_you_mean
from ncsn.model.shipped import shipped_configs

__all__ = ["check_config", "check_number"]

MAX_VALUES = 10_000  # values in a configuration, with aliases expanded
PLAIN = [
    f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null")
]
NUMBERS = PLAIN[3:5]
# YAML 1.1 reads 010 as octal, 12:30 in base 60.
OTHER_NUMBER = re.compile(r"[-+]?(0[\d_]+|\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?)")


def check_number(option: str, value: str) -> None:
    """Refuse the value of an option that YAML would read as a number in base 60."""
    is_text = option.rpartition(".")[2] in ("--name", "max_time", "val_check_interval")
    if ":" in value and OTHER_NUMBER.fullmatch(value) and not is_text:
        raise ValueError(f"{option}: expected a number, got {value}")


def check_config(path: str | Path, option: str = "--config") -> None:
    """Check that a configuration is plain YAML and sets nothing twice."""
    file = f"{option}: {path}"
    if Path(path).is_dir():
        raise ValueError(f"{file} is a folder")
    if not Path(path).is_file():
        hint = did_you_mean(str(path), shipped_configs())
        raise ValueError(f"{option}: there is no file {path}{hint}")
    try:
        root = yaml.compose(Path(path).read_text("utf-8"), Loader=yaml.SafeLoader)
        if not isinstance(root, MappingNode):
            raise ValueError(f"{file} has no sections, such as `model: ...`")
        for count, node in enumerate(nodes(root)):
            where = f"{file}, {line_of(node.start_mark)}"
            if count == MAX_VALUES:
                raise ValueError(f"{where}: more than {MAX_VALUES:,} values")
            if node.tag in NUMBERS and OTHER_NUMBER.fullmatch(node.value):
                reason = "YAML reads it as another number; write that, or put it in quotes"
                raise ValueError(f"{where}: {node.value}, but {reason}")
            if node.tag not in PLAIN:
                kind = f"a value of the kind {node.tag} is not read"
                raise ValueError(f"{where}: {kind}; put it in quotes if it is text")
            names: set[str] = set()
            for key, _ in node.value if isinstance(node, MappingNode) else ():
                if key.value in names:
                    raise ValueError(f"{file}, {line_of(key.start_mark)}: {key.value} is set twice")
                names.add(key.value)
    except yaml.MarkedYAMLError as error:
        raise ValueError(
            f"{file}, {line_of(error.problem_mark)}: it is not YAML: {error.problem}"
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{file} is not a text of YAML ({error})") from error


def line_of(mark: Any) -> str:
    """Return the line of a mark of PyYAML, in words."""
    return f"line {mark.line + 1 if mark else 1}"


def nodes(node: Node) -> Iterator[Node]:
    """Yield a node and all nodes below it, once per alias."""
    yield node
    if isinstance(node, ScalarNode):
        return
    for value in node.value:
        for child in value if isinstance(value, tuple) else (value,):
            yield from nodes(child)
