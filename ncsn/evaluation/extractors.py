"""Feature extractors: one pass of a network over each image, from which all metrics follow.

A feature extractor computes features (B, F) and class logits (B, K) of images (B, C, H, W) in
[0, 1]: a classifier of the data (`ncsn.evaluation.classifier`), or Inception
(`ncsn.evaluation.inception`). States are first clamped, scaled and rounded to the pixels of a
file. Batches may have any size; the results, (N, F) and (N, K), are in the order of the images.

All metrics compare with the features of the training set. These are cached in the user's cache
folder, under the fingerprints of the images and of the extractor's weights.
"""

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ncsn.data import ImageData, to_pixels, to_unit
from ncsn.model.checkpoint_file import tensors_fingerprint, weights_fingerprint
from ncsn.model.contexts import evaluating
from ncsn.model.files import atomic_write
from ncsn.score.precision import without_autocast

__all__ = [
    "FeatureExtractor",
    "Features",
    "cache_folder",
    "extract",
    "extract_all",
    "real_examples",
    "real_images",
    "reference_features",
]


class FeatureExtractor(nn.Module, ABC):
    """A network that computes the features and logits behind all metrics.

    `num_features` is F. `source` names the network and its file. `metric_names` are the names of
    the Frechet distance, the kernel distance and the classifier score computed with it.
    """

    num_features: int
    source: str
    metric_names: ClassVar[tuple[str, str, str]]

    @abstractmethod
    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features (B, F) and the logits (B, K) of images (B, C, H, W) in [0, 1].

        Raises:
            ValueError: if the images have a shape that the network does not take.
        """


class Features(NamedTuple):
    """Features (N, F) and logits (N, K) of N images."""

    features: Tensor
    logits: Tensor


@torch.no_grad()
def extract(extractor: FeatureExtractor, x: Tensor) -> Features:
    """Return the features and logits of states (B, C, H, W), on the extractor's device.

    The extractor runs in evaluation mode and without autocast, and its own mode is restored.

    Raises:
        ValueError: if a state is not finite, or has a shape that the extractor does not take.
    """
    if not x.isfinite().all():
        raise ValueError("images: expected finite values, got NaN or infinity")
    device = next(extractor.parameters()).device
    images = to_unit(to_pixels(x.to(device)))
    with evaluating(extractor), without_autocast(device):
        return Features(*extractor.features_and_logits(images))


def extract_all(extractor: FeatureExtractor, images: Iterable[Tensor]) -> Features:
    """Return the features and logits of a stream of batches of states (B, C, H, W), on the CPU.

    Raises:
        ValueError: as `extract`, and if there is no image.
    """
    seen = [[part.cpu() for part in extract(extractor, x)] for x in images]
    if not seen:
        raise ValueError("images: expected at least one, got none")
    features, logits = (torch.cat(parts) for parts in zip(*seen, strict=True))
    return Features(features, logits)


def real_images(
    data: ImageData, split: str = "train", count: int | None = None, batch_size: int = 100
) -> Iterator[Tensor]:
    """Yield the images of `real_examples` alone.

    Raises:
        ValueError: as `real_examples`.
    """
    return (x for x, _ in real_examples(data, split, count, batch_size))


def real_examples(
    data: ImageData, split: str = "train", count: int | None = None, batch_size: int = 100
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (B, C, H, W) in [0, 1], without flips and dequantisation, and labels (B,).

    Args:
        data: images, prepared and set up.
        split: "train" or "val".
        count: the number of images, a fixed random subset; all of them by default.
        batch_size: images in a batch; the last may have fewer.

    Raises:
        ValueError: if there are fewer images than `count`.
    """
    examples = data.splits[split]
    count = len(examples) if count is None else count
    if not 1 <= count <= len(examples):
        raise ValueError(
            f"real images: expected 1 to {len(examples)} of the split {split}, got {count}"
        )
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))[
        :count
    ].tolist()
    for start in range(0, count, batch_size):
        pixels, label = examples[order[start : start + batch_size]]
        yield to_unit(pixels), label


def reference_features(extractor: FeatureExtractor, data: ImageData) -> Features:
    """Return the features of the training images, in the order of `real_images`.

    They are read from the cache, or computed and cached. If the cache cannot be written, a
    warning says so.

    Raises:
        ValueError: as `extract_all`.
    """
    key = f"{weights_fingerprint(extractor)} {data.splits['train'].fingerprint()}"
    file = cache_folder() / f"looks_{sha256(key.encode()).hexdigest()[:32]}.safetensors"
    found = kept(file, key)
    if found is None:
        console = Console(stderr=True)
        images = track(
            real_images(data, batch_size=100),
            "Extracting features of the training images",
            -(-len(data.splits["train"]) // 100),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        found = extract_all(extractor, images)
        try:
            keep(found, file, key)
        except OSError as error:
            warnings.warn(
                f"the features of the training images are not cached: {error}",
                stacklevel=2,
            )
    return found


def cache_folder() -> Path:
    """Return the cache folder, `ncsn` in $XDG_CACHE_HOME or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "ncsn")


def keep(seen: Features, file: Path, key: str) -> None:
    """Write features to `file`, with their key and checksum, atomically."""
    tensors = {name: tensor.contiguous() for name, tensor in seen._asdict().items()}
    with atomic_write(file) as partial:
        about = {"key": key, "sha256": tensors_fingerprint(tensors)}
        partial.write_bytes(save(tensors, metadata=about))


def kept(file: Path, key: str) -> Features | None:
    """Return the features in `file`, or None if they are missing, damaged or of another key."""
    try:
        with safe_open(file, framework="pt") as content:
            about = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in Features._fields}
    except (OSError, SafetensorError):
        return None
    if about.get("key") != key or about.get("sha256") != tensors_fingerprint(tensors):
        return None
    return Features(**tensors)
