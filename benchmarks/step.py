"""What Lightning and this framework add to a training step: `python -m benchmarks.step`.

A recipe is trained by the training command as it is, with its averaged weights, its log and its guards. Between rounds
of its steps it makes room for as many steps of a bare loop: the same network, batches, objective, optimiser and
precision, and nothing else. Printed is how many images a second the first trains as a part of those of the second.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks import ROOT
from ncsn.cli.errors import silence_libraries
from ncsn.training.run import build, check, fit


class Alternate(Callback):
    """Rounds of the trainer's steps, each followed by one of the bare loop's."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.theirs: list[float] = []
        self.bare: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.module = deepcopy(pl_module.denoiser)
        self.optimizer = pl_module.optimizer(self.module.parameters())
        self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.steps:
            return
        now = time.perf_counter()
        self.theirs.append(now - self.began)
        self.loop(trainer, pl_module)
        self.bare.append(time.perf_counter() - now)
        self.began = time.perf_counter()

    def loop(self, trainer: Trainer, module: Any) -> None:
        """As many steps without a framework."""
        data, objective, schedule = trainer.datamodule, module.objective, module.schedule
        values = data.splits["train"].values
        for _ in range(self.steps):
            x = values[torch.randint(len(values), (data.batch_size,))].float() / 255
            with trainer.precision_plugin.forward_context():
                loss = objective(self.module.score, x, schedule.sample(x)).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


def main() -> None:
    """Train in turns, and print the ratio: the median over the figures, each of ten rounds."""
    parser = argparse.ArgumentParser(description="Lightning's training step against a bare loop's.")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "mnist.yaml")
    parser.add_argument(
        "--steps", type=int, default=5, help="in a round (5; ten rounds make one figure)"
    )
    parser.add_argument(
        "--rounds", type=int, default=250, help="after a first one that does not count (250)"
    )
    options, others = parser.parse_known_args()
    silence_libraries()
    alternate = Alternate(options.steps)
    total = options.steps * (options.rounds + 1)
    fixed = [
        "--trainer.max_steps",
        str(total),
        "--trainer.val_check_interval",
        str(10 * total),
        "--samples.count",
        "0",
    ]
    sys.argv = ["train.py", "--config", str(options.config.resolve()), *fixed, *others]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run = build()
        run.trainer.callbacks.append(alternate)
        check(run)
        fit(run)
        os.chdir(ROOT)
    # Of ten rounds at a time: as many steps as from one that is logged to the next.
    theirs, bare = (
        [sum(ten) for ten in batched(seconds[1:], 10)]
        for seconds in (alternate.theirs, alternate.bare)
    )
    ratio = statistics.median(one / other for one, other in zip(bare, theirs, strict=True))
    images = 10 * options.steps * run.datamodule.batch_size
    rates = [images / statistics.median(seconds) for seconds in (theirs, bare)]
    print(f"training command {rates[0]:.0f} images/s, bare loop {rates[1]:.0f}: ratio {ratio:.3f}")


def batched(values: list[float], count: int) -> list[list[float]]:
    """`count` at a time; what is left over at the end is left out."""
    return [values[i : i + count] for i in range(0, len(values) - count + 1, count)]


if __name__ == "__main__":
    main()
