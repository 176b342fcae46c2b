"""The processes that share the work of a command: as many as its devices, whoever starts them."""

from collections.abc import Callable

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Trainer

__all__ = ["check_processes"]

STARTERS: list[tuple[str, Callable[[], bool], Callable[[], ClusterEnvironment]]] = [
    ("torchrun", TorchElasticEnvironment.detect, TorchElasticEnvironment),
    ("SLURM", SLURMEnvironment.detect, SLURMEnvironment),
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
