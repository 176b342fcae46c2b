"""Progress of a run: loss per noise level, throughput, progress bar."""

import math
import time
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import Tensor

from ncsn.noise import DiscreteSchedule
from ncsn.noise.checks import expect
from ncsn.training.module import ScoreModule

__all__ = ["LossPerLevel", "RunProgress", "Throughput"]


BETWEEN_LINES = 30  # seconds, without a terminal


class LossPerLevel(Callback):
    """The training loss per noise level, divided by the dimension of an example.

    Args:
        bins: the number of curves, evenly spaced in log sigma over the schedule. Those of a
            discrete schedule share its levels equally, and are named by a level of theirs.
    """

    def __init__(self, bins: int = 10) -> None:
        expect("bins >= 1", bins >= 1, self, bins=bins)
        self.bins = bins
        # Losses of an unfinished step are held back: a resumed run recomputes them.
        self.held: list[tuple[Tensor, Tensor]] = []
        self.totals = torch.zeros(0)

    def state_dict(self) -> dict[str, Any]:
        return {"totals": self.totals.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.totals = state_dict["totals"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ScoreModule)
        middles, edges = pl_module.schedule.sigmas(), torch.zeros(0)
        if isinstance(pl_module.schedule, DiscreteSchedule):
            groups = middles.flip(0).tensor_split(min(self.bins, len(middles)))
            middles = torch.stack([group[len(group) // 2] for group in groups])
            between = [(low[-1] * high[0]).log() / 2 for low, high in pairwise(groups)]
            edges = torch.tensor(between)
        elif len(middles) > 1:
            logs = middles.log()
            edges = torch.linspace(logs.min().item(), logs.max().item(), self.bins + 1)
            middles, edges = ((edges[1:] + edges[:-1]) / 2).exp(), edges[1:-1]
        self.edges = edges.to(pl_module.device)
        # Tags are zero-padded so that they sort by number.
        self.tags = [f"loss_per_level/sigma={middle:08.4f}" for middle in middles.tolist()]
        # Totals of steps before a resume count in the next logged mean.
        if self.totals.shape != (2, len(self.tags)):
            self.totals = torch.zeros(2, len(self.tags))
        self.totals = self.totals.to(pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.held.append((outputs["sigma"], outputs["losses"]))
        if not has_stepped(trainer, batch_idx):
            return
        sigma, losses = (torch.cat(values) for values in zip(*self.held, strict=True))
        counted = torch.stack([losses, torch.ones_like(losses)])
        self.totals.index_add_(1, torch.bucketize(sigma.log(), self.edges), counted.to(self.totals))
        self.held.clear()
        if is_logging_step(trainer, batch_idx):
            sums, counts = self.totals.tolist()
            means = {tag: s / n for tag, s, n in zip(self.tags, sums, counts, strict=True) if n}
            for logger in trainer.loggers:
                logger.log_metrics(means, trainer.global_step)
            self.totals.zero_()


class Throughput(Callback):
    """Training images per second over all devices, in the progress bar and log."""

    def on_train_start(self, *_: Any) -> None:
        self.images = 0
        self.began: float | None = None

    def on_validation_end(self, *_: Any) -> None:
        self.images, self.began = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if self.began is None:  # the first step may compile the network
            self.began = now
            return
        x = batch if isinstance(batch, Tensor) else batch[0]
        self.images += len(x) * trainer.world_size
        if is_logging_step(trainer, batch_idx):
            pl_module.log("images/s", self.images / (now - self.began), prog_bar=True)
            self.images, self.began = 0, now


class RunProgress(ProgressBar):
    """A single progress bar over the steps of the whole run, with the logged metrics.

    Without a terminal (`nohup`, SLURM) it is a line twice a minute.
    """

    def __init__(self) -> None:
        super().__init__()
        self.printed = 0.0
        remaining = TimeRemainingColumn(elapsed_when_finished=True)
        # Three metrics and 100,000 steps fit in 80 columns.
        columns = BarColumn(10), MofNCompleteColumn(), remaining, "{task.fields[metrics]}"
        self.progress = Progress(*columns)

    def disable(self) -> None:
        self.progress.disable = True

    def enable(self) -> None:
        self.progress.disable = False

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        steps, done = trainer.estimated_stepping_batches, trainer.global_step
        total = steps if math.isfinite(steps) else None
        self.task = self.progress.add_task("", total=total, completed=done, metrics="")
        self.progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.progress.update(self.task, completed=trainer.global_step)
        if is_logging_step(trainer, batch_idx):
            self._show_metrics(trainer)

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        self._show_metrics(trainer)
        self.progress.stop()

    def on_exception(self, *_: Any) -> None:
        self.progress.stop()

    def show_status(self, text: str) -> None:
        """Show a text in place of the metrics, until these are known."""
        self.progress.update(self.task, metrics=text)

    def _show_metrics(self, trainer: Trainer) -> None:
        known = trainer.progress_bar_metrics.items()
        metrics = "  ".join(f"{name} {value:.4g}" for name, value in known)
        self.progress.update(self.task, metrics=metrics)
        now = time.monotonic()
        shown = not (self.progress.disable or self.progress.console.is_terminal)
        if shown and now - self.printed > BETWEEN_LINES:
            self.printed, total = now, self.progress.tasks[self.task].total
            end = f" of {total:,.0f}" if total else ""
            print(f"step {trainer.global_step:,}{end}  {metrics}", flush=True)


def is_logging_step(trainer: Trainer, batch_idx: int) -> bool:
    """Return True if this batch completes a step that is logged."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and has_stepped(trainer, batch_idx) and trainer.global_step % every == 0


def has_stepped(trainer: Trainer, batch_idx: int) -> bool:
    """Return True if this batch completes an optimiser step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
