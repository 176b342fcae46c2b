"""Configurations made at random, right and wrong: an experiment of `tests/reliability.py`."""

import contextlib
import io
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from runs import CONFIG, REPOSITORY

from ncsn.cli import train

NUMBERS = [0, 1, -1, 2, 3, 0.1, 1e-4, 1e4, 10**9, 2**64, -(2**63), float("nan"), float("inf"), 1.7]
OTHERS = ["abc", "", None, True, False, [], [1, 2], {}, {"a": 1}, "1e-4", "auto", "ncsn.score.EDMDenoiser", "\u2603"]
DICE = random.Random(0)
"""Of this module alone: a run seeds the ones that all share."""


def leaves(settings: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths to all values in nested settings, and to the sections themselves."""
    found = [path] if path else []
    if isinstance(settings, dict):
        for key, value in settings.items():
            found += leaves(value, (*path, key))
    return found


def altered(settings: dict[str, Any]) -> tuple[str, ...]:
    """Change one setting, at random: another value, another name, or none at all. Its path."""
    path = DICE.choice(leaves(settings))
    inside = settings
    for key in path[:-1]:
        inside = inside[key]
    kind = DICE.random()
    if kind < 0.75:
        inside[path[-1]] = DICE.choice(NUMBERS + OTHERS)
    elif kind < 0.9:
        inside[path[-1] + DICE.choice("sx")] = inside.pop(path[-1])
    else:
        del inside[path[-1]]
    return path


def outcome(call: Callable[[], object]) -> tuple[int, str]:
    """The exit status of a call and what it wrote to standard error."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            call()
        except SystemExit as stop:
            return int(stop.code or 0), said.getvalue()
    return 0, said.getvalue()


def configurations(folder: Path, count: int) -> str:
    """Configurations with one to three random changes: each runs a step, or exits with 2 in one line.

    One in a hundred goes through the real command line.
    """
    DICE.seed(random.random())
    ran = refused = 0
    before = Path.cwd()
    os.chdir(folder)
    for i in range(count):
        settings = yaml.safe_load(CONFIG)
        changes = [altered(settings) for _ in range(DICE.choice([1, 1, 1, 2, 3]))]
        Path("run.yaml").write_text(yaml.safe_dump(settings))
        arguments = ["--config", "run.yaml", "--name", f"run{i}"] if ("name",) not in changes else ["--config=run.yaml"]
        arguments += ["--trainer.max_steps", "1"]  # some would train for ever, and rightly so
        if i % 100 == 99:
            command = [sys.executable, str(REPOSITORY / "train.py"), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=100)
            status, said = done.returncode, done.stderr
        else:
            sys.argv = ["train.py", *arguments]
            status, said = outcome(train)
        about = f"{changes} {settings}: {said}"
        assert status in (0, 2), about
        assert "Traceback" not in said, about
        if status:
            lines = [line for line in said.splitlines() if line.startswith("error: ")]
            assert len(lines) == 1, about
            assert any(part in lines[0] for change in changes for part in change), about
        ran, refused = ran + (status == 0), refused + (status == 2)
    os.chdir(before)
    return f"{count} configurations: {ran} ran, {refused} exited with 2 naming the setting; 0 tracebacks"
