"""Compare the objectives: `python -m benchmarks.compare` prints the table of docs/theory.md.

Each objective trains the same small perceptron on the same mixture of Gaussians, with the
same data in the same order. The learned score is compared with the exact score by the Fisher
divergence at a noise level,

    F(sigma) = 1/2 E ||score(x~, sigma) - grad log p_sigma(x~)||^2,    x~ ~ p_sigma,

which is a sum over a lattice, divided by the divergence of a zero score: 1 means that nothing
was learned, 0 that the score is exact.
"""

import time
from argparse import ArgumentParser

import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from ncsn.cli.errors import fail
from ncsn.networks import MLP
from ncsn.noise import GeometricSchedule
from ncsn.objectives import (
    DenoisingScoreMatching,
    EDMScoreMatching,
    ExplicitScoreMatching,
    FiniteDifferenceSlicedScoreMatching,
    ImplicitScoreMatching,
    Objective,
    SlicedScoreMatching,
    Weighted,
)
from ncsn.score import EDMDenoiser, Score
from ncsn.score.densities import Density, GaussianMixture

__all__ = ["OBJECTIVES", "TARGET", "divergence", "learn"]

TARGET = GaussianMixture(
    torch.tensor([0.5, 0.3, 0.2]),
    torch.tensor([[-1.5, 0.0], [1.0, 1.0], [1.0, -1.5]]),
    torch.tensor([[0.6], [0.4], [0.3]]),
)
DATA_STD = 1.3
SCHEDULE = GeometricSchedule(sigma_max=4, sigma_min=0.1, levels=20)
LEVELS = (0.1, 0.3, 1.0, 4.0)
OBJECTIVES: dict[str, Objective] = {
    "explicit": Weighted(ExplicitScoreMatching(TARGET)),
    "implicit, exact trace": Weighted(ImplicitScoreMatching()),
    "implicit, Hutchinson's trace": Weighted(ImplicitScoreMatching(probes=1)),
    "sliced": Weighted(SlicedScoreMatching(1, "gaussian", variance_reduced=False)),
    "sliced, variance reduced": Weighted(SlicedScoreMatching(1, "gaussian")),
    "sliced, finite differences": Weighted(FiniteDifferenceSlicedScoreMatching(1, "gaussian")),
    "denoising": DenoisingScoreMatching(),
    "denoising, EDM's weight": EDMScoreMatching(DATA_STD),
}


def learn(objective: Objective, steps: int, seed: int = 0) -> Score:
    """Train the perceptron on `TARGET` for `steps` steps of 512 points, and return its score."""
    torch.manual_seed(seed)
    denoiser = EDMDenoiser(MLP(features=2, width=64), data_mean=0, data_std=DATA_STD)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=3e-3)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        x = TARGET.sample(512)
        loss = objective(denoiser.score, x, SCHEDULE.sample(x)).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        rate.step()
    return denoiser.score


@torch.no_grad()
def divergence(
    score: Score, density: Density, sigma: float, reach: float = 6, nodes: int = 121
) -> float:
    """Return the Fisher divergence from the exact score of a density in the plane.

    The result is a share of the divergence of a zero score.

    Args:
        score: the score to compare.
        density: the density with the exact score.
        sigma: the noise level.
        reach: half the side of the lattice, to which 4 sigma are added.
        nodes: points of the lattice on a side.
    """
    axis = torch.linspace(-reach - 4 * sigma, reach + 4 * sigma, nodes)
    x, level = torch.cartesian_prod(axis, axis), torch.tensor(sigma)
    weight, exact = density.log_prob(x, level).softmax(0), density.score(x, level)

    def mean_square(difference: Tensor) -> Tensor:
        return (weight * difference.square().sum(1)).sum()

    return (mean_square(score(x, level) - exact) / mean_square(exact)).item()


def main() -> None:
    """Train with each objective, and print the table."""
    parser = ArgumentParser(
        description="Train the same perceptron with every objective, and compare the scores."
    )
    parser.add_argument("--steps", type=int, default=3000, help="training steps (3000)")
    steps = parser.parse_args().steps
    if steps < 1:
        fail(2, f"expected --steps >= 1, got {steps}")
    table = Table(
        "objective", "seconds", *(f"sigma = {sigma:g}" for sigma in LEVELS), box=box.MARKDOWN
    )
    for name in track(OBJECTIVES, "Training", transient=True):
        began = time.perf_counter()
        score = learn(OBJECTIVES[name], steps)
        seconds = time.perf_counter() - began
        shares = (divergence(score, TARGET, sigma) for sigma in LEVELS)
        table.add_row(name, f"{seconds:.0f}", *(f"{100 * share:.2f} %" for share in shares))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
