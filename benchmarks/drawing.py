"""Measure the overhead of a sampler: `python -m benchmarks.drawing`.

Sampling from the network of a recipe, with its random streams, is timed against the same number
of bare network evaluations of the same batch. The growth of the peak memory over the rounds is
measured as well.
"""

import argparse
import resource
import statistics
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
    parser = argparse.ArgumentParser(description="Time sampling against bare network evaluations.")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "mnist.yaml")
    parser.add_argument("--batch", type=int, default=64, help="batch size (64)")
    parser.add_argument(
        "--levels", type=int, default=20, help="noise levels, which is the NFE (20)"
    )
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (15)")
    options, others = parser.parse_known_args()
    silence_libraries()
    fixed = ["--config", str(options.config), "--trainer.logger", "false"]
    run = build([*fixed, *others])
    module = run.model.eval()
    network, forward = module.denoiser.network, run.trainer.precision_plugin.forward_context
    sigmas = KarrasSchedule(10, 0.02, options.levels).sigmas()
    x, level = torch.randn(options.batch, *module.shape), torch.tensor(0.5)

    @torch.no_grad()
    def bare() -> None:
        with forward():
            for _ in range(options.levels):
                network(x, level)

    def sampling() -> None:
        with forward():
            for _ in module.model.trajectories(
                range(options.batch), sampler=DPMSolver(eta=2.0), sigmas=sigmas
            ):
                pass

    interleaved({"bare": bare, "sampling": sampling}, 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = interleaved({"bare": bare, "sampling": sampling}, options.rounds)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    rate = options.batch / statistics.median(seconds["sampling"])
    ratio = median_ratio(seconds["sampling"], seconds["bare"])
    print(f"{rate:.1f} images/s; sampling takes {ratio:.3f} of the time of its network evaluations")
    print(f"The peak memory grew by {grown:.1f} MB")


if __name__ == "__main__":
    main()
