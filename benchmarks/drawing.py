"""What a sampler adds to the network's own time: `python -m benchmarks.drawing`.

A walk of a recipe's network, with its streams of noise, against as many bare calls of the network on the same batch;
and how much the most memory that the process ever held has grown from its first walks to its last.
"""

import argparse
import resource
import statistics
import sys
from pathlib import Path

import torch

from benchmarks import ROOT
from benchmarks.sidebyside import interleaved, median_ratio
from ncsn.cli.errors import silence_libraries
from ncsn.noise import KarrasSchedule
from ncsn.samplers import DPMSolver
from ncsn.training.run import build


def main() -> None:
    """Measure, and print the ratio."""
    parser = argparse.ArgumentParser(
        description="A sampler's walk against bare calls of the network."
    )
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "mnist.yaml")
    parser.add_argument("--batch", type=int, default=64, help="pictures in a batch (64)")
    parser.add_argument("--levels", type=int, default=20, help="and calls of the network (20)")
    parser.add_argument("--rounds", type=int, default=15, help="(15)")
    options, others = parser.parse_known_args()
    silence_libraries()
    sys.argv = ["train.py", "--config", str(options.config), "--trainer.logger", "false", *others]
    run = build()
    module = run.model.eval()
    network, forward = module.denoiser.network, run.trainer.precision_plugin.forward_context
    sigmas = KarrasSchedule(10, 0.02, options.levels).sigmas()
    x, level = torch.randn(options.batch, *module.shape), torch.tensor(0.5)

    @torch.no_grad()
    def bare() -> None:
        with forward():
            for _ in range(options.levels):
                network(x, level)

    def walk() -> None:
        with forward():
            for _ in module.model.trajectories(
                range(options.batch), sampler=DPMSolver(eta=2.0), sigmas=sigmas
            ):
                pass

    interleaved({"bare": bare, "walk": walk}, 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = interleaved({"bare": bare, "walk": walk}, options.rounds)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    rate = options.batch / statistics.median(seconds["walk"])
    print(
        f"{rate:.1f} pictures/s; a walk takes {median_ratio(seconds['walk'], seconds['bare']):.3f} of its bare calls"
    )
    print(f"The most memory held grew by {grown:.1f} MB")


if __name__ == "__main__":
    main()
