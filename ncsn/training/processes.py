"""The processes of a command, started by Lightning, torchrun or SLURM."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer

from ncsn.model.files import hold

__all__ = [
    "REQUEUE",
    "agreed",
    "check_processes",
    "exit_if_orphaned",
    "gathered",
    "hold_outputs",
    "plugins",
    "requeue",
    "requeued",
    "under_slurm",
]

# SLURM's time limit warning with `--signal=SIGUSR1@SECONDS`; Windows has no such signal.
REQUEUE: int = getattr(signal, "SIGUSR1", -1)
PARENT = os.getppid()  # at the start of this process
MOST_DEVICES = 16  # of a machine with fewer cores
under_slurm: Callable[[], bool] = SLURMEnvironment.detect


def starter() -> ClusterEnvironment | None:
    """Return the launcher of this process: torchrun, SLURM's srun, or None."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    # Lightning's own handler of `REQUEUE` would save in the middle of a step.
    return SLURMEnvironment(auto_requeue=False) if under_slurm() else None


def plugins() -> list[ClusterEnvironment]:
    """Return the Lightning plugins that describe the other processes.

    Raises:
        ValueError: if SLURM's settings do not give the number of tasks per machine.
    """
    try:
        found = starter()
    except RuntimeError as error:
        raise ValueError(f"SLURM: {error}") from error
    return [found] if found else []


def check_processes(processes: int, devices: int, machines: int) -> None:
    """Refuse to run unless torchrun or SLURM started one process per device.

    Without them, refuse several machines, and more processes than a machine can run.
    """
    found, most = starter(), max(MOST_DEVICES, os.cpu_count() or 1)
    if found is None and devices > most:
        raise ValueError(f"devices: expected at most {most} on this machine, got {devices}")
    if found is None and machines > 1 and not {"MASTER_ADDR", "NODE_RANK"} <= os.environ.keys():
        raise ValueError(
            f"num_nodes: {machines} machines, and only this one was started; start the command "
            "on each of them by torchrun or srun"
        )
    started = processes if found is None else found.world_size()
    if started != processes:
        name = "torchrun" if isinstance(found, TorchElasticEnvironment) else "SLURM"
        raise ValueError(
            f"devices: {devices} on each of {machines} machines, and {name} has {started} "
            "processes; start one for each device, or one alone"
        )


def hold_outputs(option: str, *locks: AbstractContextManager[None]) -> AbstractContextManager[None]:
    """Return the context `hold` of a command's outputs on rank 0, and an empty one elsewhere."""
    return hold(option, *locks) if rank_zero_only(lambda: True)() else nullcontext()


@contextmanager
def agreed(trainer: Trainer) -> Iterator[None]:
    """Check a run in all processes, and end all if one of them refuses it.

    Those of torchrun or SLURM would wait for it; Lightning starts others only after the checks.
    """
    together = starter() is not None and trainer.world_size > 1
    try:
        yield
    except Exception:
        if together:
            any_refuses(trainer, True)
        raise
    if together and any_refuses(trainer, False):
        os._exit(2)  # the other says why; an orderly exit would wait for it


def any_refuses(trainer: Trainer, refused: bool) -> bool:
    """Return True if this or another process refuses the run."""
    trainer.strategy.setup_environment()
    decision: bool = trainer.strategy.reduce_boolean_decision(refused, all=False)
    return decision


def exit_if_orphaned(local_rank: int) -> None:
    """End this process if Lightning started it and rank 0 has died."""
    if local_rank > 0 and os.getppid() != PARENT and starter() is None:
        message = "error: the first process has died; this one stops, and writes no more"
        print(message, file=sys.stderr, flush=True)
        os._exit(1)  # an orderly exit would wait for rank 0


def requeued() -> bool:
    """Return True if SLURM has started this job before."""
    return under_slurm() and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def requeue() -> None:
    """Put this job into SLURM's queue again; an OSError says why SLURM refuses."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    command = ["scontrol", "requeue", job]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        said = answer.stderr.strip() or f"exit status {answer.returncode}"
        raise OSError(f"{' '.join(command)}: {said}; the run goes on with --ckpt_path last")


def gathered(parts: list[Any]) -> list[Any]:
    """Return the parts of all processes, in the order of their ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return parts
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, parts)
    return [part for share in shares for part in share]
