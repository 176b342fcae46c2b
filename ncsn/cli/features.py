"""`ncsn features`: train a small classifier, whose features the metrics use.

The accuracy on the validation images is printed, and stored with the weights.
"""

import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from ncsn.cli.data_option import given_data
from ncsn.data import ImageData
from ncsn.evaluation.classifier import Classifier, default_file, holds_classifier, save_classifier
from ncsn.model.files import exclusive_file
from ncsn.training.processes import hold_outputs

__all__ = ["run", "train_features"]

Precision = Literal["32-true", "bf16-mixed"]


class ClassifierTraining(LightningModule):
    """Training of features by cross-entropy, AdamW and a one-cycle learning rate."""

    def __init__(self, features: Classifier, lr: float) -> None:
        super().__init__()
        self.features = features
        self.lr = lr
        self.right = MulticlassAccuracy(features.classes, average="micro")

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, label = batch
        return nn.functional.cross_entropy(self.features.logits(x), label)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        x, label = batch
        self.right(self.features.logits(x), label)
        self.log("accuracy", self.right, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.05)
        steps = int(self.trainer.estimated_stepping_batches)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


def train_features(
    data: ImageData,
    epochs: int = 5,
    lr: float = 3e-3,
    accelerator: str = "auto",
    precision: Precision = "32-true",
) -> Classifier:
    """Train a classifier on labelled images, and record its data set and its accuracy.

    Args:
        data: a data set made with `labels=True`.
        epochs: passes over the training images.
        lr: the peak learning rate, for batches of about 64.
        accelerator, precision: as for Lightning's Trainer.

    Raises:
        ValueError: if the data has no labels, or a number is not positive.
    """
    if not data.classes:
        raise ValueError(
            f"{type(data).__name__}: labels is false, and a classifier is trained on labels"
        )
    if epochs < 1:
        raise ValueError(f"epochs: {epochs}, and must be at least 1")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr: {lr}, and must be positive")
    features = Classifier(data.shape[0], data.classes)
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
    classifier = ClassifierTraining(features, lr)
    quiet(max_epochs=epochs, precision=precision, limit_val_batches=0).fit(
        classifier, datamodule=data
    )
    features.trained_on = type(data).__name__
    # The features are used in float32, whatever the training precision.
    features.accuracy = quiet().validate(classifier, datamodule=data, verbose=False)[0]["accuracy"]
    return features.eval()


def parse(arguments: Sequence[str]) -> Any:
    """Return the settings, and the data module with labels that they describe."""
    parser = ArgumentParser(
        prog="ncsn features",
        description="Train a classifier, whose features the metrics use.",
        exit_on_error=False,
    )
    parser.add_subclass_arguments(
        ImageData,
        "data",
        required=True,
        help="A configuration, for its `data` section; or the class of a data set.",
    )
    parser.add_argument("--epochs", type=int, default=5, help="Passes over the training pictures.")
    parser.add_argument("--lr", type=float, default=3e-3, help="The learning rate at its highest.")
    parser.add_argument("--seed", type=int, default=0, help="Of the weights and the order.")
    parser.add_argument(
        "--accelerator", type=str, default="auto", help="cpu, gpu, ...; auto takes the fastest."
    )
    parser.add_argument(
        "--precision",
        type=Precision,
        default="32-true",
        help="bf16-mixed is twice as fast on some.",
    )
    parser.add_argument(
        "--out", type=Path | None, default=None, help="checkpoints/features_NAME.safetensors"
    )
    given = given_data(arguments)
    if any(argument.partition("=")[0] == "--data" for argument in given):
        given.append("--data.labels=true")
    settings: Namespace = parser.parse_args(given)
    instantiate = getattr(
        parser, "instantiate", parser.instantiate_classes
    )  # the name before jsonargparse 4.49
    return instantiate(settings)


def run(arguments: Sequence[str]) -> None:
    """Train a classifier, print its accuracy, and save its weights."""
    settings = parse(arguments)
    if not 0 <= settings.seed < 2**32:
        raise ValueError(f"seed: expected an integer from 0 to {2**32 - 1}, got {settings.seed}")
    file = settings.out or default_file(settings.data)
    check_out(file)
    with hold_outputs("--out", exclusive_file(file)):
        seed_everything(settings.seed, verbose=False)
        settings.data.prepare_data()
        how = settings.epochs, settings.lr, settings.accelerator, settings.precision
        features = train_features(settings.data, *how)
        save_classifier(features, file)
    print(f"{features.trained_on}: accuracy {features.accuracy:.2%} on the validation images")
    print(f"Features:  {file}  ({file.stat().st_size:,} bytes)")


def check_out(file: Path) -> None:
    """Refuse to replace anything but the weights of a classifier."""
    if file.suffix != ".safetensors":
        raise ValueError(f"--out: expected a name with .safetensors, got {file}")
    if file.exists() and not (file.is_file() and holds_classifier(file)):
        raise ValueError(f"--out: {file} exists and does not hold features; give another name")
