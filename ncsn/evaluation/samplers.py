"""Samplers side by side: the Frechet distance of each at several lengths, against the calls that a picture costs."""

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
]
"""Samplers, and the number of levels of the Karras ladder that each walks."""

LANGEVIN_NFE = 1000
"""Of the network, for annealed Langevin."""


def compared_samplers(module: Model) -> list[tuple[Sampler, Tensor]]:
    """The samplers and their ladders (L,), between the ends of the model's own; last, those of Langevin.

    They walk the levels of Technique 2, annealed Langevin in about a thousand steps.
    """
    trained = module.schedule.sigmas()
    high, low = trained.max().item(), trained.min().item()
    near = GeometricSchedule(high, low, num_levels(high, low, math.prod(module.shape))).sigmas()
    eta = 1.3 * (1 - (near[1] / near[0]).item())
    karras = [(sampler, module.sigmas_for(sampler, levels)) for sampler, levels in COMPARED]
    annealed = AnnealedLangevin("auto", max(1, round(LANGEVIN_NFE / len(near))))
    return [*karras, (ConsistentAnnealed(eta * low**2), near), (annealed, near)]


def comparison_table(
    samplers: list[tuple[Sampler, Tensor]],
    draw: Callable[[Sampler, Tensor], tuple[Tensor, Cost]],
    distance: Callable[[Tensor], float],
    floor: float,
    name: str,
) -> Table:
    """A row for each sampler and ladder: what it costs, and how far it comes.

    Args:
        samplers: with their ladders.
        draw: gives what is seen in the samples of both, and what they took.
        distance: of what is seen.
        floor: the distance of held-out pictures.
        name: of the distance.
    """
    lines = Table("sampler", "levels", "NFE", "images/s", name, box=box.MARKDOWN)
    for sampler, sigmas in samplers:
        seen, cost = draw(sampler, sigmas)
        calls, _, rate = cost.named().values()
        numbers = f"{calls:g}", f"{rate:.2f}", f"{distance(seen):.2f}"
        lines.add_row(str(sampler), str(len(sigmas)), *numbers)
    lines.add_row("held-out pictures", "", "", "", f"{floor:.2f}")
    return lines
