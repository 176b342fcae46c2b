"""A signal ends a run after its step."""

import os
import signal
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ncsn.callbacks.progress import has_stepped
from ncsn.errors import SIGNALS
from ncsn.processes import REQUEUE, under_slurm

__all__ = ["GracefulStop"]


class GracefulStop(Callback):
    """The first SIGINT, SIGTERM or SIGHUP ends the run after its step, with a checkpoint; a second one at once.

    So does the signal by which SLURM says that a job's time is nearly up, in place of Lightning's own answer to it,
    which saves in the middle of a step.

    `signal` is its number, or None; `began` says whether training did, with all that it goes on from in place.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.began = False
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = True
        for number in (*SIGNALS, REQUEUE) if under_slurm() else SIGNALS:
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
        if trainer.world_size > 1:
            signals = torch.tensor(self.signal or 0, device=trainer.strategy.root_device)
            self.signal = int(trainer.strategy.reduce(signals, reduce_op="max")) or None
        if self.signal is not None:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()
