"""Comparison of samplers by their Frechet distance and NFE."""

import math
from collections.abc import Callable

from rich import box
from rich.table import Table
from torch import Tensor

from ncsn.evaluation.report import Cost
from ncsn.model.model import Model
from ncsn.noise import GeometricSchedule, num_levels
from ncsn.samplers import (
    Ancestral,
    AnnealedLangevin,
    ConsistentAnnealed,
    DPMSolver,
    Euler,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    Sampler,
    SASolver,
)

__all__ = ["COMPARED", "compared_samplers", "comparison_table"]

# Samplers, each with its number of levels.
COMPARED: list[tuple[Sampler, int]] = [
    (Euler(), 20),
    (Euler(), 50),
    (Heun(), 6),
    (Heun(), 10),
    (Heun(), 18),
    (Heun(churn=5), 10),
    (Heun(churn=10), 25),
    (DPMSolver(), 10),
    (DPMSolver(), 15),
    (DPMSolver(), 20),
    (DPMSolver(eta=1), 20),
    (DPMSolver(eta=2), 20),
    (DPMSolver(eta=3), 10),
    (DPMSolver(eta=3), 20),
    (DPMSolver(eta=3), 1000),
    (SASolver(eta=3), 20),
    (Ancestral(), 20),
    (Ancestral(), 100),
    (EulerMaruyama(), 100),
    (PredictorCorrector(), 50),
    (AnnealedLangevin(), 20),
]

LANGEVIN_NFE = 1000  # of annealed Langevin


def compared_samplers(module: Model) -> list[tuple[Sampler, Tensor]]:
    """Return the samplers and their noise levels (L,), in the range of the model's own.

    The last two are Langevin samplers, on the noise levels of Technique 2. For a model of other
    than Gaussian noise, annealed Langevin is the only one.
    """
    trained = module.schedule.sigmas()
    high, low = trained.max().item(), trained.min().item()
    if high == low:
        raise ValueError(f"--samplers: the model has the single noise level {high:g}")
    near = GeometricSchedule(high, low, num_levels(high, low, math.prod(module.shape))).sigmas()
    eta = 1.3 * (1 - (near[1] / near[0]).item())
    others = [(sampler, module.sigmas_for(sampler, levels)) for sampler, levels in COMPARED]
    steps = max(1, round(LANGEVIN_NFE / len(near)))
    annealed = AnnealedLangevin("auto", steps, denoise=module.gaussian_noise)
    if not module.gaussian_noise:
        return [(annealed, near)]
    return [*others, (ConsistentAnnealed(eta * low**2), near), (annealed, near)]


def comparison_table(
    samplers: list[tuple[Sampler, Tensor]],
    draw: Callable[[Sampler, Tensor], tuple[Tensor, Cost]],
    distance: Callable[[Tensor], float],
    floor: float,
    held_out: int,
    name: str,
) -> Table:
    """Return a table with one row per sampler: its cost and its distance.

    Args:
        samplers: the samplers and their noise levels.
        draw: returns the features of the samples, and their cost.
        distance: returns the distance of features.
        floor: the distance of held-out images.
        held_out: their number.
        name: the name of the distance.
    """
    lines = Table("sampler", "levels", "NFE", "images/s", name, box=box.MARKDOWN)
    for sampler, sigmas in samplers:
        seen, cost = draw(sampler, sigmas)
        nfe, _, rate = cost.named().values()
        numbers = f"{nfe:g}", f"{rate:.2f}", f"{distance(seen):.2f}"
        lines.add_row(str(sampler), str(len(sigmas)), *numbers)
    lines.add_row(f"{held_out:,} held-out images", "", "", "", f"{floor:.2f}")
    return lines
