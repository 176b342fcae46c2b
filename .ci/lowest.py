"""Print pip constraints that hold every dependency at the lowest version pyproject.toml allows."""

import re
import sys
from pathlib import Path

import tomllib

if __name__ == "__main__":
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    for dependency in (*project["dependencies"], *project["optional-dependencies"]["test"]):
        name, version, marker = re.fullmatch(
            r"([\w-]+)(?:\[.*\])?>=([\d.]+)[^;]*(;.*)?", dependency
        ).groups()
        # Checks of the code itself are run once, with the newest.
        if name not in ("ruff", "mypy"):
            sys.stdout.write(f"{name}=={version}{marker or ''}\n")
