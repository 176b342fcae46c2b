"""The experiments of docs/reliability.md, cut short; `python tests/reliability.py NAME --count N` has them in full."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


def measured(experiment: str, count: int) -> str:
    """The line that an experiment ends with, once it has ended well."""
    command = [sys.executable, str(REPOSITORY / "tests/reliability.py"), experiment, "--count", str(count)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "count"),
    [
        ("kills", 10),
        ("resume", 4),
        ("damage", 10),
        ("configurations", 8),
        ("evil", 1),
        ("accumulated", 2),
        ("shortened", 5),
        ("streamed", 5),
        ("ranks", 9),
        ("signals", 6),
        ("stops", 20),
        ("groups", 4),
        ("validations", 2),
        ("mutations", 60),
        ("disk", 2),
        ("sampling", 3),
        ("writers", 1),
        ("trust", 8),
    ],
)
def test_in_short(experiment, count):
    assert measured(experiment, count)


@pytest.mark.slow
def test_the_guard_against_divergence_costs_little():
    percent = re.search(r"takes (-?[\d.]+) %", measured("guard", 105))
    assert percent is not None
    assert float(percent[1]) < 2
