"""`ncsn advise --config FILE`: moments and noise levels of a data set.

It measures the data, applies the techniques of Song & Ermon (2020) to it, and prints
settings for the configuration, each with its reason. Warnings on standard error name settings of the
configuration that are far off.
"""

import json
import math
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from ncsn.cli.help import short_help
from ncsn.cli.train import settings
from ncsn.data import DataModule, to_unit
from ncsn.data.examples import HeldExamples
from ncsn.noise import Distance, distance_bounds
from ncsn.samplers.advice import Advice, advise, objections, rounded, stated
from ncsn.training.module import ScoreModule
from ncsn.training.run import build

__all__ = ["run"]

READ_AT_MOST = 2**29  # bytes, if the images are streamed
MULTIPLICATIONS = 6e12  # for the distance: at most two minutes on two cores


def yaml_of(model: ScoreModule, advice: Advice, moments: dict[str, float]) -> str:
    """Return the settings as YAML, each reason a comment above its number."""
    parts = []
    for name in ("denoiser", "objective"):  # their other settings stay as they are
        part = getattr(model, name)
        parts += [(name, part, {key: moments[key] for key in moments if hasattr(part, key)})]
    for name in ("schedule", "sampler"):
        part = getattr(advice, name)
        parts += [(name, part, {} if part is model.sampler else asdict(part))]
    lines = ["model:"]
    for name, part, chosen in parts:
        if chosen:
            lines += [f"  {name}:", f"    class_path: {class_path(part)}", "    init_args:"]
        for key, value in chosen.items():
            lines += [f"      # {advice.reasons[key]}"] if key in advice.reasons else []
            lines += [f"      {key}: {scalar(value)}"]
    return "\n".join(lines)


def moments_of(values: Tensor) -> dict[str, float]:
    """Return the mean and the standard deviation of all values, to three digits."""
    total = squares = 0.0
    for part in torch.split(values, 4096):
        x = (to_unit(part) if part.dtype == torch.uint8 else part).double()
        total, squares = total + x.sum().item(), squares + x.square().sum().item()
    mean = total / values.numel()
    std = math.sqrt(max(0.0, squares / values.numel() - mean**2))
    return {"data_mean": rounded(mean), "data_std": rounded(std)}


def class_path(part: Any) -> str:
    """Return the import path of a class, as the configurations abbreviate it."""
    kind = type(part)
    names = kind.__module__.split(".")
    package = ".".join(names[:2] if names[0] == "ncsn" else names)
    return f"{package}.{kind.__qualname__}"


def scalar(value: Any) -> str:
    """Return a value as YAML, in which 1e-05 without a dot would be a string."""
    text = json.dumps(value)
    bare = isinstance(value, float) and "e" in text and "." not in text
    return text.replace("e", ".0e") if bare else text


def examples(data: DataModule) -> tuple[Tensor, str]:
    """Return the training examples (N, ...), and words for the subset ("" if all)."""
    split = data.splits["train"]
    if isinstance(split, HeldExamples):
        return split.values, ""
    count = min(len(split), max(2, READ_AT_MOST // math.prod(data.shape)))
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    batches = [batch.tolist() for batch in torch.split(order[:count].sort().values, 64)]
    with bar() as progress:
        track = progress.track(batches, description="Reading images")
        values = torch.cat([split[batch][0] for batch in track])
    return values, "" if count == len(split) else f" of {count:,} out of {len(split):,}"


def largest_distance(values: Tensor) -> Distance:
    """Return the largest distance between two examples, with a progress bar.

    The examples are (N, ...); pixels are measured in the unit [0, 1].
    """
    unit = to_unit(torch.ones((), dtype=torch.uint8)).item() if values.dtype == torch.uint8 else 1.0
    with bar() as progress:
        task = progress.add_task("Largest distance", total=None)
        for found in distance_bounds(values, MULTIPLICATIONS):
            distance = Distance(unit * found.lower, unit * found.upper)
            progress.update(task, description=f"Largest distance: {stated(distance)}")
    return distance


def bar() -> Progress:
    """Return a progress bar on standard error, because standard output is YAML."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments as training does, read the data, and print the settings."""
    options = {argument.split("=")[0] for argument in arguments}
    if options & {"-h", "--help"}:
        print(short_help("advise"))
        return
    if not options & {"-c", "--config"}:
        raise ValueError("--config: none given; give a YAML file, as to ncsn train")
    cli = build(settings(arguments))
    data, model = cli.datamodule, cli.model
    model.model.expect_gaussian_noise("ncsn advise")
    with redirect_stdout(sys.stderr):
        data.prepare_data()
        data.setup()
    values, of = examples(data)
    distance, dimension = largest_distance(values), math.prod(data.shape)
    own = model.schedule, model.sampler
    advice = advise(distance, dimension, values.dtype == torch.uint8, *own, of)
    for objection in objections(distance, dimension, *own):
        print("warning:", objection, file=sys.stderr)
    count, name = len(data.splits["train"]), type(data).__name__
    print(f"# {name}: {count:,} examples {data.shape}; techniques of Song & Ermon (2020)")
    print(yaml_of(model, advice, moments_of(values)))
