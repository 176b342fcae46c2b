"""Each benchmark runs by the command of its docstring, and prints its result."""

import os
import re
import subprocess
import sys

import pytest
from PIL import Image

from test_cli import REPOSITORY

DIGITS = "--config", str(REPOSITORY / "configs" / "digits.yaml")


def ran(folder, name: str, *options: str) -> str:
    """What a benchmark prints, called in a folder."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "figure"),
    [
        ("step", (*DIGITS, "--steps", "1", "--rounds", "10"), r"ratio \d\.\d{3}"),
        ("drawing", (*DIGITS, "--batch", "2", "--levels", "2", "--rounds", "1"), r"takes \d\.\d{3} of the time"),
        ("feeding", (*DIGITS, "--rounds", "1"), r"[\d,]+ images/s on one core, in batches of 64"),
        ("startup", ("--rounds", "1"), r"[+-]\d\.\d{2} over a bare Lightning script"),
        ("readable", ("--seconds", "1", "--count", "20"), r"\d%? of 20 digits are readable"),
    ],
)
def test_a_benchmark_prints_its_figure(tmp_path, name, options, figure):
    """Catches a path or a name that moved away under a benchmark."""
    assert re.search(figure, ran(tmp_path, name, *options))


@pytest.mark.slow
def test_the_benchmark_of_quality_draws_and_scores_both_recipes(tmp_path, real_data, monkeypatch, capsys):
    import benchmarks.quality

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmarks.quality, "TRIAL", 2)
    options = "--budget", "0.01", "--count", "2", "--data.root", str(real_data), "--data.batch_size", "2"
    monkeypatch.setattr(sys, "argv", ["quality", *options])
    benchmarks.quality.main()
    assert re.search(r"The recipe's distance is [\d.]+ of the baseline's", capsys.readouterr().out)


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_as_a_toy(tmp_path):
    pytest.importorskip("diffusers")
    for kind in ("a", "b"):
        (tmp_path / "pictures" / kind).mkdir(parents=True)
        for number in range(100):
            colour = (2 * number, 128, 255 * (kind == "b"))
            Image.new("RGB", (32, 32), colour).save(tmp_path / "pictures" / kind / f"{number}.png")
    assert "Wrote figures.json" in ran(tmp_path, "gpu", "pictures", "--toy")
    assert (tmp_path / "gpu" / "grid.png").is_file()


@pytest.mark.slow
def test_the_benchmark_of_networks_compares_ours_with_others(tmp_path):
    pytest.importorskip("diffusers")
    pytest.importorskip("azula")
    assert "ncsn UNet" in ran(tmp_path, "networks", "--batch", "2", "--rounds", "1")
