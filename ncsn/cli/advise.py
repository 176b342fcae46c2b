"""`ncsn advise --config FILE`: noise levels and steps for a data set.

It applies the techniques of Song & Ermon (2020) to the data, and prints settings for
the configuration, each with its reason. Warnings on standard error name settings of the
configuration that are far off.
"""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from ncsn.data import DataModule, to_unit
from ncsn.data.examples import HeldExamples
from ncsn.noise import (
    Distance,
    GeometricSchedule,
    NoiseSchedule,
    distance_bounds,
    langevin_step_size,
    num_levels,
    variance_ratio,
)
from ncsn.samplers import AnnealedLangevin, ConsistentAnnealed, Langevin, Sampler
from ncsn.training.run import build

__all__ = ["Advice", "advise", "largest_distance", "objections", "run"]

READ_AT_MOST = 2**29  # bytes, if the images are streamed
MULTIPLICATIONS = 6e12  # for the distance: at most two minutes on two cores
PIXEL_SIGMA_MIN = 0.01
FEWEST_STEPS = 3
USUAL_CALLS = 1160  # NFE published for CIFAR-10: 232 levels of 5 steps
FAR = 1.5  # factor from the best step size that is objected to


@dataclass(frozen=True)
class Advice:
    """A schedule and a sampler for a data set, and the reasons for their numbers."""

    schedule: NoiseSchedule
    sampler: AnnealedLangevin
    reasons: dict[str, str]

    def yaml(self) -> str:
        """Return the settings as YAML, each reason a comment above its number."""
        lines = ["model:"]
        for name, part in (("schedule", self.schedule), ("sampler", self.sampler)):
            assert is_dataclass(part)
            lines += [f"  {name}:", f"    class_path: {class_path(part)}", "    init_args:"]
            for key, value in asdict(part).items():
                lines += [f"      # {self.reasons[key]}"] if key in self.reasons else []
                lines += [f"      {key}: {scalar(value)}"]
        return "\n".join(lines)


def advise(
    distance: Distance,
    dimension: int,
    pixels: bool,
    schedule: NoiseSchedule,
    sampler: Sampler,
    of: str = "",
) -> Advice:
    """Return the techniques' settings, in the schedule's own class if it fits.

    Args:
        distance: the largest distance between two examples.
        dimension: the numbers in an example.
        pixels: the data is 8-bit images.
        schedule: the configured schedule, whose other settings are kept.
        sampler: the configured sampler, which sets the NFE to spend.
        of: which examples the distance is of, if not all.

    Raises:
        ValueError: if the examples are no farther apart than the lowest level.
    """
    own, reasons = schedule.sigmas(), {}
    sigma_max = float(f"{distance.lower:.3g}")
    reasons["sigma_max"] = (
        f"Technique 1: the largest distance between two examples{of}, {stated(distance)}: noise leads from any to any."
    )
    if pixels:
        sigma_min = PIXEL_SIGMA_MIN
        grey_levels = sigma_min / to_unit(torch.ones((), dtype=torch.uint8)).item()
        reasons["sigma_min"] = (
            f"{grey_levels:.1f} of 255 grey levels: too little to be seen, enough to join them."
        )
    else:
        low = own[-1].item()
        sigma_min = float(f"{low if 0 < low < sigma_max / 2 else sigma_max / 100:.3g}")
        reasons["sigma_min"] = (
            "Yours to choose: below the finest width of the density that is to be drawn."
        )
    if distance.lower <= sigma_min or sigma_max <= sigma_min:
        raise ValueError(
            f"data: no two examples are farther apart than {distance.upper:.3g}, and sigma_min is {sigma_min:g}: there "
            "is no ladder between; give data that differs"
        )
    levels = num_levels(sigma_max, sigma_min, dimension)
    ratio = (sigma_max / sigma_min) ** (1 / (levels - 1))
    reasons["levels"] = (
        f"Technique 2: levels in the ratio {ratio:.4g} overlap in {dimension:,} dimensions."
    )
    ladder: dict[str, Any] = {"sigma_max": sigma_max, "sigma_min": sigma_min, "levels": levels}
    if is_dataclass(schedule) and all(hasattr(schedule, key) for key in ladder):
        if getattr(schedule, "rho", AnnealedLangevin.rho) < AnnealedLangevin.rho:
            ladder["rho"] = AnnealedLangevin.rho
            reasons["rho"] = (
                "So large that the ladder is all but geometric, which the techniques take it to be."
            )
        schedule = replace(schedule, **ladder)
    else:
        schedule = GeometricSchedule(**ladder)

    steps, reasons["steps"] = affordable(sampler, own, levels)
    sigmas = schedule.sigmas()
    epsilon = float(f"{langevin_step_size(sigmas, steps):.3g}")
    r = variance_ratio(sigmas, steps, epsilon).item()
    reasons["epsilon"] = (
        f"Technique 4: keeps the variance of the walk nearest to its levels', r = {r:.3f}. `auto` computes the same."
    )
    return Advice(
        schedule, AnnealedLangevin(epsilon, steps, getattr(sampler, "denoise", True)), reasons
    )


