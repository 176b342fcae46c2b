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
from ncsn.model.model import PRECISION, Model
from ncsn.training.processes import check_processes, plugins

__all__ = ["device_of", "fabric_for", "precision_of", "shared_draws"]

# The dtype of autocast in each precision.
DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def fabric_for(options: Namespace) -> Fabric:
    """Return what runs the command on the devices of the options; `launch` starts the others."""
    device = device_of(options.device)
    if device.index is not None and options.devices > 1:
        raise ValueError(f"--devices: {options.devices}, but --device {device} names one")
    devices = options.devices if device.index is None else [device.index]
    many = options.num_nodes > 1 or (device.index is None and options.devices > 1)
    fabric = Fabric(
        accelerator=device.type,
        devices=devices,
        num_nodes=options.num_nodes,
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


def precision_of(model: Model, options: Namespace) -> str:
    """Return --precision, or else bf16-mixed on a CUDA GPU if the model was trained in it."""
    device = device_of(options.device)
    if options.precision == "16-mixed" and device.type == "cpu":
        raise ValueError("--precision: 16-mixed needs a GPU; take bf16-mixed on a CPU")
    if options.precision is not None:
        precision: str = options.precision
        return precision
    trained_in = (model.settings or {}).get(PRECISION)
    in_bf16 = trained_in == "bf16-mixed" and has_fast_bf16(device)
    return "bf16-mixed" if in_bf16 else "32-true"


def has_fast_bf16(device: torch.device) -> bool:
    """Return True for a CUDA GPU with instructions for bf16."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@contextmanager
def shared_draws(
    fabric: Fabric, model: Model, request: Request, total: int, precision: str
) -> Iterator[Iterator[tuple[Sequence[int], Tensor]]]:
    """Yield this process's share of `draws`, with a progress bar on standard error.

    The bar counts the samples of all processes, out of `total`; those that are not
    requested are done. The network runs in `precision`.
    """
    mine = request.batches[fabric.global_rank :: fabric.world_size]
    unit = "images" if len(model.shape) == 3 else "samples"
    count, rate = TextColumn("{task.completed:.0f}/{task.total}"), TextColumn("{task.fields[rate]}")
    columns = TextColumn("Sampling"), BarColumn(), count, rate, TimeRemainingColumn()
    console = Console(stderr=True)
    hidden = not (console.is_terminal and fabric.is_global_zero)
    autocast = torch.autocast(
        fabric.device.type, DTYPES.get(precision), enabled=precision in DTYPES
    )
    with Progress(*columns, console=console, disable=hidden) as progress, autocast:
        done = total - sum(map(len, request.batches))
        task = progress.add_task("", total=total, completed=done, rate="")

        def advance(samples: float) -> None:
            speed = progress.tasks[0].speed
            words = f"{speed:.3g} {unit}/s" if speed else ""
            progress.update(task, advance=samples * fabric.world_size, rate=words)

        yield draws(model, replace(request, batches=mine), advance)
