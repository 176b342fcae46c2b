"""What a small classifier sees in a picture: `python -m ncsn.features --data configs/mnist.yaml` trains one.

Small pictures in grey have no Inception network to be judged by. A classifier that is trained on the data's own labels
takes its place: a few convolutions, averaged over the picture, and of that 64 numbers, the features, from which one
linear layer names the class. Two sets of pictures are compared by the features of each (`ncsn.metrics`). Figures are
comparable where the file of weights is the same, and only there.

Pictures x are (B, C, H, W) in [0, 1], of any size from 8 pixels. The command prints the share of the validation
pictures that are named rightly, and keeps it in the file beside the weights.
"""

import math
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from ncsn.data import ImageData
from ncsn.data.option import given_data
from ncsn.errors import answered, fail, hush
from ncsn.files import whole
from ncsn.judging import Judge

__all__ = ["Features", "default_file", "load_features", "main", "save_features", "train_features", "weights_file"]

Precision = Literal["32-true", "bf16-mixed"]

SMALLEST = 8
"""Pixels on a side, so that two poolings leave something to look at."""
NUMBERS = ("channels", "classes", "width", "num_features")
"""The arguments of `Features`, as they are kept in a file of weights."""


class Features(Judge):
    """A convolutional classifier, whose penultimate activations are what it is for.

    Args:
        channels: of a picture.
        classes: that it tells apart.
        width: channels of the first convolution.
        num_features: how many features; torchmetrics reads them off under this name.

    Raises:
        ValueError: where a number is not positive; of a call, where the pictures are not of its channels or too small.
    """

    figures = ("Frechet distance", "kernel distance", "classifier score")

    def __init__(self, channels: int, classes: int, width: int = 32, num_features: int = 64) -> None:
        super().__init__()
        self.channels, self.classes, self.width, self.num_features = channels, classes, width, num_features
        for name in NUMBERS:
            if getattr(self, name) < 1:
                raise ValueError(f"Features: {name} is {getattr(self, name)}, and must be at least 1")
        self.trained_on = ""  # the data set's name, and the share of its validation pictures that are named rightly
        self.accuracy = math.nan
        self.source = "a classifier"
        self.body = nn.Sequential(
            *convolution(channels, width),
            nn.MaxPool2d(2),
            *convolution(width, 2 * width),
            nn.MaxPool2d(2),
            *convolution(2 * width, 2 * width),
            *convolution(2 * width, 4 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, num_features),
        )
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(num_features, classes))
        self.to(memory_format=torch.channels_last)  # faster on CPUs

    def forward(self, x: Tensor) -> Tensor:
        """The features (B, num_features) of pictures (B, C, H, W)."""
        if x.ndim != 4 or x.shape[1] != self.channels or min(x.shape[2:]) < SMALLEST:
            raise ValueError(
                f"Features: pictures have shape {tuple(x.shape)}, and must be (B, {self.channels}, H, W) of at least "
                f"{SMALLEST}x{SMALLEST}"
            )
        features: Tensor = self.body(x)
        return features

    def logits(self, x: Tensor) -> Tensor:
        """The log-probability of each class, but for a constant: (B, classes)."""
        return self.look(x)[1]

    def look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self(x)
        return features, self.head(features)


def convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """A convolution that keeps the size, normalised over the batch, and rectified."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


class Classifier(LightningModule):
    """How features are learned: cross-entropy, AdamW, and one cycle of the learning rate."""

    def __init__(self, features: Features, lr: float) -> None:
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
    data: ImageData, epochs: int = 5, lr: float = 3e-3, accelerator: str = "auto", precision: Precision = "32-true"
) -> Features:
    """Train a classifier on labelled pictures; it knows its data's name and its accuracy on their validation split.

    Args:
        data: made with `labels=True`.
        epochs: passes over the training pictures.
        lr: the learning rate at its highest, for batches of about 64.
        accelerator, precision: as for Lightning's Trainer.

    Raises:
        ValueError: where the data has no labels, or a number is not positive.
    """
    if not data.classes:
        raise ValueError(f"{type(data).__name__}: labels is false, and a classifier is trained on labels")
    if epochs < 1:
        raise ValueError(f"epochs: {epochs}, and must be at least 1")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr: {lr}, and must be positive")
    features = Features(data.shape[0], data.classes)
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
    classifier = Classifier(features, lr)
    quiet(max_epochs=epochs, precision=precision, limit_val_batches=0).fit(classifier, datamodule=data)
    features.trained_on = type(data).__name__
    # In float32, as the features are used, whatever the precision of training.
    features.accuracy = quiet().validate(classifier, datamodule=data, verbose=False)[0]["accuracy"]
    return features.eval()


def save_features(features: Features, file: Path) -> None:
    """Write the weights to `file` as safetensors, with what is known of them as metadata: whole, or not at all."""
    about = {name: str(getattr(features, name)) for name in (*NUMBERS, "trained_on", "accuracy")}
    weights = {name: weight.detach().contiguous() for name, weight in features.state_dict().items()}
    with whole(file) as partial:
        save_file(weights, partial, metadata={"kind": Features.__name__, **about})


def load_features(path: str | Path) -> Features:
    """The features in a file of `save_features`, on the CPU, ready to look: tensors and text are read, never code.

    Raises:
        ValueError: in one line, where the file is missing, damaged, or of something else.
    """
    path = weights_file(Path(path))
    if not path.is_file():
        raise ValueError(f"features: there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"features: {path} is not a safetensors file, or is damaged ({error})") from error
    if about.get("kind") != Features.__name__:
        raise ValueError(f"features: {path} holds other weights than those of `python -m ncsn.features`")
    try:
        with torch.device("meta"):  # no memory is taken for numbers that the weights do not bear out
            features = Features(**{name: int(about[name]) for name in NUMBERS})
        kinds = {name: weight.dtype for name, weight in features.state_dict().items()}
        weights = {name: weight.to(kinds.get(name, weight.dtype)) for name, weight in weights.items()}
        features.load_state_dict(weights, assign=True)
        features.trained_on, features.accuracy = about["trained_on"], float(about["accuracy"])
    except (KeyError, ValueError, TypeError, OverflowError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"features: {path} does not hold the weights that it says ({reason})") from error
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise ValueError(f"features: {path} has weights that are not finite")
    features.source = f"{path} (a classifier of {features.trained_on}, {features.accuracy:.2%} right)"
    return features.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def weights_file(path: Path) -> Path:
    """Where a file of weights is: here, or else beside the package, where some are shipped."""
    shipped = Path(__file__).parent.parent / path
    return shipped if not path.exists() and shipped.is_file() else path


def default_file(data: ImageData) -> Path:
    """Where the features of a data set are kept: `checkpoints/features_fashion_mnist.safetensors`."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(data).__name__).lower()
    return Path("checkpoints", f"features_{name}.safetensors")


def parse(arguments: Sequence[str]) -> Any:
    """The settings, and the data module that they describe, with labels.

    Raises:
        ArgumentError, ValueError: where a setting is wrong.
    """
    parser = ArgumentParser(description="Train a classifier, for its features.", exit_on_error=False)
    parser.add_subclass_arguments(
        ImageData, "data", required=True, help="A configuration, for its `data` section; or the class of a data set."
    )
    parser.add_argument("--epochs", type=int, default=5, help="Passes over the training pictures.")
    parser.add_argument("--lr", type=float, default=3e-3, help="The learning rate at its highest.")
    parser.add_argument("--seed", type=int, default=0, help="Of the weights and the order.")
    parser.add_argument("--accelerator", type=str, default="auto", help="cpu, gpu, ...; auto takes the fastest.")
    parser.add_argument("--precision", type=Precision, default="32-true", help="bf16-mixed is twice as fast on some.")
    parser.add_argument("--out", type=Path | None, default=None, help="checkpoints/features_NAME.safetensors")
    given = given_data(arguments)
    if any(argument.partition("=")[0] == "--data" for argument in given):
        given.append("--data.labels=true")
    settings: Namespace = parser.parse_args(given)
    instantiate = getattr(parser, "instantiate", parser.instantiate_classes)  # its name before jsonargparse 4.49
    return instantiate(settings)


def main() -> None:
    """Train as the command line says, print the accuracy, and keep the weights."""
    hush()
    with answered({ArgumentError: 2, ValueError: 2, MisconfigurationException: 2, OSError: 1}):
        settings = parse(sys.argv[1:])
        if not 0 <= settings.seed < 2**32:
            fail(2, f"seed: {settings.seed} is not a whole number from 0 to {2**32 - 1}")
        file = settings.out or default_file(settings.data)
        seed_everything(settings.seed, verbose=False)
        settings.data.prepare_data()
        features = train_features(settings.data, settings.epochs, settings.lr, settings.accelerator, settings.precision)
        save_features(features, file)
    print(f"{features.trained_on}: {features.accuracy:.2%} of the validation pictures are named rightly.")
    print(f"Features:  {file}  ({file.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