def affordable(sampler: Sampler, sigmas: Tensor, levels: int) -> tuple[int, str]:
    """Return the steps per level that keep the sampler's NFE, and the reason."""
    calls, whose = USUAL_CALLS, "CIFAR-10's were"
    if isinstance(sampler, AnnealedLangevin) and len(sigmas) > 1:
        calls, whose = len(sigmas) * sampler.steps, "yours are"
    steps = max(FEWEST_STEPS, round(calls / levels))
    kept = f"by budget: {steps * levels:,} network calls, {whose} {calls:,}"
    if calls < (FEWEST_STEPS - 0.5) * levels:
        kept = f"the fewest published: {steps * levels:,} network calls; {whose} {calls:,}"
    return steps, f"T, {kept}. More steps a level beat more levels of one step."


def objections(
    distance: Distance, dimension: int, schedule: NoiseSchedule, sampler: Sampler
) -> Iterator[str]:
    """Yield one line for each configured setting that is far off."""
    sigmas = schedule.sigmas()
    sigma_max, sigma_min, levels = sigmas[0].item(), sigmas[-1].item(), len(sigmas)
    if not sigma_min > 0:
        yield f"model.schedule: {type(schedule).__name__} has no ladder of noise levels to walk down"
        return
    # Other samplers need neither overlapping levels nor time to change modes.
    langevin = isinstance(sampler, Langevin | AnnealedLangevin | ConsistentAnnealed)
    if langevin and sigma_max < distance.lower / 2:
        yield (
            f"model.schedule.sigma_max: {sigma_max:.4g} is {sigma_max / distance.lower:.2g} of the largest distance, "
            f"{distance.lower:.4g}; a walk hardly crosses from one kind of example to another"
        )
    if sigma_max > 2 * distance.upper:
        yield (
            f"model.schedule.sigma_max: {sigma_max:.4g} is {sigma_max / distance.upper:.2g} times the largest "
            f"distance, {distance.upper:.4g}; at the levels above that there is nothing to learn"
        )
    needed = num_levels(sigma_max, sigma_min, dimension)
    if langevin and 2 * levels < needed:
        yield (
            f"model.schedule.levels: {levels} is {levels / needed:.2g} of the {needed} that overlap from "
            f"{sigma_max:.4g} to {sigma_min:.4g} in {dimension:,} dimensions"
        )
    if isinstance(sampler, AnnealedLangevin) and sampler.epsilon != "auto" and levels > 1:
        best = langevin_step_size(sigmas, sampler.steps)
        factor = sampler.epsilon / best
        if not 1 / FAR < factor < FAR:
            r, least = variance_ratio(
                sigmas, sampler.steps, torch.tensor([sampler.epsilon, best])
            ).tolist()
            yield (
                f"model.sampler.epsilon: {sampler.epsilon:.3g} is {factor:.2g} times the best for this ladder, "
                f"{best:.3g}: the variance of the walk is {r:.4g} times its level's, in place of {least:.4g}"
                + (
                    "; above sigma_min^2 each step overshoots"
                    if sampler.epsilon > sigma_min**2
                    else ""
                )
            )


def stated(distance: Distance) -> str:
    """Return the distance, or its bounds, in words."""
    return (
        f"{distance.lower:.4g}"
        if distance.exact
        else f"between {distance.lower:.4g} and {distance.upper:.4g}"
    )


def class_path(part: Any) -> str:
    """Return the import path of a class, as the configurations abbreviate it."""
    kind = type(part)
    package = (
        ".".join(kind.__module__.split(".")[:2])
        if kind.__module__.startswith("ncsn.")
        else kind.__module__
    )
    return f"{package}.{kind.__qualname__}"


def scalar(value: Any) -> str:
    """Return a value as YAML, in which 1e-05 without a dot would be a string."""
    text = json.dumps(value)
    return (
        text.replace("e", ".0e")
        if isinstance(value, float) and "e" in text and "." not in text
        else text
    )


def examples(data: DataModule) -> tuple[Tensor, str]:
    """Return the training examples (N, ...), and words for the subset ("" if all)."""
    split = data.splits["train"]
    if isinstance(split, HeldExamples):
        return split.values, ""
    count = min(len(split), max(2, READ_AT_MOST // math.prod(data.shape)))
    chosen = (
        torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:count]
        .sort()
        .values.tolist()
    )
    batches = [chosen[i : i + 64] for i in range(0, count, 64)]
    with bar() as progress:
        values = torch.cat(
            [split[batch][0] for batch in progress.track(batches, description="Reading pictures")]
        )
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
    if not options & {"-c", "--config", "-h", "--help"}:
        raise ValueError("--config: none given; give a YAML file, as to ncsn train")
    sys.argv[1:] = arguments
    cli = build()
    data, model = cli.datamodule, cli.model
    with redirect_stdout(sys.stderr):
        data.prepare_data()
        data.setup()
    values, of = examples(data)
    dimension = math.prod(data.shape)
    distance = largest_distance(values)
    own = model.schedule, model.sampler
    advice = advise(distance, dimension, values.dtype == torch.uint8, *own, of)
    for objection in objections(distance, dimension, *own):
        print("warning:", objection, file=sys.stderr)
    count, name = len(data.splits["train"]), type(data).__name__
    print(f"# {name}: {count:,} examples {data.shape}; techniques of Song & Ermon (2020)")
    print(advice.yaml())
