"""What a small classifier sees in a picture, and its file of weights.

Small pictures in grey have no Inception network to be judged by. A classifier that is trained on the data's own labels
(`ncsn features`) takes its place: a few convolutions, averaged over the picture, and of that 64 numbers,
the features, from which one linear layer names the class. Two sets of pictures are compared by the features of each
(`ncsn.evaluation.metrics`). Figures are comparable where the file of weights is the same, and only there.

Pictures x are (B, C, H, W) in [0, 1], of any size from 8 pixels.
"""

import math
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ncsn.data import ImageData
from ncsn.evaluation.extractors import FeatureExtractor
from ncsn.model.files import atomic_write
from ncsn.model.shipped import shipped

__all__ = [
    "Classifier",
    "default_file",
    "holds_classifier",
    "load_classifier",
    "save_classifier",
    "weights_file",
]

SMALLEST = 8
"""Pixels on a side, so that two poolings leave something to look at."""
KIND = "Features"  # the class's name when the first files were written
NUMBERS = ("channels", "classes", "width", "num_features")
"""The arguments of `Features`, as they are kept in a file of weights."""


class Classifier(FeatureExtractor):
    """A convolutional classifier, whose penultimate activations are what it is for.

    Args:
        channels: of a picture.
        classes: that it tells apart.
        width: channels of the first convolution.
        num_features: how many features; torchmetrics reads them off under this name.

    Raises:
        ValueError: where a number is not positive; of a call, where the pictures are not of its channels or too small.
    """

    metric_names = ("Frechet distance", "kernel distance", "classifier score")

    def __init__(
        self, channels: int, classes: int, width: int = 32, num_features: int = 64
    ) -> None:
        super().__init__()
        self.channels, self.classes, self.width, self.num_features = (
            channels,
            classes,
            width,
            num_features,
        )
        for name in NUMBERS:
            if getattr(self, name) < 1:
                raise ValueError(
                    f"Classifier: {name} is {getattr(self, name)}, and must be at least 1"
                )
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
                f"Classifier: pictures have shape {tuple(x.shape)}, and must be (B, {self.channels}, H, W) of at least "
                f"{SMALLEST}x{SMALLEST}"
            )
        features: Tensor = self.body(x)
        return features

    def logits(self, x: Tensor) -> Tensor:
        """The log-probability of each class, but for a constant: (B, classes)."""
        return self.features_and_logits(x)[1]

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self(x)
        return features, self.head(features)


def convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """A convolution that keeps the size, normalised over the batch, and rectified."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


def save_classifier(features: Classifier, file: Path) -> None:
    """Write the weights to `file` as safetensors, with what is known of them as metadata: whole, or not at all."""
    about = {name: str(getattr(features, name)) for name in (*NUMBERS, "trained_on", "accuracy")}
    weights = {name: weight.detach().contiguous() for name, weight in features.state_dict().items()}
    with atomic_write(file) as partial:
        save_file(weights, partial, metadata={"kind": KIND, **about})


def holds_classifier(file: Path) -> bool:
    """Return whether a file says that it holds features, be they damaged."""
    try:
        with safe_open(file, framework="pt") as content:
            return (content.metadata() or {}).get("kind") == KIND
    except (OSError, SafetensorError):
        return False


def load_classifier(path: str | Path) -> Classifier:
    """The features in a file of `save_classifier`, on the CPU, ready to look: tensors and text are read, never code.

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
        raise ValueError(
            f"features: {path} is not a safetensors file, or is damaged ({error})"
        ) from error
    if about.get("kind") != KIND:
        raise ValueError(f"features: {path} holds other weights than those of `ncsn features`")
    try:
        with torch.device(
            "meta"
        ):  # no memory is taken for numbers that the weights do not bear out
            features = Classifier(**{name: int(about[name]) for name in NUMBERS})
        kinds = {name: weight.dtype for name, weight in features.state_dict().items()}
        weights = {
            name: weight.to(kinds.get(name, weight.dtype)) for name, weight in weights.items()
        }
        features.load_state_dict(weights, assign=True)
        if not (about["trained_on"].isascii() and about["trained_on"].isidentifier()):
            raise ValueError("trained_on is not the name of a class")
        features.trained_on, features.accuracy = about["trained_on"], float(about["accuracy"])
    except (KeyError, ValueError, TypeError, OverflowError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"features: {path} does not hold the weights that it says ({reason})"
        ) from error
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise ValueError(f"features: {path} has weights that are not finite")
    features.source = (
        f"{path} (a classifier of {features.trained_on}, {features.accuracy:.2%} right)"
    )
    return features.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def weights_file(path: Path) -> Path:
    """Return the path of a file of weights, or of one of its name that comes with the package."""
    there = shipped("checkpoints") / path.name
    return there if not path.exists() and there.is_file() else path


def default_file(data: ImageData) -> Path:
    """Where the features of a data set are kept: `checkpoints/features_fashion_mnist.safetensors`."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(data).__name__).lower()
    return Path("checkpoints", f"features_{name}.safetensors")
