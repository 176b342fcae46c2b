"""Measure the overhead of a training step: `python -m benchmarks.step`.

The training command trains a recipe, with averaged weights, logs and checks. After each round
of steps, a bare loop takes the same number of steps, with the same network, batches, objective,
optimiser and precision, and nothing else. The result is the ratio of their images/s.
"""

import argparse
import os
import statistics
import tempfile
import time
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks import ROOT
from ncsn.cli.errors import silence_libraries
from ncsn.training.run import build, check, fit


class Alternate(Callback):
    """Alternation between rounds of the trainer and rounds of a bare loop."""

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
        """Take the steps of a round without a framework."""
        data, objective, schedule = trainer.datamodule, module.objective, module.schedule
        examples = data.splits["train"]
        for _ in range(self.steps):
            x, label = examples[torch.randint(len(examples), (data.batch_size,))]
            x = x.float() / 255
            score = partial(self.module.score, label=label) if data.labels else self.module.score
            with trainer.precision_plugin.forward_context():
                loss = objective(score, x, schedule.sample(x)).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


def main() -> None:
    """Train in turns, and print the median of the ratios of ten rounds each."""
    parser = argparse.ArgumentParser(
        description="Compare the training step of Lightning with a bare loop."
    )
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "mnist.yaml")
    parser.add_argument("--steps", type=int, default=5, help="steps in a round (5)")
    parser.add_argument(
        "--rounds", type=int, default=250, help="timed rounds, after one round of warm-up (250)"
    )
    options, others = parser.parse_known_args()
    silence_libraries()
    alternate = Alternate(options.steps)
    total = options.steps * (options.rounds + 1)
    fixed = [
        "--config",
        str(options.config.resolve()),
        "--trainer.max_steps",
        str(total),
        "--trainer.limit_val_batches",
        "0",
        "--samples.count",
        "0",
    ]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run = build([*fixed, *others])
        run.trainer.callbacks.append(alternate)
        check(run)
        fit(run)
        os.chdir(ROOT)
    # A ratio covers ten rounds, which are as many steps as from one log entry to the next.
    theirs, bare = (
        [sum(ten) for ten in batched(seconds[1:], 10)]
        for seconds in (alternate.theirs, alternate.bare)
    )
    ratio = statistics.median(one / other for one, other in zip(bare, theirs, strict=True))
    images = 10 * options.steps * run.datamodule.batch_size
    rates = [images / statistics.median(seconds) for seconds in (theirs, bare)]
    print(f"training command {rates[0]:.0f} images/s, bare loop {rates[1]:.0f}: ratio {ratio:.3f}")


def batched(values: list[float], count: int) -> list[list[float]]:
    """Split the values into lists of `count`, and drop an incomplete last one."""
    return [values[i : i + count] for i in range(0, len(values) - count + 1, count)]


if __name__ == "__main__":
    main()
