"""The devices and processes that share the samples of a command."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from lightning.fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ncsn.model.draws import Request, draws
from ncsn.model.model import Model
from ncsn.training.processes import check_processes, plugins

__all__ = ["device_of", "fabric_for", "shared_draws"]


def fabric_for(options: Namespace) -> Fabric:
    """Return what runs the command on the devices of the options; `launch` starts the others."""
    device = device_of(options.device)
    devices = options.devices if device.index is None else [device.index]
    many = options.num_nodes > 1 or (device.index is None and options.devices > 1)
    fabric = Fabric(
        accelerator=device.type,
        devices=devices,
        num_nodes=options.num_nodes,
        precision=options.precision,
        strategy="ddp" if many else "auto",
        plugins=[*plugins()],
    )
    check_processes(fabric.world_size, options.devices, options.num_nodes)
    return fabric


def device_of(name: str) -> torch.device:
    """Return the device of a name, or the fastest if it is "auto"."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    names = ["cpu"]
    if accelerator:
        count = torch.accelerator.device_count()
        names += [accelerator.type, *(f"{accelerator.type}:{i}" for i in range(count))]
    if name not in names:
        raise ValueError(f"--device: expected one of {', '.join(names)}, got {name}")
    return torch.device(name)


@contextmanager
def shared_draws(
    fabric: Fabric, model: Model, request: Request, total: int
) -> Iterator[Iterator[tuple[Sequence[int], Tensor]]]:
    """Yield this process's share of `draws`, with a progress bar on standard error.

    The bar counts the samples of all processes, out of `total`; those that are not
    requested are done.
    """
    mine = request.batches[fabric.global_rank :: fabric.world_size]
    unit = "images" if len(model.shape) == 3 else "samples"
    count, rate = TextColumn("{task.completed:.0f}/{task.total}"), TextColumn("{task.fields[rate]}")
    columns = TextColumn("Sampling"), BarColumn(), count, rate, TimeRemainingColumn()
    console = Console(stderr=True)
    hidden = not (console.is_terminal and fabric.is_global_zero)
    with Progress(*columns, console=console, disable=hidden) as progress, fabric.autocast():
        done = total - sum(map(len, request.batches))
        task = progress.add_task("", total=total, completed=done, rate="")

        def advance(samples: float) -> None:
            speed = progress.tasks[0].speed
            words = f"{speed:.3g} {unit}/s" if speed else ""
            progress.update(task, advance=samples * fabric.world_size, rate=words)

        yield draws(model, replace(request, batches=mine), advance)
