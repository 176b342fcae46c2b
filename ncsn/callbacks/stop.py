"""Signals: they end a run after its step, with a checkpoint."""

import os
import signal
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ncsn.callbacks.checkpoints import Checkpoint
from ncsn.callbacks.progress import has_stepped
from ncsn.errors import SIGNALS
from ncsn.processes import REQUEUE, under_slurm

__all__ = ["GracefulStop", "ValidationInterrupted"]


class ValidationInterrupted(BaseException):
    """A signal broke off a validation, whose step was saved before it began."""


class GracefulStop(Callback):
    """The first SIGINT, SIGTERM or SIGHUP ends the run after its step, with a checkpoint and without a validation.

    A validation that is under way is broken off, since its step is saved already; on several devices it is finished,
    because they have to end together. A second signal ends the process at once, unless the step is not saved yet; a
    third does in any case. SLURM's warning that the time of a job is nearly up is answered in the same way: Lightning's
    own answer would save in the middle of a step.

    `signal` is its number, or None; `began` tells if training did, with everything that it resumes from in place.

    Args:
        checkpoint: saves the run.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.signal: int | None = None
        self.received = 0
        self.began = False
        self.interruptible = False
        self.stopping = False
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = True

        def note(number: int, _: FrameType | None) -> None:
            saved = self.signal is not None and self.checkpoint.saved == trainer.global_step
            self.signal = self.signal or number
            self.received += 1
            if saved or self.received > 2:
                os._exit(128 + number)  # files are whole or absent, whenever that is
            if self.interruptible:
                trainer.should_stop = True  # if the exception is swallowed, as in a destructor
                raise ValidationInterrupted

        for number in (*SIGNALS, REQUEUE) if under_slurm() else SIGNALS:
            self._previous[number] = signal.signal(number, note)

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
            self.checkpoint.due = self.stopping = True
            trainer.limit_val_batches = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Not at the end of the batch before: Lightning would log the values of an earlier step under that one.
        if self.stopping:
            trainer.should_stop = True
            raise StopIteration  # by which Lightning ends an epoch early

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.interruptible = self.began and trainer.world_size == 1
        if self.interruptible and self.signal is not None:  # it came while the step was saved
            raise ValidationInterrupted

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.interruptible = False

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()  # not at the end of the training, of which `Checkpoint` may have to save the last step

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.interruptible = False
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
