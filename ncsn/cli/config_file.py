"""What is wrong with a configuration, as far as reading it shows: in a tenth of the time that importing torch takes.

The parser has the last word on settings; this knows which ones there are, from the sources alone, and where in the file
each of them stands.
"""

import ast
import difflib
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml
from yaml.nodes import MappingNode, Node, SequenceNode

__all__ = ["SECTIONS", "check_config"]

SECTIONS = {
    "name": None,
    "seed_everything": None,
    "ckpt_path": None,
    "config": None,
    "data": None,
    "model": "ncsn.training.module.ScoreModule",
    "trainer": "lightning.pytorch.trainer.trainer.Trainer",
    "samples": "ncsn.training.callbacks.SampleGrid",
    "quality": "ncsn.training.callbacks.SampleQuality",
    "ema": "ncsn.training.callbacks.EMA",
    "checkpoint": "ncsn.training.callbacks.Checkpoint",
}
"""The sections of a configuration, and the class that a section has the settings of."""
LARGEST = 1_000_000
CLASS = ("class_path", "init_args", "dict_kwargs")
PLAIN = {
    f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null")
}


def check_config(path: str | Path) -> None:
    """Refuse a configuration that is no YAML, or that has settings which do not exist.

    Raises:
        ValueError: in one line, with the file, the line and the setting.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"--config: there is no file {path}"
            if not path.is_dir()
            else f"--config: {path} is a folder"
        )
    if path.stat().st_size > LARGEST:
        raise ValueError(
            f"--config: {path} has {path.stat().st_size:,} bytes, and would be no configuration"
        )
    try:
        text = path.read_text("utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(root, MappingNode):
            raise ValueError(f"--config: {path} has no sections, such as `model: ...`")
        for wrong in mistakes(root, "", dict.fromkeys(SECTIONS, True), set()):
            raise ValueError(f"--config: {path}, {wrong}")
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(
            f"--config: {path}, line {line}: it is not YAML: {error.problem}"
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(
            f"--config: {path} is not a text of YAML ({' '.join(str(error).split())})"
        ) from error


def mistakes(
    node: Node, where: str, known: dict[str, bool] | None, seen: set[int]
) -> Iterator[str]:
    """What is wrong at a node of a configuration and below it, each as one line.

    Args:
        node: what stands there.
        where: its dotted name.
        known: the settings that there are, and whether each may be null; or None where that is not known here.
        seen: the nodes that were looked at: an alias of YAML leads to one of them again.
    """
    if id(node) in seen:
        return
    seen.add(id(node))
    if node.tag not in PLAIN:
        yield f"line {node.start_mark.line + 1}: {where or node.tag}: a value of the kind {node.tag} is not read"
    elif node.tag.endswith(":int") and len(node.value) > 18:
        yield f"line {node.start_mark.line + 1}: {where}: {node.value} is larger than any that makes sense"
    elif isinstance(node, SequenceNode):
        for value in node.value:
            yield from mistakes(value, where, None, seen)
    elif isinstance(node, MappingNode):
        named = {str(key.value): value for key, value in node.value}
        known = dict.fromkeys(CLASS, True) if "class_path" in named else known
        lines: dict[str, int] = {}
        for key, value in node.value:
            line, name = key.start_mark.line + 1, str(key.value)
            if name in lines:
                yield f"line {line}: {f'{where}.{name}'.strip('.')} is set a second time, after line {lines[name]}"
            lines[name] = line
            if known is not None and name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = (
                    f", did you mean {close[0]!r}?"
                    if close
                    else f"; it has {', '.join(sorted(known))}"
                )
                yield f"line {line}: {where or 'there'}: no setting {name!r}{hint}"
            if known and not known.get(name, True) and value.tag.endswith(":null"):
                yield f"line {line}: {f'{where}.{name}'.strip('.')}: null, and must have a value"
            of = (
                named["class_path"].value if name == "init_args" and "class_path" in named else None
            )
            of = of or (SECTIONS.get(name) if not where else None)
            if not where and SECTIONS.get(name) and not isinstance(value, MappingNode):
                yield f"line {line}: {name}: expected settings, got {value.value!r}"
            inside = where if name in CLASS else f"{where}.{name}".strip(".")
            yield from mistakes(value, inside, parameters(str(of)) if of else None, seen)


@cache
def parameters(path: str) -> dict[str, bool] | None:
    """The arguments of the class with an import path, read from its source, and whether each may be null.

    None where the source does not show them.
    """
    module, _, name = path.rpartition(".")
    for file in sources(module):
        for node in ast.parse(file.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                return arguments(node, module)
    return None


def sources(module: str) -> list[Path]:
    """The files in which the names of a module of this package, or of Lightning, are defined. Nothing is imported."""
    package, *parts = module.split(".")
    spec = importlib.util.find_spec(package) if package in ("ncsn", "lightning") else None
    if spec is None or spec.origin is None:
        return []
    base = Path(spec.origin).parent.joinpath(*parts)
    return (
        [base.with_suffix(".py")]
        if base.with_suffix(".py").is_file()
        else sorted(base.glob("*.py"))
    )


def arguments(node: ast.ClassDef, module: str) -> dict[str, bool] | None:
    """The arguments of a class: of its own `__init__`, or else its fields as a dataclass and those of its bases."""
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            taken = method.args
            every = (*taken.posonlyargs, *taken.args[1:], *taken.kwonlyargs)
            named = {argument.arg: may_be_null(argument.annotation) for argument in every}
            return None if taken.kwarg or taken.vararg else named
    fields: dict[str, bool] = {}
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id == "ABC":
            continue
        inherited = parameters(f"{module}.{base.id}") if isinstance(base, ast.Name) else None
        if inherited is None:
            return None
        fields |= inherited
    noted = [field for field in node.body if isinstance(field, ast.AnnAssign)]
    own = [field for field in noted if not ast.unparse(field.annotation).startswith("ClassVar")]
    targets = [(field.target, may_be_null(field.annotation)) for field in own]
    return fields | {target.id: null for target, null in targets if isinstance(target, ast.Name)}


def may_be_null(annotation: ast.expr | None) -> bool:
    """Whether a value of the annotated kind may be None."""
    return annotation is None or any(
        word in ast.unparse(annotation) for word in ("None", "Optional", "Any")
    )
