"""Score-based generative models: noise schedule, score, objective, sampler.

The public names are those in `__init__.pyi`. They are resolved when they are first used, so that the theory needs torch
alone, and the commands start at once.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

_HOME = {
    alias.name: statement.module
    for statement in ast.parse(Path(__file__).with_suffix(".pyi").read_text("utf-8")).body
    if isinstance(statement, ast.ImportFrom)
    for alias in statement.names
}

__all__ = [name for name, home in _HOME.items() if home != "ncsn"]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'ncsn' has no attribute {name!r}")
    return import_module(f"ncsn.{name}") if home == "ncsn" else getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
