"""An output has one writer: each command refuses, before any work, what another process is writing."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import benchmarks.results
import ncsn.cli.export
import pytest
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from ncsn.cli import main as cli
from ncsn.cli.writers import FolderWriter, NpzWriter
from ncsn.model.files import exclusive_file, lock_of, temporary_file
from ncsn.training.processes import hold_outputs
from PIL import Image

from test_cli import SMALL, refusal, train_small
from test_files import HOLDER, names


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> str:
    return str(train_small(tmp_path_factory.mktemp("digits"), "--samples.count", "0"))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def held(path: str, kind: str = "exclusive_file") -> Iterator[int]:
    """Another process that writes `path`, by its process id."""
    command = [sys.executable, "-c", HOLDER.replace("exclusive_folder", kind), path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process.pid
        process.kill()


def called(command: str, *options: str) -> None:
    if command != "results":
        return cli.main([command, *options])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["results.py", *options])
        benchmarks.results.main()


COMMANDS = [
    ("sample", ["{}", "--out", "a.png"], "--out: a.png"),
    ("sample", ["{}", "--out", "a.gif"], "--out: a.gif"),
    ("sample", ["{}", "--out", "a.npz"], "--out: a.npz"),
    ("denoise", ["absent.png", "--sigma", "1", "--out", "a.png"], "--out: a.png"),
    ("interpolate", ["absent.png", "absent.png", "--out", "a.png"], "--out: a.png"),
    ("evaluate", ["{}", "--json", "a.json"], "--json: a.json"),
    ("features", ["--data", "ncsn.data.Digits", "--out", "a.safetensors"], "--out: a.safetensors"),
    ("features", ["--data", "ncsn.data.Digits"], "--out: checkpoints/features_digits.safetensors"),
    ("export", ["{}", "--to", "safetensors", "--out", "a.safetensors"], "--out: a.safetensors"),
    ("export", ["{}", "--to", "safetensors", "--out", "a.safetensors"], "--out: a.md"),
    ("export", ["{}", "--to", "program", "--out", "a.pt2"], "--out: a.pt2"),
    ("export", ["{}", "--to", "folder", "--out", "a"], "--out: a"),
    ("export", ["{}", "--to", "folder"], "--out: small"),
    ("results", ["small.yaml"], "configs: checkpoints/small_results/result.json"),
]


@pytest.mark.parametrize(("command", "options", "output"), COMMANDS)
def test_the_second_writer_of_a_file_is_refused_before_any_work(digits, here, capsys, command, options, output):
    """Catches a command that takes no lock, takes it after its work, or takes another's name for it."""
    Path("small.yaml").write_text(SMALL)
    with held(output.split(": ")[1]) as process:
        before = set(here.rglob("*"))
        status, line = refusal(capsys, lambda: called(command, *(option.format(digits) for option in options)))
        assert status == 2
        assert line.startswith(f"error: {output} is in use by process {process} on ")
        assert set(here.rglob("*")) == before


def test_the_second_writer_of_a_folder_is_refused_and_no_lock_stays_in_it(digits, capsys):
    with held("pictures", "exclusive_folder") as process:
        status, line = refusal(capsys, lambda: cli.sample([digits, "--num-samples", "2", "--out", "pictures"]))
        assert (status, f"error: --out: pictures is in use by process {process} on " in line) == (2, True), line
        assert names(Path("pictures")) == [".lock"]
    Path("pictures/.000001.png.0123456789abcdef.partial").touch()
    cli.sample([digits, "--num-samples", "2", "--out", "pictures"])
    assert names(Path("pictures")) == ["000000.png", "000001.png"]


def test_an_export_and_samples_do_not_share_a_folder(digits, here, capsys):
    for kind, said in (("exclusive_file", "in use by process"), ("exclusive_folder", "exists")):
        with held("model", kind):
            before = set(here.rglob("*"))
            status, line = refusal(capsys, lambda: called("export", digits, "--to", "folder", "--out", "model"))
            assert (status, said in line) == (2, True), line
            status, line = refusal(capsys, lambda: cli.sample([digits, "--num-samples", "1", "--out", "model/"]))
            assert (status, "in use by process" in line) == (2, True), line
            assert set(here.rglob("*")) == before


