"""Measurements. Run each from the root of the repository: `python -m benchmarks.NAME`."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
