"""Noise levels for a data set, and steps of annealed Langevin (Song & Ermon, 2020).

`advise` applies the techniques of `ncsn.noise.techniques` to a distance between examples;
`objections` compares configured settings with them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch

from ncsn.noise import (
    Distance,
    GeometricSchedule,
    NoiseSchedule,
    langevin_step_size,
    num_levels,
    variance_ratio,
)
from ncsn.samplers.langevin import AnnealedLangevin, ConsistentAnnealed, Langevin
from ncsn.samplers.sampler import Sampler

__all__ = ["Advice", "advise", "objections"]

PIXEL_SIGMA_MIN = 0.01
NEARLY_GEOMETRIC = 100.0  # rho of a Karras schedule
FEWEST_STEPS = 3  # of the published settings, per level
USUAL_NFE = 1160  # published for CIFAR-10: 232 levels of 5 steps
LANGEVIN = Langevin, AnnealedLangevin, ConsistentAnnealed  # they need levels that overlap
FAR = 1.5  # factor from the best step size that is objected to


@dataclass(frozen=True)
class Advice:
    """A schedule and a sampler for a data set, and the reasons for their numbers."""

    schedule: NoiseSchedule
    sampler: Sampler
    reasons: dict[str, str]


def advise(
    distance: Distance,
    dimension: int,
    pixels: bool,
    schedule: NoiseSchedule,
    sampler: Sampler,
    of: str = "",
) -> Advice:
    """Return the techniques' settings, in the schedule's own class if it fits.

    A sampler other than Langevin's is kept, with its number of levels: it needs neither
    levels that overlap nor a step size, and costs far fewer evaluations. A step size of
    "auto" is kept too, with the number of steps at each level.

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
    own, sigma_max = schedule.sigmas(), rounded(distance.lower)
    sigma_min, low = PIXEL_SIGMA_MIN, own[-1].item()
    if not pixels:
        sigma_min = rounded(low if 0 < low < sigma_max / 2 else sigma_max / 100)
    if distance.lower <= sigma_min or sigma_max <= sigma_min:
        raise ValueError(
            f"data: no two examples are farther apart than {distance.upper:.3g}, and sigma_min is "
            f"{sigma_min:g}: there is no noise level in between; give data that differs"
        )
    kept = not isinstance(sampler, LANGEVIN) and len(own) > 1
    levels = len(own) if kept else num_levels(sigma_max, sigma_min, dimension)
    settings: dict[str, Any] = {"sigma_max": sigma_max, "sigma_min": sigma_min, "levels": levels}
    rho = getattr(schedule, "rho", None)
    if not kept and rho is not None and rho < NEARLY_GEOMETRIC:
        settings["rho"] = NEARLY_GEOMETRIC
    if is_dataclass(schedule) and all(hasattr(schedule, name) for name in settings):
        schedule = replace(schedule, **settings)
    else:
        schedule = GeometricSchedule(sigma_max, sigma_min, levels)
    reasons = {
        "sigma_max": f"Technique 1: the largest distance between two examples{of}, {stated(distance)}.",
        "sigma_min": "Yours to choose: below the finest width of the density to sample.",
    }
    if pixels:
        reasons["sigma_min"] = f"{255 * sigma_min:.3g} of 255 grey levels: invisible, but smooth."
    if kept:
        reasons["levels"] = f"As configured: {type(sampler).__name__} needs no levels that overlap."
        return Advice(schedule, sampler, reasons)
    gamma = (sigma_max / sigma_min) ** (1 / (levels - 1))
    reasons |= {
        "levels": f"Technique 2: levels in the ratio {gamma:.4g} overlap in {dimension:,} dimensions.",
        "rho": "Makes the levels nearly geometric, which the techniques assume.",
    }
    if isinstance(sampler, AnnealedLangevin) and sampler.epsilon == "auto":
        return Advice(schedule, sampler, reasons)
    steps, budget = affordable(sampler, len(own), levels)
    sigmas = schedule.sigmas()
    epsilon = rounded(langevin_step_size(sigmas, steps))
    r = variance_ratio(sigmas, steps, epsilon).item()
    reasons |= {
        "steps": budget,
        "epsilon": f"Technique 4: keeps the variance nearest the levels', r = {r:.3f}; with `auto`, r is 1.",
    }
    denoise = getattr(sampler, "denoise", True)
    return Advice(schedule, AnnealedLangevin(epsilon, steps, denoise), reasons)


def affordable(sampler: Sampler, levels: int, needed: int) -> tuple[int, str]:
    """Return the steps per level that keep a sampler's NFE on `needed` levels, and the reason."""
    nfe, whose = USUAL_NFE, "published for CIFAR-10"
    if isinstance(sampler, AnnealedLangevin) and levels > 1:
        nfe, whose = levels * sampler.steps, "in your settings"
    steps = max(FEWEST_STEPS, round(nfe / needed))
    few = nfe < (FEWEST_STEPS - 0.5) * needed
    kept = "T, the fewest published" if few else "T, to keep the NFE"
    return steps, f"{kept}: {steps * needed:,} NFE; {nfe:,} {whose}."


def objections(
    distance: Distance, dimension: int, schedule: NoiseSchedule, sampler: Sampler
) -> Iterator[str]:
    """Yield one line for each configured setting that is far off."""
    sigmas = schedule.sigmas()
    sigma_max, sigma_min, levels = sigmas[0].item(), sigmas[-1].item(), len(sigmas)
    if not sigma_min > 0:
        yield f"model.schedule: {type(schedule).__name__} has no noise levels to anneal"
        return
    # Other samplers need neither overlapping levels nor time to change modes.
    langevin = isinstance(sampler, LANGEVIN)
    if langevin and sigma_max < distance.lower / 2:
        yield (
            f"model.schedule.sigma_max: {sigma_max:.4g} is {sigma_max / distance.lower:.2g} of the "
            f"largest distance, {distance.lower:.4g}; trajectories will hardly change modes"
        )
    if sigma_max > 2 * distance.upper:
        yield (
            f"model.schedule.sigma_max: {sigma_max:.4g} is {sigma_max / distance.upper:.2g} times the "
            f"largest distance, {distance.upper:.4g}; there is nothing to learn at the highest levels"
        )
    needed = num_levels(sigma_max, sigma_min, dimension)
    if langevin and 2 * levels < needed:
        yield (
            f"model.schedule.levels: {levels} is {levels / needed:.2g} of the {needed} that overlap "
            f"from {sigma_max:.4g} to {sigma_min:.4g} in {dimension:,} dimensions"
        )
    if isinstance(sampler, AnnealedLangevin) and sampler.epsilon != "auto" and levels > 1:
        best = langevin_step_size(sigmas, sampler.steps)
        factor = sampler.epsilon / best
        if not 1 / FAR < factor < FAR:
            both = torch.tensor([sampler.epsilon, best])
            r, least = variance_ratio(sigmas, sampler.steps, both).tolist()
            overshoots = "; above sigma_min^2 each step overshoots"
            yield (
                f"model.sampler.epsilon: {sampler.epsilon:.3g} is {factor:.2g} times the best for these "
                f"levels, {best:.3g}: the variance is {r:.4g} times the level's, instead of {least:.4g}"
                + overshoots
                * (sampler.epsilon > sigma_min**2)
            )


def stated(distance: Distance) -> str:
    """Return the distance, or its bounds, in words."""
    if distance.exact:
        return f"{distance.lower:.4g}"
    return f"between {distance.lower:.4g} and {distance.upper:.4g}"


def rounded(value: float) -> float:
    """Return a value to three digits."""
    return float(f"{value:.3g}")