def test_a_name_that_is_not_given_is_none_that_another_is_writing(digits, here, capsys):
    with held("samples.png"):
        cli.sample([digits, "--num-samples", "2"])
        assert "Wrote samples-2.png" in capsys.readouterr().out
    lock_of(Path("samples.png")).unlink()  # of the process that was killed
    Path("samples.png").write_text("another's")
    cli.sample([digits, "--num-samples", "2"])
    assert Path("samples.png").read_text() == "another's"
    assert names(here) == ["samples-2.png", "samples-3.png", "samples.png"]


def test_a_default_name_that_was_finished_just_before_the_lock_is_not_written_over(digits, here, monkeypatch, capsys):
    Path("samples.png").write_text("another's")
    names = iter([Path("samples.png"), Path("samples-2.png")])
    monkeypatch.setattr("ncsn.cli.writers.free", lambda _: next(names))
    cli.sample([digits, "--num-samples", "2"])
    assert "Wrote samples-2.png" in capsys.readouterr().out
    assert Path("samples.png").read_text() == "another's"


def test_an_output_without_a_place_is_named_with_its_option():
    missing = re.escape("No such file or directory: '/proc/.a.png.lock'")
    with (
        pytest.raises(OSError, match=f"^--out: .*{missing}"),
        hold_outputs("--out", exclusive_file(Path("/proc/a.png"))),
    ):
        raise AssertionError


def test_the_other_processes_of_a_command_leave_the_lock_to_the_first(monkeypatch):
    """Catches a command of several processes that refuses its own second one."""
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with held("a.npz") as process, hold_outputs("--out", exclusive_file(Path("a.npz"))):
        assert f"process {process} on " in lock_of(Path("a.npz")).read_text()


@pytest.mark.parametrize("kind", ["png", "npz"])
@pytest.mark.parametrize(
    ("rank", "parent", "torchrun", "stops"),
    [(1, 1, False, True), (1, 1, True, False), (0, 1, False, False), (1, os.getppid(), False, False)],
)
def test_a_process_whose_first_has_died_writes_no_more(here, monkeypatch, capsys, kind, rank, parent, torchrun, stops):
    """Catches one that writes on after kill -9 of the first, among the files of the next command."""
    monkeypatch.setattr(os, "getppid", lambda: parent)
    monkeypatch.setattr(os, "_exit", sys.exit)
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    fabric = SimpleNamespace(local_rank=rank)
    writer = FolderWriter(fabric, here, range(1), "")
    if kind == "npz":
        writer = NpzWriter(fabric, here / "a.npz", range(1), (1, 2, 2))
        writer.rows, writer.begin = temporary_file(writer.file), 0
    before = [path.read_bytes() for path in here.iterdir()]
    with pytest.raises(SystemExit, match="1") if stops else nullcontext():
        writer.write([0], torch.zeros(1, 1, 2, 2))
    assert ([path.read_bytes() for path in here.iterdir()] == before) == stops
    assert capsys.readouterr().err.startswith("error: the first process has died") == stops


def test_of_a_batch_with_some_pictures_there_only_the_missing_ones_are_written(here):
    fabric = SimpleNamespace(local_rank=0)
    FolderWriter(fabric, here, [0], "drawn").write([0], torch.zeros(1, 1, 2, 2))
    before = (here / "000000.png").stat()
    writer = FolderWriter(fabric, here, [0, 1], "drawn")
    assert (writer.is_written([0]), writer.is_written([0, 1])) == (True, False)
    writer.write([0, 1], torch.ones(2, 1, 2, 2))
    assert (here / "000000.png").stat() == before
    assert Image.open(here / "000001.png").getextrema() == (255, 255)


def test_what_is_exported_meanwhile_is_not_written_over(digits, monkeypatch, capsys):
    """Catches an export that looks for the file only before it has the lock."""
    first = ncsn.cli.export.hold_outputs

    def just_before(*given):
        Path("a.pt2").write_text("another's")
        return first(*given)

    monkeypatch.setattr("ncsn.cli.export.hold_outputs", just_before)
    status, line = refusal(capsys, lambda: called("export", digits, "--to", "program", "--out", "a.pt2"))
    assert (status, "--out: a.pt2 exists" in line) == (2, True), line
    assert Path("a.pt2").read_text() == "another's"
