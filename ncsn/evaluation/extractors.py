"""What pictures are judged by: one look of a network at each, of which every figure is made.

A judge gives of pictures (B, C, H, W) in [0, 1] features (B, F) and the logits of classes (B, K), in one pass: a
classifier of the data's own kind (`ncsn.evaluation.classifier`), or Inception (`ncsn.evaluation.inception`). States are
looked at as the pixels that a file would hold: clamped, scaled and rounded. They go by in batches of any sizes, and
what is kept of N of them is two matrices, (N, F) and (N, K), in their order.

The looks at a training set are what all figures refer to. They are kept on the disk, in the user's cache folder, under
the fingerprints of the pictures and of the extractor's weights: for another of either they are made anew.
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
from safetensors.torch import save_file
from torch import Tensor, nn

from ncsn.data import ImageData, to_pixels, to_unit
from ncsn.model.checkpoint_file import tensors_fingerprint, weights_fingerprint
from ncsn.model.files import atomic_write

__all__ = [
    "FeatureExtractor",
    "Features",
    "cache_folder",
    "extract",
    "extract_all",
    "real_images",
    "reference_features",
]


class FeatureExtractor(nn.Module, ABC):
    """A network that pictures are judged by.

    `num_features` is F; `source` says in words which network it is, and of which file; `figures` are the names of what
    is made with it: of the Frechet distance, the kernel distance, and the score of the classes.
    """

    num_features: int
    source: str
    metric_names: ClassVar[tuple[str, str, str]]

    @abstractmethod
    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The features (B, F) and the logits (B, K) of pictures (B, C, H, W) in [0, 1].

        Raises:
            ValueError: where they are not of a shape that the judge takes.
        """


class Features(NamedTuple):
    """What a judge saw in N pictures: features (N, F) and logits (N, K)."""

    features: Tensor
    logits: Tensor


@torch.no_grad()
def extract(extractor: FeatureExtractor, x: Tensor) -> Features:
    """The features (B, F) and the logits (B, K) of states (B, C, H, W), on the device of the extractor's weights.

    The judge looks in evaluation mode, and is left in the mode that it was in.

    Raises:
        ValueError: where a state is not finite, or not of a shape that the judge takes.
    """
    if not x.isfinite().all():
        raise ValueError("judged pictures: they have numbers that are not finite")
    device, mode = next(extractor.parameters()).device, extractor.training
    try:
        return Features(*extractor.eval().features_and_logits(to_unit(to_pixels(x.to(device)))))
    finally:
        extractor.train(mode)


def extract_all(extractor: FeatureExtractor, pictures: Iterable[Tensor]) -> Features:
    """What a judge sees in a stream of batches of states (B, C, H, W): matrices on the CPU.

    Raises:
        ValueError: as `extract` does, and where there is no picture.
    """
    seen = [[part.cpu() for part in extract(extractor, x)] for x in pictures]
    if not seen:
        raise ValueError("judged pictures: there are none")
    features, logits = (torch.cat(parts) for parts in zip(*seen, strict=True))
    return Features(features, logits)


def real_images(
    data: ImageData, split: str = "train", count: int | None = None, batch_size: int = 100
) -> Iterator[Tensor]:
    """Batches of the pictures of a split, each one once, as they are: not mirrored, and not spread over their 1/256.

    Args:
        data: pictures, prepared and set up.
        split: "train" or "val".
        count: how many, drawn without replacement, the same ones every time; all where it is not given.
        batch_size: pictures in a batch, but for the last.

    Raises:
        ValueError: where there are not so many pictures.
    """
    examples = data.splits[split]
    count = len(examples) if count is None else count
    if not 1 <= count <= len(examples):
        raise ValueError(
            f"real pictures: {count} of them, and the split {split} has {len(examples)}"
        )
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))[
        :count
    ].tolist()
    for start in range(0, count, batch_size):
        pixels, _ = examples[order[start : start + batch_size]]
        yield to_unit(pixels)


def reference_features(extractor: FeatureExtractor, data: ImageData) -> Features:
    """What a judge sees in the training pictures, in the order of `real_images`; from the cache, where it is there.

    A cache that cannot be written is done without, with a warning.

    Raises:
        ValueError: as `looks` does.
    """
    key = f"{weights_fingerprint(extractor)} {data.splits['train'].fingerprint()}"
    file = cache_folder() / f"looks_{sha256(key.encode()).hexdigest()[:32]}.safetensors"
    found = kept(file, key)
    if found is None:
        console = Console(stderr=True)
        pictures = track(
            real_images(data, batch_size=100),
            "Looking at the training pictures",
            -(-len(data.splits["train"]) // 100),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        found = extract_all(extractor, pictures)
        try:
            keep(found, file, key)
        except OSError as error:
            warnings.warn(
                f"the looks at the training pictures are not kept for the next time: {error}",
                stacklevel=2,
            )
    return found


def cache_folder() -> Path:
    """Where looks are kept: `ncsn` in $XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "ncsn")


def keep(seen: Features, file: Path, key: str) -> None:
    """Write looks to `file`, with the key and a sum by which they are known again: whole, or not at all."""
    tensors = {name: tensor.contiguous() for name, tensor in seen._asdict().items()}
    with atomic_write(file) as partial:
        save_file(tensors, partial, metadata={"key": key, "sha256": tensors_fingerprint(tensors)})


def kept(file: Path, key: str) -> Features | None:
    """The looks in `file`, or None where there are none of the key, or they are damaged."""
    try:
        with safe_open(file, framework="pt") as content:
            about = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in Features._fields}
    except (OSError, SafetensorError):
        return None
    if about.get("key") != key or about.get("sha256") != tensors_fingerprint(tensors):
        return None
    return Features(**tensors)
