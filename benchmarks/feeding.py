"""Measure the data loading rate: `python -m benchmarks.feeding`.

It uses one core, and a data set that is held in memory.
"""

import argparse
import statistics
from pathlib import Path

import torch

from benchmarks import ROOT
from benchmarks.sidebyside import interleaved
from ncsn.cli.errors import silence_libraries
from ncsn.training.run import build


def main() -> None:
    """Measure, and print the rate."""
    parser = argparse.ArgumentParser(
        description="Time the batches of a data set in memory, as training loads them."
    )
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "mnist.yaml")
    parser.add_argument("--rounds", type=int, default=5, help="epochs (5)")
    options, others = parser.parse_known_args()
    silence_libraries()
    torch.set_num_threads(1)
    fixed = ["--config", str(options.config), "--trainer.logger", "false"]
    data = build([*fixed, *others]).datamodule
    data.prepare_data()
    data.setup()
    loader, count = data.train_dataloader(), 0

    def epoch() -> None:
        nonlocal count
        count = 0
        for batch in loader:
            x, _ = data.on_after_batch_transfer(batch, 0)
            count += len(x)

    seconds = interleaved({"epoch": epoch}, options.rounds)["epoch"]
    print(
        f"{count / statistics.median(seconds):,.0f} images/s on one core, in batches of {data.batch_size}"
    )


if __name__ == "__main__":
    main()
