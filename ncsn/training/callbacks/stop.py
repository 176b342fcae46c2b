"""Signals, which stop a run after its step and save a checkpoint."""

import os
import signal
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ncsn.data.module import SIGNALS
from ncsn.training.callbacks.checkpoints import Checkpoint
from ncsn.training.callbacks.progress import has_stepped
from ncsn.training.processes import REQUEUE, under_slurm

__all__ = ["GracefulStop", "RunStopped"]


HANGUP = getattr(signal, "SIGHUP", None)  # which Windows does not have


class RunStopped(BaseException):
    """The end of a run by a signal, with its last step saved."""


class GracefulStop(Callback):
    """A handler of SIGINT, SIGTERM and SIGHUP that stops the run after its step.

    Under `nohup`, SIGHUP is ignored.

    The step is saved, and no validation follows. A signal interrupts a validation; on
    several devices it finishes first, because all ranks must stop together. A second
    signal ends the process at once if the step is saved, and a third always does.

    `signal` is the first signal, or None; `began` is True once training has begun.

    Args:
        checkpoint: the callback that saves the run.

    Raises:
        RunStopped: from `Trainer.fit`, if a signal ends the run before its last step.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.signal: int | None = None
        self.received = 0
        self.began = False
        self.stopping = False
        self.interruptible = False
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = True

        def note(number: int, _: FrameType | None) -> None:
            saved = self.signal and self.checkpoint.saved == trainer.global_step
            self.signal = self.signal or number
            self.received += 1
            if saved or self.received > 2:
                os._exit(128 + number)  # safe at any time: file writes are atomic
            if self.interruptible:
                raise RunStopped

        for number in (*SIGNALS, REQUEUE) if under_slurm() else SIGNALS:
            if number == HANGUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # as `nohup` asks
            self._previous[number] = signal.signal(number, note)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # All ranks must stop at the same step; they synchronise only every 10 steps.
        together = trainer.world_size > 1
        if not has_stepped(trainer, batch_idx) or (together and trainer.global_step % 10):
            return
        if together:
            signals = torch.tensor(self.signal or 0, device=trainer.strategy.root_device)
            self.signal = int(trainer.strategy.reduce(signals, reduce_op="max")) or None
        # `Checkpoint`, the last callback, saves this step; the run stops at the next
        # batch or validation, once Lightning has logged it. `trainer.should_stop` would
        # log values of an earlier step, and validate once more.
        self.checkpoint.due = self.stopping = self.signal is not None

    def on_train_batch_start(self, *_: Any) -> None:
        if self.stopping:
            raise RunStopped

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.interruptible = self.began and trainer.world_size == 1
        if self.stopping or (self.interruptible and self.signal):  # the step is saved
            raise RunStopped

    def on_validation_end(self, *_: Any) -> None:
        self.interruptible = False

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()  # after `on_train_end`, when `Checkpoint` may still save a step

    def on_exception(self, *_: Any) -> None:
        self.interruptible = False
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
