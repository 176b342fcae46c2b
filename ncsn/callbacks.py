"""What a training run shows and keeps: averaged weights, checkpoints, grids of samples, loss per noise level, speed."""

import os
import signal
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from ncsn.checkpoints import numbered
from ncsn.data import pixel_grid, save_grid
from ncsn.errors import SIGNALS
from ncsn.module import ScoreModule
from ncsn.plots import plot, save_figure

__all__ = ["EMA", "Checkpoint", "GracefulStop", "LossPerLevel", "RunProgress", "SampleGrid", "Throughput"]


class EMA(WeightAveraging):
    """Exponential moving average of the weights (Song & Ermon, 2020, Technique 5).

    It validates, draws and is stored as the model: a checkpoint's `state_dict` is the average, `current_model_state`
    the weights that the optimiser works on. Early on, when there is little to average, the decay is (1 + n) / (10 + n)
    after n steps.

    Args:
        decay: the weight of the past in each step; 0.999 averages over about the last 1,000 steps.

    Raises:
        ValueError: where `decay` is not from 0 to below 1.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA: decay is {decay}, and must be from 0 to below 1")
        super().__init__(use_buffers=False, multi_avg_fn=self._average)
        self.decay = decay
        self._swapped = False

    def _average(self, averaged: Sequence[Tensor], current: Sequence[Tensor], _: Tensor | int) -> None:
        step = self._latest_update_step
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(averaged), list(current), 1 - decay)

    def _swap_models(self, pl_module: LightningModule) -> None:
        super()._swap_models(pl_module)
        self._swapped = not self._swapped

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._swapped = False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._swapped:  # as it is when the run has ended
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Swapped, not overwritten as by the parent: what is saved after the end has both sets of weights, too.
        self._swap_models(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # The validation that was broken off would have swapped back.
        if self._swapped:
            self._swap_models(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._swapped:
            average, current = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint["state_dict"], checkpoint["current_model_state"] = average, current


class Checkpoint(ModelCheckpoint):
    """The newest checkpoints as step=N.ckpt: one every so many steps, and one of the exact end of the run.

    Args:
        dirpath: the folder.
        every: steps from one to the next.
        keep: how many are kept.

    Raises:
        ValueError: where `every` or `keep` is not positive.
    """

    def __init__(self, dirpath: str | None = None, every: int = 1000, keep: int = 2) -> None:
        for name, value in {"every": every, "keep": keep}.items():
            if value < 1:
                raise ValueError(f"Checkpoint: {name} is {value}, and must be at least 1")
        super().__init__(
            dirpath=dirpath,
            filename="{step}",
            monitor="step",
            mode="max",
            save_top_k=keep,
            every_n_train_steps=every,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Believe nothing that a file says of others, which would be removed: what the folder has is what there is."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # A resumed run saves its first step no more: it is in the file that it was resumed from.
        step = self._last_global_step_saved = trainer.global_step
        known = {file: number for file, number in numbered(str(self.dirpath)).items() if number <= step}
        kept = list(known.items())[: self.save_top_k]
        for file in known.keys() - dict(kept).keys():  # a run that was killed between writing and removing left it
            file.unlink(missing_ok=True)
        self.best_k_models = {str(file): torch.tensor(number) for file, number in kept}
        if kept:
            self.kth_best_model_path, self.kth_value = str(kept[-1][0]), torch.tensor(kept[-1][1])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # `every` need not divide the run: where it ends, whatever ended it, its last step is saved too.
        if trainer.fit_loop.done and self._last_global_step_saved != trainer.global_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


class GracefulStop(Callback):
    """The first SIGINT, SIGTERM or SIGHUP ends the run after its step, with a checkpoint; a second one at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(128 + number)  # files are whole or absent, whenever that is
        self.signal = number

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # All ranks end at the same step; they ask each other now and then, since asking costs them time.
        asking = trainer.world_size == 1 or trainer.global_step % 10 == 0
        if not (asking and has_stepped(trainer, batch_idx)):
            return
        if trainer.strategy.reduce_boolean_decision(self.signal is not None, all=False):
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()


