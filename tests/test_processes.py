"""Several processes train, draw and measure as one, whoever starts them."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ncsn.cli.main import check_environment, main, sample
from ncsn.model import checkpoint_file
from ncsn.model.load import numbered
from ncsn.training.processes import check_processes, requeue

from test_cli import REPOSITORY, SMALL, refusal, run_train

NCSN = [sys.executable, "-m", "ncsn"]
DDP = ["--trainer.strategy", "ddp"]
SLURM = {
    **{"SLURM_JOB_ID": "4242", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "127.0.0.1", "SLURM_LOCALID": "0"},
    **{"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2"},
}


def started(*command: str, **variables: str) -> subprocess.Popen:
    """A process of its own in this folder, with these variables in its environment."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)} | variables
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended_well(*processes: subprocess.Popen) -> str:
    """What they wrote, once all of them have ended."""
    written = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), written
    return "".join(written)


def training(name: str, *options: str) -> list[str]:
    return ["train", "--config", "small.yaml", "--name", name, *DDP, *options]


def by_lightning() -> str:
    return ended_well(started(*NCSN, *training("run", "--trainer.devices", "2")))


def by_torchrun() -> str:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ncsn"]
    return ended_well(started(*torchrun, *training("run", "--trainer.devices", "2")))


def by_slurm() -> str:
    command = [*NCSN, *training("run", "--trainer.num_nodes", "2", "--trainer.devices", "1")]
    return ended_well(*(started(*command, **SLURM, SLURM_PROCID=rank, SLURM_NODEID=rank) for rank in "01"))


@pytest.mark.slow
def test_whoever_starts_them_two_processes_train_the_same(tmp_path, monkeypatch):
    weights = []
    for start in (by_lightning, by_torchrun, by_slurm):
        folder = tmp_path / start.__name__
        folder.mkdir()
        monkeypatch.chdir(folder)
        Path("small.yaml").write_text(SMALL)
        written = start()
        assert written.count("Trained 7 steps.") == written.count("step 7 of 7") == 1, written
        weights.append(checkpoint_file.read("checkpoints/run/step=7.ckpt")["state_dict"])
    for others in weights[1:]:
        assert others.keys() == weights[0].keys()
        assert all(torch.equal(weight, others[name]) for name, weight in weights[0].items())


@pytest.mark.slow
def test_what_the_first_process_refuses_ends_the_others_too(here):
    Path("small.yaml").write_text(SMALL)
    options = ["--trainer.num_nodes", "2", "--trainer.devices", "1", "--data.batch_size", "900"]
    command = [*NCSN, *training("run", *options)]
    processes = [started(*command, **SLURM, SLURM_PROCID=rank, SLURM_NODEID=rank) for rank in "01"]
    written = "".join(process.communicate(timeout=60)[0] for process in processes)
    assert [process.returncode for process in processes] == [2, 2]
    assert written.count("error: ") == 1, written
    assert "batch_size is 900, and must be at most the number of training examples on each of 2 devices" in written


@pytest.mark.slow
def test_what_torchrun_starts_draws_what_one_process_does(here):
    command = [str(REPOSITORY / "sample.py"), "--num-samples", "7", "--batch-size", "2", "--device", "cpu"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended_well(started(*torchrun, *command, "--devices", "2", "--out", "two"))
    ended_well(started(sys.executable, *command, "--out", "one"))
    one, two = ({file.name: file.read_bytes() for file in Path(out).iterdir()} for out in ("one", "two"))
    assert len(one) == 7
    assert one == two


def test_processes_without_a_device_of_their_own_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    wrong = "devices: 1 on each of 1 machines, and {} has {} processes"
    torchrun = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}
    for name, count, environment in (("torchrun", 4, torchrun), ("SLURM", 2, SLURM), ("torchrun", 4, SLURM | torchrun)):
        with monkeypatch.context() as patch:
            for variable, value in environment.items():
                patch.setenv(variable, value)
            status, line = refusal(capsys, lambda: run_train("--config", "small.yaml"))
            assert status == 2
            assert wrong.format(name, count) in line
            status, line = refusal(capsys, lambda: sample(["--num-samples", "1"]))
            assert status == 2
            assert wrong.format(name, count) in line
    with monkeypatch.context() as patch:
        patch.setenv("SLURM_JOB_NAME", "train")
        patch.setenv("SLURM_NTASKS", "2")
        for command in (lambda: run_train("--config", "small.yaml"), lambda: sample(["--num-samples", "1"])):
            status, line = refusal(capsys, command)
            assert status == 2
            assert "error: SLURM: You set `--ntasks=2`" in line
    assert [file.name for file in tmp_path.iterdir()] == ["small.yaml"]


