"""Averaged weights, which validate, draw and are stored as the model."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

__all__ = ["EMA"]

TAKEN = 10
"""Of the steps that an average is over, about so many are taken in."""
MOST_PASSED = 10
"""Steps from one that is taken in to the next, however long the average."""


class EMA(WeightAveraging):
    """Exponential moving average of the weights (Song & Ermon, 2020, Technique 5).

    It validates, draws and is stored as the model: a checkpoint's `state_dict` is the average, `current_model_state`
    the weights that the optimiser works on. Early on, when there is little to average, the decay is (1 + n) / (10 + n)
    after n steps. Weights are much like those of the step before: an average over 1 / (1 - decay) steps takes in about
    ten of them, and every tenth where it is over more than a hundred; up to nine of the newest are not in it yet.

    Args:
        decay: the weight of the past in each step; 0.999 averages over about the last 1,000 steps.

    Raises:
        ValueError: where `decay` is not from 0 to below 1.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA: decay is {decay}, and must be from 0 to below 1")
        super().__init__(use_buffers=False)
        self.decay = decay
        self._swapped = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._average_model is not None
        self._averaged: list[Tensor] = list(self._average_model.parameters())
        self._current: list[Tensor] = list(pl_module.parameters())

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # In place of the parent's, which walks through the modules of both models for their parameters: some per cent
        # of a small step.
        past = self._latest_update_step
        decay = min(self.decay, (1 + past) / (10 + past)) if past else 0.0
        passed = trainer.global_step - past
        if (
            passed
            and trainer.global_step % max(1, min(MOST_PASSED, round(1 / (1 - decay) / TAKEN))) == 0
        ):
            torch._foreach_lerp_(self._averaged, self._current, 1 - decay**passed)
            self._latest_update_step = trainer.global_step

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

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        # The validation that was broken off would have swapped back.
        if self._swapped:
            self._swap_models(pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._swapped:
            average, current = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint["state_dict"], checkpoint["current_model_state"] = average, current
