"""Configurations made at random, right and wrong: an experiment of `tests/reliability.py`."""

import contextlib
import io
import os
import random
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from ncsn.cli.main import train

from runs import CONFIG, REPOSITORY

NUMBERS = [0, 1, -1, 2, 3, 0.1, 1e-4, 1e4, 10**9, 2**64, -(2**63), float("nan"), float("inf"), 1.7]
OTHERS = ["abc", "", None, True, False, [], [1, 2], {}, {"a": 1}, "1e-4", "auto", "nan", "ncsn.score.EDMDenoiser", ".."]
OTHERS += ["\u2603"]
VALUES = st.sampled_from(NUMBERS + OTHERS) | st.integers(-3, 12) | st.floats() | st.text(max_size=6)
MORE = {
    "data": {"init_args": {"labels": False}},
    "model": {"cooldown": 0, "label_dropout": 0.1},
    "trainer": {"precision": "32-true", "gradient_clip_val": 1.0, "accumulate_grad_batches": 1, "max_epochs": 1},
    "quality": {"features": None, "count": 500, "levels": 20},
}
"""What the configuration of the other experiments leaves to the defaults."""


def leaves(config: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths to all values in nested settings, and to the sections themselves."""
    found = [path] if path else []
    if isinstance(config, dict):
        for key, value in config.items():
            found += leaves(value, (*path, key))
    return found


def merged(config: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Nested settings, and more of them."""
    both = {key: merged(config[key], more[key]) for key in config.keys() & more.keys() if isinstance(more[key], dict)}
    return config | more | both


def altered(draw: Callable[[st.SearchStrategy[Any]], Any], config: dict[str, Any]) -> tuple[str, ...]:
    """Change one setting, at random: another value, another name, or none at all. Its path."""
    path = draw(st.sampled_from(leaves(config)))
    inside = config
    for key in path[:-1]:
        inside = inside[key]
    kind = draw(st.sampled_from(["value"] * 15 + ["name"] * 3 + ["none"] * 2))
    if kind == "value":
        inside[path[-1]] = deepcopy(draw(VALUES))
    elif kind == "name":
        inside[path[-1] + draw(st.sampled_from("sx"))] = inside.pop(path[-1])
    else:
        del inside[path[-1]]
    return path


@st.composite
def changed_configurations(
    draw: Callable[[st.SearchStrategy[Any]], Any],
) -> tuple[dict[str, Any], list[tuple[str, ...]]]:
    """A configuration with one to three changes, and their paths."""
    config = merged(yaml.safe_load(CONFIG), deepcopy(MORE))
    return config, [altered(draw, config) for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3])))]


def outcome(call: Callable[[], object]) -> tuple[int, str]:
    """The exit status of a call and what it wrote to standard error."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            call()
        except SystemExit as stop:
            return int(stop.code or 0), said.getvalue()
    return 0, said.getvalue()


def names(line: str, change: tuple[str, ...]) -> bool:
    """Whether a line names the setting that was changed, or by its whole name a class that it is part of."""
    *parts, setting = (part for part in change if part not in ("class_path", "init_args"))
    return setting in line or any(".".join(parts[:depth]) in line for depth in range(2, len(parts) + 1))


def configurations(folder: Path, count: int) -> str:
    """Configurations that hypothesis makes by one to three changes: each runs a step, or exits with 2 in one line.

    One in a hundred goes through the real command line.
    """
    tried = {0: 0, 2: 0}
    before = Path.cwd()
    os.chdir(folder)

    @seed(random.getrandbits(32))
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(changed_configurations())
    def answered(made: tuple[dict[str, Any], list[tuple[str, ...]]]) -> None:
        config, changes = made
        number = sum(tried.values())
        Path("run.yaml").write_text(yaml.safe_dump(config))
        arguments = ["--config=run.yaml"]
        if ("name",) not in changes:
            arguments += ["--name", f"run{number}"]
        arguments += ["--trainer.max_steps", "1"]  # some would train for ever, and rightly so
        if number % 100 == 99:
            command = [sys.executable, str(REPOSITORY / "train.py"), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            status, said = done.returncode, done.stderr
        else:
            sys.argv = ["train.py", *arguments]
            status, said = outcome(train)
        about = f"{status} for {changes} {config}: {said}"
        assert status in tried, about
        assert "Traceback" not in said, about
        if status:
            lines = [line for line in said.splitlines() if line.startswith("error: ")]
            assert len(lines) == 1, about
            assert any(names(lines[0], change) for change in changes), about
        tried[status] += 1

    answered()
    os.chdir(before)
    assert sum(tried.values()) == count
    return f"{count} configurations: {tried[0]} ran, {tried[2]} exited with 2 naming the setting; 0 tracebacks"