class SampleGrid(Callback):
    """Draws samples at each validation, from the same start: to TensorBoard, and to samples/ in its folder.

    It draws with the averaged weights, which `EMA` puts in place for the time of a validation: list it before `EMA`.

    Args:
        count: how many pictures; 0 draws none.
        seed: of the start and of the walk.
    """

    def __init__(self, count: int = 16, seed: int = 0) -> None:
        if count < 0:
            raise ValueError(f"SampleGrid: count is {count}, and must be at least 0")
        self.count = count
        self.seed = seed

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ScoreModule)
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not (self.count and loggers and trainer.is_global_zero):
            return
        with torch.random.fork_rng([pl_module.device] if pl_module.device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            try:
                with trainer.precision_plugin.forward_context():
                    *_, x = pl_module.draw(pl_module.start(self.count))
            except FloatingPointError as error:  # as of a model that has yet to learn
                warnings.warn(
                    f"the samples at step {trainer.global_step} diverged, and are not shown: {error}", stacklevel=2
                )
                return
        figure = plot(x.cpu(), pl_module, trainer.datamodule)  # type: ignore[attr-defined]
        for logger in loggers:
            file = Path(logger.log_dir, "samples", f"step={trainer.global_step:07d}.png")
            if figure is not None:
                logger.experiment.add_figure("samples", figure, trainer.global_step)
                save_figure(figure, file)
            elif len(pl_module.shape) == 3:
                logger.experiment.add_image("samples", pixel_grid(x), trainer.global_step)
                save_grid(x, file)


class LossPerLevel(Callback):
    """The training loss in bins of log sigma, on one chart: where does the model still learn?

    Args:
        bins: how many, evenly spaced in log sigma over the schedule's ladder.
    """

    def __init__(self, bins: int = 10) -> None:
        if bins < 1:
            raise ValueError(f"LossPerLevel: bins is {bins}, and must be at least 1")
        self.bins = bins

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ScoreModule)
        ladder = pl_module.schedule.sigmas()
        middles = ladder
        self.edges = ladder.new_zeros(0).to(pl_module.device)
        if len(ladder) > 1:
            edges = torch.linspace(ladder.log().min().item(), ladder.log().max().item(), self.bins + 1)
            middles = ((edges[1:] + edges[:-1]) / 2).exp()
            self.edges = edges[1:-1].to(pl_module.device)
        # The middle of the bin names its curve; padded, so that the names sort as the numbers do.
        self.tags = [f"loss_per_level/sigma={middle:08.4f}" for middle in middles.tolist()]
        self.totals = torch.zeros(2, len(self.tags), device=pl_module.device)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_custom_scalars_multilinechart(self.tags, "loss", "loss per noise level")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        bins = torch.bucketize(outputs["sigma"].log(), self.edges)
        counted = torch.stack([outputs["losses"], torch.ones_like(outputs["losses"])])
        self.totals.index_add_(1, bins, counted.to(self.totals))
        if is_logging_step(trainer, batch_idx):
            sums, counts = self.totals.tolist()
            means = {tag: s / n for tag, s, n in zip(self.tags, sums, counts, strict=True) if n}
            for logger in trainer.loggers:
                logger.log_metrics(means, trainer.global_step)
            self.totals.zero_()


class Throughput(Callback):
    """Training pictures a second, over all devices, in the progress bar and in the log."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.images, self.began = 0, time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.images, self.began = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch[0]) * trainer.world_size
        if is_logging_step(trainer, batch_idx):
            now = time.perf_counter()
            pl_module.log("images/s", self.images / (now - self.began), prog_bar=True)
            self.images, self.began = 0, now


class RunProgress(RichProgressBar):
    """One bar over the steps of the whole run, in place of one an epoch."""

    @property
    def total_train_batches(self) -> int | float:
        return self.trainer.estimated_stepping_batches

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.train_progress_bar_id is None:
            super().on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, trainer.global_step - 1)


def is_logging_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a step whose figures are logged has just ended, with the last of the batches that it accumulates."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and has_stepped(trainer, batch_idx) and trainer.global_step % every == 0


def has_stepped(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a batch was the last of those whose gradients are accumulated for a step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
