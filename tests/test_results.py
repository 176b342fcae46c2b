"""The table of results is of what was run."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.results import done, main, results_table

from test_cli import REPOSITORY, SMALL, refusal


def test_a_config_that_is_not_there_is_refused_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    monkeypatch.setattr(sys, "argv", ["results.py", "small.yaml", "absent.yaml"])
    assert refusal(capsys, main) == (2, "error: configs: there is no file absent.yaml")
    assert [file.name for file in tmp_path.iterdir()] == ["small.yaml"]


TRAINING = """
import signal, sys, time
from pathlib import Path
def end(number, _):
    print("ended by", number, flush=True)
    time.sleep(0.5)
    Path("saved").touch()
    sys.exit(3)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, end)
print("training", flush=True)
time.sleep(60)
"""
RESULTS = """
import sys
import benchmarks.results
benchmarks.results.TRAIN = [sys.executable, "-c", sys.argv.pop()]
benchmarks.results.main()
"""


@pytest.mark.parametrize(
    ("number", "send"),
    [
        (signal.SIGTERM, os.kill),
        pytest.param(signal.SIGHUP, os.kill, marks=pytest.mark.slow),
        (signal.SIGINT, os.killpg),
    ],
)
def test_a_signal_ends_the_training_that_was_started_and_waits_for_it(tmp_path, number, send):
    """Catches a command that leaves its training to itself, ends before it, or gives it Ctrl-C twice: the terminal
    sends it to the whole process group, and the second one ends a training at once."""
    (tmp_path / "small.yaml").write_text(SMALL)
    process = subprocess.Popen(
        [sys.executable, "-c", RESULTS, "small.yaml", TRAINING],
        **{"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True},
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        start_new_session=True,
    )
    assert process.stdout.readline() == "training\n"
    send(process.pid, number)
    assert process.wait(30) == 128 + number
    assert (tmp_path / "saved").exists()
    out, _ = process.communicate(timeout=10)  # the end of the pipe: none of them is left
    assert out == f"ended by {int(number)}\nerror: stopped by {number.name}\n"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["saved", "small.yaml"]


def test_a_training_that_was_killed_is_told_as_a_shell_does():
    with pytest.raises(SystemExit, match=str(128 + signal.SIGKILL)):
        done([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    with pytest.raises(SystemExit, match="3"):
        done([sys.executable, "-c", "raise SystemExit(3)"])
    done([sys.executable, "-c", ""])


@pytest.mark.parametrize("option", ["--name r", "--name=r", "--ckpt_path last"])
def test_a_name_of_its_own_is_refused_before_anything_is_trained(tmp_path, monkeypatch, capsys, option):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    monkeypatch.setattr(sys, "argv", ["results.py", "small.yaml", f"--train={option}"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "--train: --name and --ckpt_path are set by this command" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["small.yaml"]


@pytest.mark.parametrize(("held_out", "cell"), [(70, "0.5 (0.25)"), (60, "0.5")])
def test_held_out_images_are_compared_with_only_if_they_are_as_many(held_out, cell):
    samples = {"sampler": "Heun()", "levels": 6, "cost": {"NFE": 11, "images/s": 3.0}}
    one = {"config": "a", "minutes": 1.0, "samples": samples, "counts": {"judged": 70, "floor": held_out}}
    table = results_table([one | {"figures": {"recall": [0.5]}, "floor": {"recall": 0.25}}])
    assert list(table.columns[-1].cells) == [cell]


@pytest.mark.slow
def test_results_are_trained_evaluated_and_put_in_one_table(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    Path("small.yaml").write_text(SMALL)
    options = ["small.yaml", "--train", "--trainer.max_steps 3", "--evaluate", "--num-samples 70 --seeds 2"]
    monkeypatch.setattr(sys, "argv", ["results.py", *options])
    main()
    out = capfd.readouterr().out
    table = out[out.index("| config") :].splitlines()
    head, _, row = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table)
    report = json.loads(Path("checkpoints/small_results/report.json").read_text())
    assert report["samples"]["checkpoint"] == "checkpoints/small_results/step=3.ckpt"
    cells = dict(zip(head, row, strict=True))
    assert (cells["config"], cells["samples"], cells["NFE"]) == ("small", "70", "7")
    assert cells["sampler"].endswith(", 6 levels")
    values = torch.tensor(report["figures"]["recall"], dtype=torch.float64)
    floor = report["floor"]["recall"]
    assert cells["recall"] == f"{values.mean():.4g} +- {values.std():.2g} ({floor:.4g})"
    assert re.fullmatch(r"\d+\.\d min", cells["training"])
    # A row that is there is not made again, but for other options.
    monkeypatch.setattr("benchmarks.results.done", lambda command: pytest.fail(f"ran {command}"))
    main()
    assert capfd.readouterr().out == "\n".join(table) + "\n"
    monkeypatch.setattr(sys, "argv", ["results.py", *options[:-1], "--num-samples 70"])
    with pytest.raises(pytest.fail.Exception):
        main()
