"""The moving average of the weights, which is validated, sampled and saved."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ncsn.noise.checks import expect

__all__ = ["EMA"]


class EMA(Callback):
    """Exponential moving average of the weights (Song & Ermon, 2020, Technique 5).

    In a checkpoint, `state_dict` is the average and `current_model_state` holds the raw
    weights. Early in training the decay is (1 + n) / (10 + n) after n steps.

    Args:
        decay: in [0, 1); 0.999 averages over about 1,000 steps.

    Raises:
        ValueError: if not 0 <= decay < 1.
    """

    def __init__(self, decay: float = 0.999) -> None:
        expect("0 <= decay < 1", 0 <= decay < 1, self, decay=decay)
        self.decay = decay
        self.step = 0
        self.swapped = False
        self.average: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"latest_update_step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step = state_dict["latest_update_step"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.step, self.swapped = 0, False
            self.average = [weight.detach().clone() for weight in pl_module.parameters()]

    @torch.no_grad()
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.weights: list[Tensor] = list(pl_module.parameters())
        # torch has one kernel for all of them only if both have the same layout.
        self.average = [
            torch.empty_like(weight).copy_(average)
            for weight, average in zip(self.weights, self.average, strict=True)
        ]

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        passed = trainer.global_step - self.step  # 0 while gradients accumulate
        if passed:
            decay = min(self.decay, (1 + self.step) / (10 + self.step)) if self.step else 0.0
            torch._foreach_lerp_(self.average, self.weights, 1 - decay**passed)
            self.step = trainer.global_step

    @torch.no_grad()
    def swap(self, pl_module: LightningModule) -> None:
        """Exchange the module's weights and the average."""
        for average, weight in zip(self.average, pl_module.parameters(), strict=True):
            kept = average.clone()
            average.copy_(weight)
            weight.copy_(kept)
        self.swapped = not self.swapped

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.average and not self.swapped:  # they stay swapped after the run
            self.swap(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self.swap(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.swap(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.swapped:  # a validation was interrupted
            self.swap(pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if not self.average:  # the module was not trained, or is that of a file
            return
        other_of = dict(zip(pl_module.parameters(), self.average, strict=True))
        # A weight that two modules share has a name in each.
        names = pl_module.named_parameters(remove_duplicate=False)
        present = checkpoint["state_dict"]
        other = {**present, **{name: other_of[weight] for name, weight in names}}
        average, current = (present, other) if self.swapped else (other, present)
        checkpoint |= {"state_dict": average, "current_model_state": current, "averaging_state": {}}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != "fit":  # the module has the average of the file
            self.average = []
            return
        names = dict(pl_module.named_parameters())
        self.average = [checkpoint["state_dict"][name].clone() for name in names]
        if "current_model_state" in checkpoint:
            pl_module.load_state_dict(checkpoint["current_model_state"])
