"""Each benchmark runs to its end and prints its figure; catches a path or a name that moved away under one."""

import json
import re
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch
from benchmarks.bench import flops
from benchmarks.gpu import PARTS
from ncsn.noise import streams

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


def test_counting_operations_leaves_the_compiled_noise_of_a_gpu_on(monkeypatch):
    """Catches torch's refusal to compile while operations are counted, after which nothing would be compiled."""

    def refused():
        raise RuntimeError("found no compiled frames")

    monkeypatch.setattr(streams, "is_compiled_on", lambda device: True)
    monkeypatch.setattr(streams, "one_kernel", refused)
    weight = torch.ones(3, requires_grad=True)

    def loss(x):
        with streams.Streams(0, range(len(x))):
            return (streams.normal(x) @ weight).sum()

    flops(loss, torch.ones(5, 3))
    assert streams.Streams.compiles


@pytest.mark.slow
def test_the_benchmark_of_quality_draws_and_scores_both_recipes(printed, real_data, monkeypatch):
    import benchmarks.quality

    monkeypatch.setattr(benchmarks.quality, "TRIAL", 2)
    options = "--budget", "0.01", "--count", "2", "--data.root", str(real_data), "--data.batch_size", "2"
    assert re.search(r"The recipe's distance is [\d.]+ of the baseline's", printed("quality", *options))


@pytest.fixture
def gpu(printed, tmp_path, monkeypatch):
    """A function that runs the benchmark of a GPU as a toy; it returns what that prints, and its results."""
    import benchmarks.gpu

    def run_tests(command, cwd, stdout, stderr):
        stdout.write("FAILED a\n1 failed, 2 passed")
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(benchmarks.gpu.subprocess, "run", run_tests)

    def run(*options: str) -> tuple[str, dict]:
        text = printed("gpu", str(tmp_path), "--toy", *options)
        return text, json.loads((tmp_path / "gpu" / "gpu.json").read_text())

    return run


def rows(results):
    return [row for name in PARTS for row in results[name]]


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_measures_every_part(gpu):
    pytest.importorskip("diffusers")
    text, results = gpu()
    assert not [row for row in rows(results) if "note" in row]
    assert [len(results[name]) for name in PARTS] == [11, 4, 1, 10, 8, 2]
    assert all(row["images/s"] > 0 < row["of the peak"] for row in (*results["bare"], *results["train"]))
    assert all(row["over bare calls"] > 0 for row in results["sampling"])
    assert results["data"] == {"mnist": "random images"}
    assert results["tests"] == [
        {"command": "pytest -m gpu", "exit status": 1, "result": "FAILED a\n1 failed, 2 passed"}
    ]
    assert "Data of mnist: random images" in text


def test_the_benchmark_of_a_gpu_skips_what_has_no_time_left(gpu):
    text, results = gpu("--minutes", "0")
    assert {row["note"] for row in rows(results)} == {"skipped: the time of this part is used up"}
    assert text.count("skipped: the time of this part is used up") == 36


def test_the_benchmark_of_a_gpu_goes_on_after_a_failure_and_a_part_that_takes_too_long(gpu, tmp_path, monkeypatch):
    import benchmarks.gpu

    def full(*_):
        raise RuntimeError("no memory\nand more lines")

    monkeypatch.setattr(benchmarks.gpu, "matrices", full)
    monkeypatch.setattr(benchmarks.gpu, "convolution", lambda *_: time.sleep(60))
    saved = tmp_path / "gpu" / "gpu.json"  # before the end, so that a kill loses nothing
    monkeypatch.setattr(benchmarks.gpu, "tested", lambda _: {"saved": len(json.loads(saved.read_text())["peaks"])})
    _, results = gpu("--minutes", "0.01", "--parts", "peaks", "tests")
    failed, *late = results["peaks"]
    assert failed == {"work": "matrices 256 x 256", "note": "failed: RuntimeError: no memory"}
    assert {row["note"] for row in late} == {"skipped: the time of this part is used up"}
    assert results["tests"] == [{"command": "pytest -m gpu", "saved": 11}]


@pytest.mark.slow
def test_the_benchmark_of_networks_compares_ours_with_others(printed):
    pytest.importorskip("diffusers")
    pytest.importorskip("azula")
    assert "ncsn UNet" in printed("networks", "--batch", "2", "--rounds", "1")
