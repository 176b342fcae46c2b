"""Several processes train, draw and measure as one, whoever starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_cli import REPOSITORY, SMALL, refusal, run_train

from ncsn.cli import sample
from ncsn.storage import archive

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
    return [str(REPOSITORY / "train.py"), "--config", "small.yaml", "--name", name, *DDP, *options]


def by_lightning() -> str:
    return ended_well(started(sys.executable, *training("run", "--trainer.devices", "2")))


def by_torchrun() -> str:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return ended_well(started(*torchrun, *training("run", "--trainer.devices", "2")))


def by_slurm() -> str:
    command = [sys.executable, *training("run", "--trainer.num_nodes", "2", "--trainer.devices", "1")]
    return ended_well(*(started(*command, **SLURM, SLURM_PROCID=rank, SLURM_NODEID=rank) for rank in "01"))


@pytest.mark.slow
def test_whoever_starts_them_two_processes_train_the_same(tmp_path, monkeypatch):
    weights = []
    for start in (by_lightning, by_torchrun, by_slurm):
        folder = tmp_path / start.__name__
        folder.mkdir()
        monkeypatch.chdir(folder)
        Path("small.yaml").write_text(SMALL)
        assert start().count("Trained 7 steps.") == 1
        weights.append(archive.read("checkpoints/run/step=7.ckpt")["state_dict"])
    for others in weights[1:]:
        assert others.keys() == weights[0].keys()
        assert all(torch.equal(weight, others[name]) for name, weight in weights[0].items())


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
    wrong = "devices: 1 on each of 1 machines, but {} started 2 processes"
    for name, environment in {"torchrun": {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2"}, "SLURM": SLURM}.items():
        with monkeypatch.context() as patch:
            for variable, value in environment.items():
                patch.setenv(variable, value)
            status, line = refusal(capsys, lambda: run_train("--config", "small.yaml"))
            assert status == 2
            assert wrong.format(name) in line
            status, line = refusal(capsys, lambda: sample(["--num-samples", "1"]))
            assert status == 2
            assert wrong.format(name) in line
    assert [file.name for file in tmp_path.iterdir()] == ["small.yaml"]
