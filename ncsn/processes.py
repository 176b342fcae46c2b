"""The processes that share the work of a command: as many as its devices, whoever starts them, first and again."""

import os
import signal
import subprocess
from collections.abc import Callable

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Trainer

__all__ = ["REQUEUE", "check_processes", "requeue", "requeued", "under_slurm"]

REQUEUE = signal.SIGUSR1
"""What SLURM sends before the time of a job is up, where `--signal=SIGUSR1@SECONDS` asks for it."""
under_slurm: Callable[[], bool] = SLURMEnvironment.detect

STARTERS: list[tuple[str, Callable[[], bool], Callable[[], ClusterEnvironment]]] = [
    ("torchrun", TorchElasticEnvironment.detect, TorchElasticEnvironment),
    ("SLURM", under_slurm, SLURMEnvironment),
]
"""What starts processes: its name, whether it did, and what it says of them."""


def check_processes(trainer: Trainer) -> None:
    """Refuse processes that torchrun or SLURM started in another number: each would take itself for the only one.

    Raises:
        ValueError: where there are not as many as the trainer has devices.
    """
    for name, has_started, environment in STARTERS:
        started = environment().world_size() if has_started() else trainer.world_size
        if started != trainer.world_size:
            raise ValueError(
                f"devices: {trainer.num_devices} on each of {trainer.num_nodes} machines, but {name} started {started} "
                "processes; there must be one for each device, and several train with trainer.strategy ddp"
            )


def requeued() -> bool:
    """Whether SLURM has started this job before."""
    return under_slurm() and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def requeue() -> None:
    """Put this job into SLURM's queue again.

    Raises:
        OSError: where SLURM does not take it.
    """
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    command = ["scontrol", "requeue", job]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        raise OSError(f"{' '.join(command)}: {answer.stderr.strip() or f'exit status {answer.returncode}'}")
