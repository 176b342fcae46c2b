"""The devices and processes that share the samples of a command."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from lightning.fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ncsn.training.processes import check_processes, plugins

__all__ = ["chosen_device", "fabric_for", "place_of", "sampling_progress"]


def fabric_for(options: Namespace) -> Fabric:
    """Return what runs the command on the devices of the options; `launch` starts the others.

    Raises:
        ValueError: if this machine lacks them, or torchrun or SLURM started another number.
    """
    accelerator, devices = chosen_device(options.device)
    devices = options.devices if isinstance(devices, int) else devices
    many = options.num_nodes > 1 or (isinstance(devices, int) and devices > 1)
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=options.num_nodes,
        precision=options.precision,
        strategy="ddp" if many else "auto",
        plugins=list(plugins()),
    )
    check_processes(fabric.world_size, options.devices, options.num_nodes)
    return fabric


def chosen_device(name: str) -> tuple[str, int | list[int]]:
    """Return Lightning's accelerator and devices for a device, or for the fastest if it is "auto".

    Raises:
        ValueError: if this machine has no such device.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return (accelerator.type if accelerator else "cpu"), 1
    names = ["cpu"]
    if accelerator:
        count = torch.accelerator.device_count()
        names += [accelerator.type, *(f"{accelerator.type}:{i}" for i in range(count))]
    if name not in names:
        raise ValueError(f"--device: expected one of {', '.join(names)}, got {name}")
    kind, _, number = name.partition(":")
    return kind, [int(number)] if number else 1


def place_of(name: str) -> torch.device:
    """Return a device, for what a single one does.

    Raises:
        ValueError: if this machine has no such device.
    """
    accelerator, devices = chosen_device(name)
    return torch.device(accelerator if isinstance(devices, int) else f"{accelerator}:{devices[0]}")


@contextmanager
def sampling_progress(
    fabric: Fabric, total: int, done: int, unit: str
) -> Iterator[Callable[[float], None]]:
    """Show a bar on standard error, and yield a function that advances it by samples.

    Args:
        fabric: its first process shows the bar, for all of them.
        total: how many samples there will be.
        done: how many of them an earlier command has drawn.
        unit: their name, in "images/s".
    """
    console = Console(stderr=True)
    hidden = not (console.is_terminal and fabric.is_global_zero)
    rate, left = TextColumn("{task.speed:.3g} " + f"{unit}/s"), TimeRemainingColumn()
    columns = TextColumn("Sampling"), BarColumn(), MofNCompleteColumn()
    drawn = 0.0
    with Progress(*columns, console=console, disable=hidden) as progress:
        task = progress.add_task("", total=total, completed=done)

        def advance(samples: float) -> None:
            nonlocal drawn
            if not drawn:  # there is a rate and a time left from now on
                progress.columns = (*columns, rate, left, TextColumn("left"))
            drawn += samples * fabric.world_size
            progress.update(task, completed=min(total, round(done + drawn)))

        yield advance
