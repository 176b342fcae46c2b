"""Checks of a configuration file, which do not import torch."""

from collections.abc import Iterator
from pathlib import Path

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

__all__ = ["check_config"]

MAX_VALUES = 10_000  # values in a configuration, with aliases expanded
PLAIN = [
    f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null")
]


def check_config(path: str | Path) -> None:
    """Check that a configuration is plain YAML and sets nothing twice.

    Raises:
        ValueError: if it is not; the message gives the file and the line.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"--config: {path} is a folder"
            if path.is_dir()
            else f"--config: there is no file {path}"
        )
    try:
        root = yaml.compose(path.read_text("utf-8"), Loader=yaml.SafeLoader)
        if not isinstance(root, MappingNode):
            raise ValueError(f"--config: {path} has no sections, such as `model: ...`")
        for count, node in enumerate(nodes(root)):
            where = f"--config: {path}, line {node.start_mark.line + 1}"
            if count == MAX_VALUES:
                raise ValueError(f"{where}: more than {MAX_VALUES:,} values")
            if node.tag not in PLAIN:
                raise ValueError(f"{where}: a value of the kind {node.tag} is not read")
            names: set[str] = set()
            for key, _ in node.value if isinstance(node, MappingNode) else ():
                if key.value in names:
                    line = key.start_mark.line + 1
                    raise ValueError(f"--config: {path}, line {line}: {key.value} is set twice")
                names.add(key.value)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = f"line {line}: it is not YAML: {error.problem}"
        raise ValueError(f"--config: {path}, {problem}") from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--config: {path} is not a text of YAML ({reason})") from error


def nodes(node: Node) -> Iterator[Node]:
    """Yield a node and all nodes below it, once per alias."""
    yield node
    if isinstance(node, ScalarNode):
        return
    for value in node.value:
        for child in value if isinstance(value, tuple) else (value,):
            yield from nodes(child)