GARBAGE = [
    ({"RANK": "x"}, "RANK: expected a number in the environment, got 'x'; unset it"),
    ({"LOCAL_RANK": "0.5"}, "LOCAL_RANK: expected a number"),
    ({"SLURM_PROCID": "a"}, "SLURM_PROCID: expected a number"),
    ({"WORLD_SIZE": "-1"}, "WORLD_SIZE: expected a number"),
    ({"TORCHELASTIC_RUN_ID": "1"}, "TORCHELASTIC_RUN_ID: set in the environment without all of RANK, LOCAL_RANK"),
    ({"RANK": "3"}, r"RANK: expected a number below that of the processes \(WORLD_SIZE\), 1, got 3; unset it"),
    ({"LOCAL_RANK": "2", "WORLD_SIZE": "2"}, r"LOCAL_RANK: .* \(WORLD_SIZE\), 2, got 2"),
    ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "bash"}, r"SLURM_PROCID: .* 1, got 1; unset it"),
]


@pytest.mark.parametrize(("environment", "message"), GARBAGE)
@pytest.mark.parametrize("command", ["train", "sample", "evaluate"])
def test_garbage_in_the_environment_is_named_before_lightning_reads_it(
    monkeypatch, capsys, command, environment, message
):
    monkeypatch.setattr("ncsn.cli.main.import_module", None)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    status, line = refusal(capsys, lambda: main([command]))
    assert (status, bool(re.search(f"error: {message}", line))) == (2, True), line


@pytest.mark.parametrize("environment", [{}, SLURM, {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}])
def test_the_environment_of_a_launcher_is_taken(monkeypatch, environment):
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    check_environment()


@pytest.mark.parametrize("environment", [{}, {"MASTER_ADDR": "10.0.0.1"}])
def test_several_machines_of_which_one_was_started_are_refused(monkeypatch, environment):
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match="num_nodes: 2 machines, and only this one was started"):
        check_processes(2, 1, 2)
    for variable, value in {"MASTER_ADDR": "10.0.0.1", "NODE_RANK": "0"}.items():
        monkeypatch.setenv(variable, value)
    check_processes(2, 1, 2)


@pytest.mark.slow
def test_a_job_that_slurm_puts_into_its_queue_again_ends_as_one_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    scontrol = Path("bin/scontrol")
    scontrol.parent.mkdir()
    scontrol.write_text("#!/bin/sh\necho $@ > requeued\n")
    scontrol.chmod(0o755)
    alone = SLURM | {"SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SLURM_PROCID": "0", "SLURM_NODEID": "0"}
    alone["PATH"] = f"{scontrol.parent.resolve()}:{os.environ['PATH']}"
    command = [sys.executable, str(REPOSITORY / "train.py"), "--config", "small.yaml", "--trainer.max_steps"]
    first = started(*command, "100000", **alone)
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("step=5.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    first.send_signal(signal.SIGUSR1)
    written, _ = first.communicate(timeout=60)
    assert first.returncode == 128 + signal.SIGUSR1, written
    assert Path("requeued").read_text() == "requeue 4242\n"
    steps = str(next(iter(numbered("checkpoints/small").values())) + 3)
    assert "Resuming from" in ended_well(started(*command, steps, **alone, SLURM_RESTART_COUNT="1"))
    ended_well(started(*command, steps, "--name", "alone"))
    again, undisturbed = (checkpoint_file.read(f"checkpoints/{name}/step={steps}.ckpt") for name in ("small", "alone"))
    for kind in ("state_dict", "current_model_state"):
        assert all(torch.equal(weight, again[kind][name]) for name, weight in undisturbed[kind].items())


def test_a_queue_that_does_not_take_a_job_is_an_error(tmp_path, monkeypatch):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\necho the job is not here >&2\nexit 1\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(OSError, match="scontrol requeue 7: the job is not here"):
        requeue()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "8")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    with pytest.raises(OSError, match="scontrol requeue 8_2: the job is not here"):
        requeue()
