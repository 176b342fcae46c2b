"""Feature extractor trained as a classifier of the data, and its file of weights.

Inception was trained on photographs, and does not suit small grey images. A classifier of the
data's own labels (`ncsn features`) replaces it: a few convolutions, an average over the image,
and 64 features, from which a linear layer predicts the class. Metrics are comparable only if
they were computed with the same file of weights.

Images x are (B, C, H, W) in [0, 1], of at least 8x8 pixels.
"""

import math
import re
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ncsn.data import ImageData
from ncsn.evaluation.extractors import FeatureExtractor
from ncsn.model.files import atomic_write
from ncsn.model.shipped import shipped
from ncsn.noise.checks import expect

__all__ = [
    "Classifier",
    "default_file",
    "holds_classifier",
    "load_classifier",
    "round_to_half",
    "save_classifier",
    "weights_file",
]

SMALLEST = 8  # pixels per side, for two poolings
MOST_BLOCKS = 16  # limits what the metadata of a stranger's file can build
KIND = "Features"  # the class's name when the first files were written
ARGUMENTS = ("channels", "classes", "width", "num_features", "blocks")  # in a file of weights
EARLIER = {"blocks": "0"}  # what files say that were written before there was the argument


class Classifier(FeatureExtractor):
    """A convolutional classifier, whose penultimate activations are the features.

    Args:
        channels: channels of an image.
        classes: the number of classes.
        width: channels of the first convolution.
        num_features: F, the number of features.
        blocks: further convolutions, each with a skip, at the second and the third resolution.

    Raises:
        ValueError: if a number is not positive, or `blocks` not from 0 to 16; when called, if the
            images do not fit.
    """

    metric_names = ("Frechet distance", "kernel distance", "classifier score")

    def __init__(
        self,
        channels: int,
        classes: int,
        width: int = 32,
        num_features: int = 64,
        blocks: int = 0,
    ) -> None:
        super().__init__()
        self.channels, self.classes = channels, classes
        self.width, self.num_features, self.blocks = width, num_features, blocks
        for name in ARGUMENTS[:-1]:
            value = getattr(self, name)
            expect(f"{name} >= 1", value >= 1, self, **{name: value})
        expect(f"blocks from 0 to {MOST_BLOCKS}", 0 <= blocks <= MOST_BLOCKS, self, blocks=blocks)
        self.trained_on = ""  # the data set's name; the accuracy is that of its validation images
        self.accuracy = math.nan
        self.source = "a classifier"
        self.body = nn.Sequential(
            *convolution(channels, width),
            nn.MaxPool2d(2),
            *convolution(width, 2 * width),
            *(Residual(2 * width) for _ in range(blocks)),
            nn.MaxPool2d(2),
            *convolution(2 * width, 2 * width),
            *convolution(2 * width, 4 * width),
            *(Residual(4 * width) for _ in range(blocks)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, num_features),
        )
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(num_features, classes))
        self.to(memory_format=torch.channels_last)  # faster on CPUs

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, F) of images (B, C, H, W)."""
        if x.ndim != 4 or x.shape[1] != self.channels or min(x.shape[2:]) < SMALLEST:
            expected = f"(B, {self.channels}, H, W) of at least {SMALLEST}x{SMALLEST}"
            raise ValueError(f"Classifier: expected images {expected}, got {tuple(x.shape)}")
        features: Tensor = self.body(x)
        return features

    def logits(self, x: Tensor) -> Tensor:
        """Return the log-probabilities of the classes up to a constant: (B, classes)."""
        return self.features_and_logits(x)[1]

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self(x)
        return features, self.head(features)


def convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """Return a convolution that keeps the size, batch normalisation and a ReLU."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


class Residual(nn.Module):
    """A convolution with a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(*convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.branch(x)
        return out


def round_to_half(features: Classifier) -> None:
    """Round the weights to numbers of 16 bits; a larger one, a variance say, becomes the largest."""
    limit = torch.finfo(torch.float16).max
    for weight in chain(features.parameters(), features.buffers()):
        if weight.is_floating_point():
            weight.data = weight.data.clamp(-limit, limit).half().to(weight.dtype)


def save_classifier(features: Classifier, file: Path, half: bool = False) -> None:
    """Write the weights to `file` as safetensors, with the settings as metadata, atomically.

    With `half` they take 16 bits each, to which `round_to_half` has rounded them.
    """
    about = {name: str(getattr(features, name)) for name in (*ARGUMENTS, "trained_on", "accuracy")}
    weights = {name: weight.detach().contiguous() for name, weight in features.state_dict().items()}
    if half:
        weights = {n: w.half() if w.is_floating_point() else w for n, w in weights.items()}
    with atomic_write(file) as partial:
        partial.write_bytes(save(weights, metadata={"kind": KIND, **about}))


def holds_classifier(file: Path) -> bool:
    """Return True if the metadata of a file names a classifier, even if it is damaged."""
    try:
        with safe_open(file, framework="pt") as content:
            return (content.metadata() or {}).get("kind") == KIND
    except (OSError, SafetensorError):
        return False


def load_classifier(path: str | Path) -> Classifier:
    """Return the classifier in a file, on the CPU and in evaluation mode; no code is read.

    Raises:
        ValueError: if the file is missing, damaged, or of another kind.
    """
    path = weights_file(Path(path))
    if not path.is_file():
        raise ValueError(f"features: there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            about = EARLIER | (file.metadata() or {})
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"features: {path} is not a safetensors file, or is damaged ({error})"
        ) from error
    if about.get("kind") != KIND:
        raise ValueError(f"features: {path} holds weights that `ncsn features` did not write")
    try:
        # On "meta", wrong arguments in the metadata allocate no memory.
        with torch.device("meta"):
            features = Classifier(**{name: int(about[name]) for name in ARGUMENTS})
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
            f"features: {path} does not hold the weights of its metadata ({reason})"
        ) from error
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise ValueError(f"features: {path} has weights that are not finite")
    features.source = (
        f"{path} (a classifier of {features.trained_on}, {features.accuracy:.2%} right)"
    )
    return features.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def weights_file(path: Path) -> Path:
    """Return `path`, or the shipped file if it is `checkpoints/NAME` and is missing."""
    there = shipped("checkpoints") / path.name
    named = path == Path("checkpoints", path.name) and not path.exists()
    return there if named and there.is_file() else path


def default_file(data: ImageData) -> Path:
    """Return the default file of a data set, `checkpoints/features_fashion_mnist.safetensors`."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(data).__name__).lower()
    return Path("checkpoints", f"features_{name}.safetensors")
