"""Measure the start-up time: `python -m benchmarks.startup`.

The CPU time of `train.py` with one step and one checkpoint is compared with that of a bare
Lightning script with one step of a linear layer, as processes in turns. The time of
`sample.py --help` is printed as well.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import ROOT

BARE = """
import torch
from lightning.pytorch import LightningModule, Trainer

class Linear(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 64)

    def training_step(self, batch, index):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())

Trainer(max_steps=1).fit(Linear(), torch.utils.data.DataLoader(torch.randn(256, 64), 64))
"""


def cpu_seconds(*command: str) -> float:
    """Return the user and system time of a process and its children, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        before = os.times()
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        after = os.times()
    return (
        after.children_user - before.children_user + after.children_system - before.children_system
    )


def main() -> None:
    """Measure, and print the difference."""
    parser = argparse.ArgumentParser(
        description="Compare the start-up time of training with a bare Lightning script."
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="timed rounds, after one round of warm-up (5)"
    )
    rounds = parser.parse_args().rounds
    fixed = "--config", str(ROOT / "configs" / "digits.yaml"), "--trainer.max_steps", "1"
    ours, bare, shown = [], [], []
    for _ in range(rounds + 1):
        ours.append(cpu_seconds(sys.executable, str(ROOT / "train.py"), *fixed))
        bare.append(cpu_seconds(sys.executable, "-c", BARE))
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, str(ROOT / "sample.py"), "--help"], check=True, capture_output=True
        )
        shown.append(time.perf_counter() - began)
    later = statistics.median(a - b for a, b in zip(ours[1:], bare[1:], strict=True))
    print(
        f"train.py {statistics.median(ours[1:]):.2f} CPU-s to one step, {later:+.2f} over a bare Lightning script"
    )
    print(f"sample.py --help {statistics.median(shown[1:]):.2f} s")


if __name__ == "__main__":
    main()
