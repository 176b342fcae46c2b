"""Each benchmark runs to its end and prints its figure; catches a path or a name that moved away under one."""

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
from ncsn.cli.options import parse
from ncsn.training.run import make_parser
from PIL import Image

from test_cli import REPOSITORY

DIGITS = "--config", str(REPOSITORY / "configs" / "digits.yaml")


@pytest.fixture
def printed(tmp_path, monkeypatch, capsys):
    """A function that runs a benchmark in a folder of its own, and returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *options: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *options])
        import_module(f"benchmarks.{name}").main()
        return capsys.readouterr().out

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "figure"),
    [
        ("step", (*DIGITS, "--steps", "1", "--rounds", "10"), r"ratio \d\.\d{3}"),
        ("drawing", (*DIGITS, "--batch", "2", "--levels", "2", "--rounds", "1"), r"takes \d\.\d{3}"),
        ("feeding", (*DIGITS, "--rounds", "1"), r"[\d,]+ images/s on one core, in batches of 64"),
        ("readable", ("--seconds", "1", "--count", "20"), r"\d%? of 20 digits"),
    ],
)
def test_a_benchmark_prints_its_figure(printed, name, options, figure):
    assert re.search(figure, printed(name, *options))


def test_the_benchmark_of_the_start_calls_what_is_there(printed, monkeypatch):
    import benchmarks.startup

    called = []
    monkeypatch.setattr(benchmarks.startup, "cpu_seconds", lambda *command: called.append(command) or 1.0)
    assert re.search(r"\+0\.00 over a bare Lightning script", printed("startup", "--rounds", "1"))
    assert all(Path(command[1]).is_file() for command in called if command[1] != "-c")
    compile(next(command[2] for command in called if command[1] == "-c"), "bare", "exec")


@pytest.mark.slow
def test_the_benchmark_of_quality_draws_and_scores_both_recipes(printed, real_data, monkeypatch):
    import benchmarks.quality

    monkeypatch.setattr(benchmarks.quality, "TRIAL", 2)
    options = "--budget", "0.01", "--count", "2", "--data.root", str(real_data), "--data.batch_size", "2"
    assert re.search(r"The recipe's distance is [\d.]+ of the baseline's", printed("quality", *options))


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_compares_networks_and_gives_commands_that_there_are(printed, tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    import benchmarks.gpu

    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / kind / "0.png")
    given = []
    monkeypatch.setattr(benchmarks.gpu.subprocess, "run", lambda command, **_: given.append(command) or Ended)
    assert "ncsn UNet, compiled" in printed("gpu", str(tmp_path), "--toy")
    features, train, sample, evaluate = given
    parse("features", features[4:])
    make_parser().parse_args(train[2:])
    parse("sample", sample[2:])
    parse("evaluate", evaluate[4:])
    assert Path(train[1]).is_file()
    assert Path(sample[1]).is_file()


class Ended:
    """A command that ended well."""

    returncode = 0


@pytest.mark.slow
def test_the_benchmark_of_networks_compares_ours_with_others(printed):
    pytest.importorskip("diffusers")
    pytest.importorskip("azula")
    assert "ncsn UNet" in printed("networks", "--batch", "2", "--rounds", "1")
