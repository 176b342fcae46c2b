"""`ncsn features`: train a small classifier, whose features the metrics use.

The accuracy on the validation images is printed, and stored with the weights.
"""

import math
import sys
from argparse import Namespace
from functools import partial
from typing import Literal

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from ncsn.cli.from_options import chosen_data
from ncsn.cli.writers import check_replaced
from ncsn.data import ImageData
from ncsn.evaluation.classifier import (
    Classifier,
    default_file,
    holds_classifier,
    round_to_half,
    save_classifier,
)
from ncsn.model.files import exclusive_file
from ncsn.training.optimisers import MuonAdam
from ncsn.training.processes import hold_outputs

__all__ = ["run", "train_features"]

OptimizerName = Literal["AdamW", "MuonAdam"]


class ClassifierTraining(LightningModule):
    """Training of features by cross-entropy and a one-cycle learning rate."""

    def __init__(
        self, features: Classifier, lr: float, shift: int = 0, optimizer: OptimizerName = "AdamW"
    ) -> None:
        super().__init__()
        self.features = features
        self.lr = lr
        self.shift = shift
        self.optimizer = optimizer

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, label = batch
        x = shifted(x, self.shift)
        return nn.functional.cross_entropy(self.features.logits(x), label)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        x, label = batch
        right = self.features.logits(x).argmax(1) == label
        self.log("accuracy", right.float().mean(), batch_size=len(x))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        is_adam = self.optimizer == "AdamW"
        optimizer: torch.optim.Optimizer
        if is_adam:
            optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.05)
        else:
            optimizer = MuonAdam(self.parameters(), lr=self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        # The momentum of MuonAdam is that of one of its groups alone, and stays.
        cycle = OneCycleLR(optimizer, self.lr, steps, cycle_momentum=is_adam)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


def shifted(x: Tensor, most: int) -> Tensor:
    """Return images (B, C, H, W), each moved by up to `most` pixels, with reflected borders."""
    if not most:
        return x
    batch, _, height, width = x.shape
    padded = nn.functional.pad(x, [most] * 4, mode="reflect")
    down, right = torch.randint(2 * most + 1, (2, batch, 1), device=x.device)
    rows = down + torch.arange(height, device=x.device)
    columns = right + torch.arange(width, device=x.device)
    image = torch.arange(batch, device=x.device)[:, None, None]
    moved = padded[image, :, rows[:, :, None], columns[:, None]]  # (B, H, W, C)
    return moved.permute(0, 3, 1, 2)


def train_features(
    data: ImageData,
    epochs: int = 5,
    lr: float = 3e-3,
    accelerator: str = "auto",
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    width: int = 32,
    shift: int = 0,
    blocks: int = 0,
    optimizer: OptimizerName = "AdamW",
    half: bool = False,
) -> Classifier:
    """Train a classifier on labelled images, and record its data set and its accuracy.

    Args:
        data: a data set made with `labels=True`.
        epochs: passes over the training images.
        lr: the peak learning rate, for batches of about 64.
        accelerator, precision: as for Lightning's Trainer.
        width, blocks: as for `Classifier`.
        shift: move each image of a batch by up to so many pixels.
        optimizer: AdamW, or MuonAdam, which may learn more in as many epochs.
        half: round the trained weights to 16 bits.

    Raises:
        ValueError: if the data has no labels, `lr` is not positive, or `shift` is not below the
            side of an image.
    """
    if not data.classes:
        name = type(data).__name__
        raise ValueError(f"{name}: labels is false, and a classifier is trained on labels")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr: {lr}, and must be positive")
    if not 0 <= shift < min(data.shape[1:]):
        side = min(data.shape[1:])
        raise ValueError(f"shift: {shift}, and must be below the side of an image, {side}")
    features = Classifier(data.shape[0], data.classes, width, blocks=blocks)
    shown = sys.stdout.isatty()
    quiet = partial(
        Trainer,
        accelerator=accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=shown,
        callbacks=[RichProgressBar(leave=True)] if shown else [],
    )
    classifier = ClassifierTraining(features, lr, shift, optimizer)
    trainer = quiet(max_epochs=epochs, precision=precision, limit_val_batches=0)
    trainer.fit(classifier, datamodule=data)
    if half:
        round_to_half(features)
    features.trained_on = type(data).__name__
    # The features are used in float32, whatever the training precision.
    features.accuracy = quiet().validate(classifier, datamodule=data, verbose=False)[0]["accuracy"]
    return features.eval()


def run(options: Namespace) -> None:
    """Train a classifier, print its accuracy, and save its weights."""
    data = chosen_data([*options.data, "--data.labels=true"])
    file = options.out or default_file(data)
    check_replaced("--out", file, ".safetensors", holds_classifier)
    with hold_outputs("--out", exclusive_file(file)):
        seed_everything(options.seed, verbose=False)
        data.prepare_data()
        names = ("epochs", "lr", "accelerator", "precision", "width", "shift", "blocks")
        how = {name: getattr(options, name) for name in (*names, "optimizer", "half")}
        features = train_features(data, **how)
        save_classifier(features, file, options.half)
    print(f"{features.trained_on}: accuracy {features.accuracy:.2%} on the validation images")
    print(f"Classifier:  {file}  ({file.stat().st_size:,} bytes)")
