"""How well a checkpoint draws: `python -m ncsn.evaluate CHECKPOINT --features FILE` prints a table.

Its samples are put beside as many held-out pictures by their Frechet distance to the training set, in the features of a
classifier (`ncsn.features`). `--family` does so for every sampler at several lengths, from the same seeds, against the
number of times that each asks for the score: what a picture costs. `--likelihood` adds what held-out pictures take in
bits per dimension.
"""

import math
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from ncsn.checkpoints import load, load_data
from ncsn.data import ImageData
from ncsn.errors import answered
from ncsn.features import Features, load_features
from ncsn.likelihood import bits_per_dim
from ncsn.metrics import FrechetDistance, real_pictures
from ncsn.module import ScoreModule
from ncsn.noise import KarrasSchedule
from ncsn.samplers import (
    Ancestral,
    ConsistentAnnealed,
    DPMSolver,
    EulerMaruyama,
    PredictorCorrector,
    ProbabilityFlow,
    Sampler,
    StochasticHeun,
)
from ncsn.score import Score

__all__ = ["FAMILY", "counted", "drawn", "main"]

FAMILY: list[tuple[Sampler, int]] = [
    (ProbabilityFlow(order=1), 20),
    (ProbabilityFlow(order=1), 50),
    (ProbabilityFlow(order=2), 6),
    (ProbabilityFlow(order=2), 10),
    (ProbabilityFlow(order=2), 18),
    (StochasticHeun(churn=5), 10),
    (StochasticHeun(churn=10), 25),
    (DPMSolver(), 10),
    (DPMSolver(), 15),
    (DPMSolver(), 20),
    (Ancestral(), 20),
    (Ancestral(), 100),
    (EulerMaruyama(), 100),
    (PredictorCorrector(), 50),
]
"""Samplers, and the number of levels of the Karras ladder that each walks."""


def counted(score: Score, calls: list[int]) -> Score:
    """A score that adds 1 to `calls[0]` each time that it is asked."""

    def counting(x: Tensor, sigma: Tensor) -> Tensor:
        calls[0] += 1
        return score(x, sigma)

    return counting


def drawn(
    module: ScoreModule, sampler: Sampler, sigmas: Tensor, distance: FrechetDistance, options: Namespace
) -> tuple[int, float]:
    """Draw the samples of a seed into `distance`: how often the score was asked for each, and the seconds it took."""
    began, calls = time.perf_counter(), [0]
    batches = torch.split(torch.arange(options.num_samples), options.batch_size)
    with Progress(transient=True, disable=not sys.stdout.isatty()) as progress:
        bar = progress.add_task(str(sampler), total=len(batches) * len(sigmas))
        for indices in batches:
            walk = module.samples(
                indices.tolist(), options.seed, sampler=sampler, sigmas=sigmas, guide=lambda s: counted(s, calls)
            )
            for state in walk:
                x = state
                progress.advance(bar)
            distance.update(x, real=False)
    return calls[0] // len(batches), time.perf_counter() - began


def row(name: str, levels: str, calls: str, seconds: float | None, count: int, distance: FrechetDistance) -> list[str]:
    """A line of the table, and `distance` made ready for the next."""
    value = f"{distance.compute().item():.2f}"
    distance.reset()
    return [name, levels, calls, f"{count / seconds:.2f}" if seconds else "", value]


def table(module: ScoreModule, data: ImageData, features: Features, options: Namespace) -> Table:
    """The figures of the model's own sampler, or of all of them, above those of held-out pictures."""
    distance = FrechetDistance(features).to(module.device)
    for x in real_pictures(data):
        distance.update(x, real=True)
    trained = module.schedule.sigmas()
    runs: list[tuple[Sampler, Tensor]] = [(module.sampler, trained)]
    if options.family:
        high, low = trained.max().item(), trained.min().item()
        runs = [(sampler, KarrasSchedule(high, low, levels).sigmas()) for sampler, levels in FAMILY]
        eta = 1.3 * (1 - (trained[1:] / trained[:-1]).min().item())
        runs += [(ConsistentAnnealed(eta * low**2), trained), (module.sampler, trained)]
    lines = Table("sampler", "levels", "score calls", "pictures/s", "Frechet distance", box=box.MARKDOWN)
    for sampler, sigmas in runs:
        calls, seconds = drawn(module, sampler, sigmas, distance, options)
        lines.add_row(*row(str(sampler), str(len(sigmas)), str(calls), seconds, options.num_samples, distance))
    for x in real_pictures(data, "val", options.num_samples):
        distance.update(x, real=False)
    lines.add_row(*row("held-out pictures", "", "", None, options.num_samples, distance))
    return lines


def bits(module: ScoreModule, data: ImageData, count: int) -> str:
    """A sentence on what held-out pictures take, by the model's likelihood at its lowest noise level."""
    (x,) = real_pictures(data, "val", count, batch_size=count)
    sigmas = module.schedule.sigmas()
    low, high = sigmas.min().item(), sigmas.max().item()
    mean, std = x.mean().item(), x.std().item()
    torch.manual_seed(0)
    parts = [
        bits_per_dim(module.denoiser.score, part.to(module.device), low, high, (mean, std), rtol=1e-3, atol=1e-3)
        for part in torch.split(x, 64)
    ]
    each = torch.cat(parts)
    error = each.std().item() / math.sqrt(count)
    return f"{count} held-out pictures take {each.mean().item():.3f} +- {error:.3f} bits/dim at sigma = {low:g}"


def main() -> None:
    """Draw, compare and print."""
    parser = ArgumentParser(description="Compare what a checkpoint draws with held-out pictures.")
    option = parser.add_argument
    option("checkpoint", type=Path, help="a checkpoint of the training command")
    option("--features", type=Path, required=True, help="weights of `python -m ncsn.features`")
    option("--num-samples", type=int, default=500, help="how many are drawn, and compared with as many held out (500)")
    option("--batch-size", type=int, default=250, help="how many are drawn at once (250)")
    option("--seed", type=int, default=0, help="of the samples (0)")
    option("--family", action="store_true", help="every sampler at several lengths, not the model's own alone")
    option("--likelihood", type=int, default=0, metavar="N", help="bits per dimension of N held-out pictures (0)")
    options = parser.parse_args()
    with answered({ValueError: 2, FloatingPointError: 3, RuntimeError: 1, OSError: 1}):
        module, data = load(options.checkpoint), load_data(options.checkpoint)
        if not isinstance(data, ImageData):
            raise ValueError(f"checkpoint: {options.checkpoint} was not trained on pictures")
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        module.to(device)
        data.prepare_data()
        data.setup()
        Console(width=140).print(table(module, data, load_features(options.features), options))
        train = len(data.splits["train"])
        print(f"{options.num_samples} pictures against {train:,} of training, in the features of {options.features}")
        if options.likelihood:
            print(bits(module, data, options.likelihood))


if __name__ == "__main__":
    main()
