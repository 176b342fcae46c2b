"""Data: pictures as tensors. The range [0, 1], and the way back to pixels, live here and only here.

A data module holds (or streams) pictures as uint8 and gives batches `(x, label)`: x (B, C, H, W) float in [0, 1],
label (B,) whole numbers, or None where the module was made with `labels=False`. Scaling, flips and dequantisation run
once a batch, on the device. The order of the training pictures follows from (seed, epoch) alone.
"""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torchvision
from lightning.pytorch import LightningDataModule
from PIL import Image, ImageOps
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

__all__ = ["CIFAR10", "MNIST", "Digits", "FashionMNIST", "ImageData", "ImageFolder", "pixel_grid", "save_grid"]

Batch = tuple[Tensor, Tensor | None]


def to_unit(pixels: Tensor) -> Tensor:
    """Pixels, uint8 from 0 to 255, as float32 in [0, 1]."""
    return pixels.to(torch.float32) / 255


def to_pixels(x: Tensor) -> Tensor:
    """A state, of which [0, 1] is the visible range, as uint8 from 0 to 255: clamped, scaled and rounded."""
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def pixel_grid(x: Tensor) -> Tensor:
    """States (B, C, H, W) side by side in a square, as uint8 (3, H', W'); small ones enlarged to about 32 pixels."""
    pixels = to_pixels(x.cpu())
    scale = max(1, 32 // min(x.shape[-2:]))
    pixels = pixels.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
    grid: Tensor = torchvision.utils.make_grid(pixels, nrow=math.isqrt(len(x) - 1) + 1)
    return grid


def save_grid(x: Tensor, file: Path) -> None:
    """Write `pixel_grid(x)` to `file` as PNG: whole, or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    try:
        Image.fromarray(pixel_grid(x).permute(1, 2, 0).numpy()).save(partial, format="PNG")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


class ImageData(LightningDataModule, ABC):
    """Pictures for training and validation. A subclass says how to `load` them.

    Args:
        shape: (C, H, W) of a picture.
        class_names: the names of the classes, in the order of their numbers; empty where there are none.
        batch_size: pictures in a batch, on each device.
        labels: give class labels beside the pictures.
        flip: mirror half of the training pictures, left to right.
        dequantise: spread each training pixel uniformly over its 1/256 of the range.
        workers: processes that read ahead, where pictures are streamed from disk.

    Raises:
        ValueError: where a number is out of its range, or there are no classes to label with.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        class_names: Sequence[str],
        batch_size: int,
        labels: bool,
        flip: bool,
        dequantise: bool,
        workers: int = 0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if batch_size < 1:
            raise ValueError(f"{name}: batch_size is {batch_size}, and must be at least 1")
        if workers < 0:
            raise ValueError(f"{name}: workers is {workers}, and must be at least 0")
        if labels and not class_names:
            raise ValueError(f"{name}: labels is true, but the data has no classes")
        self.shape = shape
        self.class_names = list(class_names)
        self.batch_size = batch_size
        self.labels = labels
        self.flip = flip
        self.dequantise = dequantise
        self.workers = workers
        self.splits: dict[str, Pictures] = {}

    @property
    def classes(self) -> int:
        """How many classes the batches' labels tell apart; 0 where they have none."""
        return len(self.class_names) if self.labels else 0

    @abstractmethod
    def load(self) -> "dict[str, Pictures]":
        """The pictures of the splits "train" and "val"."""

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        self.splits = self.load()
        if len(self.splits["train"]) < self.batch_size:
            raise ValueError(
                f"{type(self).__name__}: batch_size is {self.batch_size}, and must be at most the number of "
                f"training pictures, {len(self.splits['train'])}"
            )

    def train_dataloader(self) -> DataLoader[Any]:
        # Equal batches on every rank, and none at the end of an epoch that is smaller than the others.
        return self._loader("train", shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader("val", shuffle=False, drop_last=False)

    def _loader(self, split: str, shuffle: bool, drop_last: bool) -> DataLoader[Any]:
        pictures = self.splits[split]
        ranks, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        batches = Batches(pictures, self.batch_size, ranks, rank, shuffle, seed, drop_last)
        if self.trainer and split == "train":
            batches.given = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        workers = 0 if isinstance(pictures, HeldPictures) else self.workers
        return DataLoader(
            pictures, sampler=batches, batch_size=None, num_workers=workers, persistent_workers=workers > 0
        )

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> Batch:
        pixels, label = batch
        x = to_unit(pixels)
        if self.trainer is not None and self.trainer.training:
            if self.dequantise:
                x = (255 * x + torch.rand_like(x)) / 256
            if self.flip:
                mirrored = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
                x = torch.where(mirrored, x.flip(-1), x)
        return x, label.long() if self.labels else None


class Pictures(Dataset[tuple[Tensor, Tensor]], Sized, ABC):
    """Pictures read a batch at a time: `pictures[indices]` is uint8 (B, C, H, W) and labels (B,)."""

    @abstractmethod
    def __getitem__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]: ...


class HeldPictures(Pictures):
    """Pictures held in memory as one uint8 tensor (N, C, H, W), with labels (N,)."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        if len(pixels) != len(labels):
            raise ValueError(f"there are {len(pixels)} pictures and {len(labels)} labels")
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.pixels[indices], self.labels[indices]


class FilePictures(Pictures):
    """Pictures read from their files as they are asked for, resized and centre-cropped to size x size."""

    def __init__(self, files: Sequence[Path], labels: Tensor, channels: int, size: int) -> None:
        self.files, self.labels, self.channels, self.size = files, labels, channels, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return torch.stack([self.read(self.files[i]) for i in indices]), self.labels[indices]

    def read(self, file: Path) -> Tensor:
        """The picture in `file`, uint8 (C, size, size).

        Raises:
            ValueError: where it cannot be read as a picture.
        """
        try:
            with Image.open(file) as picture:
                upright = ImageOps.exif_transpose(picture).convert("L" if self.channels == 1 else "RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"cannot read {file} as a picture ({error}); repair or remove it") from error
        if upright.size != (self.size, self.size):
            upright = ImageOps.fit(upright, (self.size, self.size), Image.Resampling.LANCZOS)
        pixels: Tensor = torchvision.transforms.functional.pil_to_tensor(upright)
        return pixels

    def held(self) -> HeldPictures:
        """All of them, read into memory now."""
        pixels = torch.empty(len(self), self.channels, self.size, self.size, dtype=torch.uint8)
        with ThreadPoolExecutor() as threads:
            pictures = threads.map(self.read, self.files, chunksize=64)
            for i, picture in enumerate(track(pictures, "Reading pictures", total=len(self), transient=True)):
                pixels[i] = picture
        return HeldPictures(pixels, self.labels)


class Batches(DistributedSampler[Any]):
    """Lists of indices, one a batch: this rank's share of an order that follows from (seed, epoch) alone.

    It counts the batches that it has given in the whole run, and is told that count when a run is resumed: an epoch
    that was broken off goes on where it was. It is a `DistributedSampler` so that Lightning leaves it in place.
    """

    def __init__(
        self, pictures: Pictures, batch_size: int, ranks: int, rank: int, shuffle: bool, seed: int, drop_last: bool
    ) -> None:
        super().__init__(pictures, ranks, rank, shuffle, seed, drop_last)
        self.batch_size = batch_size
        self.given = 0

    def __iter__(self) -> Iterator[list[int]]:
        self.epoch, done = divmod(self.given, len(self))
        self.given = (self.epoch + 1) * len(self)
        order = list(super().__iter__())
        for i in range(done, len(self)):
            yield order[i * self.batch_size : (i + 1) * self.batch_size]

    def __len__(self) -> int:
        whole, rest = divmod(self.num_samples, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)


class Digits(ImageData):
    """scikit-learn's handwritten digits: 1,797 scans of 8x8 pixels in 17 greys, a tenth of them for validation."""

    def __init__(self, batch_size: int = 128, labels: bool = False, dequantise: bool = False) -> None:
        super().__init__((1, 8, 8), list("0123456789"), batch_size, labels, flip=False, dequantise=dequantise)

    def load(self) -> dict[str, Pictures]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = torch.tensor(digits.images / 16 * 255).round().to(torch.uint8).unsqueeze(1)
        return split(pixels, torch.tensor(digits.target), held_out=0.1)


class TorchvisionData(ImageData):
    """A data set of torchvision's, downloaded into `root` on first use; its test split is for validation."""

    source: type[Any]

    def __init__(
        self,
        shape: tuple[int, int, int],
        class_names: Sequence[str],
        root: str,
        batch_size: int,
        labels: bool,
        flip: bool,
        dequantise: bool,
    ) -> None:
        super().__init__(shape, class_names, batch_size, labels, flip, dequantise)
        self.root = Path(root)

    def prepare_data(self) -> None:
        """Download the data where it is not there yet.

        Raises:
            OSError: where it cannot be had, with the place that it was looked for in.
        """
        try:
            for train in (True, False):
                self.source(self.root, train=train, download=True)
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"{type(self).__name__} is not in {self.root.resolve()} and could not be downloaded ({error}); "
                f"put the files there, as torchvision.datasets.{self.source.__name__} lays them out, or set data.root"
            ) from error

    def load(self) -> dict[str, Pictures]:
        return {"train": self._held(train=True), "val": self._held(train=False)}

    def _held(self, train: bool) -> HeldPictures:
        data = self.source(self.root, train=train)
        pixels = torch.as_tensor(data.data).reshape(len(data), *self.shape[1:], self.shape[0])
        return HeldPictures(pixels.permute(0, 3, 1, 2).contiguous(), torch.as_tensor(data.targets))


class MNIST(TorchvisionData):
    """MNIST: 60,000 + 10,000 handwritten digits, 28x28, grey."""

    source = torchvision.datasets.MNIST

    def __init__(
        self, root: str = "data", batch_size: int = 128, labels: bool = False, dequantise: bool = False
    ) -> None:
        super().__init__((1, 28, 28), self.source.classes, root, batch_size, labels, False, dequantise)


class FashionMNIST(TorchvisionData):
    """Fashion-MNIST: 60,000 + 10,000 pictures of clothes, 28x28, grey."""

    source = torchvision.datasets.FashionMNIST

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        labels: bool = False,
        flip: bool = False,
        dequantise: bool = False,
    ) -> None:
        super().__init__((1, 28, 28), self.source.classes, root, batch_size, labels, flip, dequantise)


class CIFAR10(TorchvisionData):
    """CIFAR-10: 50,000 + 10,000 photographs of ten kinds of thing, 32x32, in colour."""

    source = torchvision.datasets.CIFAR10

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        labels: bool = False,
        flip: bool = True,
        dequantise: bool = False,
    ) -> None:
        names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
        super().__init__((3, 32, 32), names, root, batch_size, labels, flip, dequantise)


class ImageFolder(ImageData):
    """Your own pictures: every file under `root`, nested folders too, of a format that Pillow reads.

    They are turned upright, resized and centre-cropped to size x size, in colour (transparency is dropped) or grey.

    Args:
        root: the folder.
        size: height and width of a picture, in pixels.
        channels: 3 for colour, 1 for grey.
        batch_size: pictures in a batch, on each device.
        labels: the class of a picture is the folder of `root` that it is in.
        flip: mirror half of the training pictures, left to right.
        dequantise: spread each training pixel uniformly over its 1/256 of the range.
        held_out: the fraction of the pictures that is for validation, the same ones every time.
        memory: hold the pictures in memory where they take at most so many GiB, and stream them otherwise.
        workers: processes that read ahead where they are streamed.

    Raises:
        ValueError: where the folder is missing or has no pictures, or a number is out of its range.
    """

    def __init__(
        self,
        root: str,
        size: int,
        channels: int = 3,
        batch_size: int = 128,
        labels: bool = False,
        flip: bool = True,
        dequantise: bool = False,
        held_out: float = 0.05,
        memory: float = 4.0,
        workers: int = 2,
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(f"ImageFolder: channels is {channels}, and must be 3 (colour) or 1 (grey)")
        if size < 1:
            raise ValueError(f"ImageFolder: size is {size}, and must be at least 1")
        if not 0 < held_out < 1:
            raise ValueError(f"ImageFolder: held_out is {held_out}, and must be between 0 and 1")
        self.root = Path(root)
        self.files = picture_files(self.root)
        folders = [file.relative_to(self.root).parts[0] for file in self.files] if labels else []
        names = sorted(set(folders) - {file.name for file in self.files if file.parent == self.root})
        super().__init__((channels, size, size), names, batch_size, labels, flip, dequantise, workers)
        if labels and len(names) < len(set(folders)):
            raise ValueError(f"ImageFolder: labels is true, but some pictures lie in {root} itself, in no class folder")
        self.held_out = held_out
        self.memory = memory
        self.targets = torch.tensor([names.index(folder) for folder in folders] if labels else [0] * len(self.files))

    def load(self) -> dict[str, Pictures]:
        channels, size, _ = self.shape
        order = held_out_last(len(self.files), self.held_out)
        splits: dict[str, Pictures] = {}
        for name, indices in order.items():
            pictures = FilePictures([self.files[i] for i in indices], self.targets[indices], channels, size)
            small = len(self.files) * channels * size**2 <= self.memory * 2**30
            splits[name] = pictures.held() if small else pictures
        return splits


def picture_files(root: Path) -> list[Path]:
    """The files under `root` whose names end as a format that Pillow reads does, hidden ones left out, sorted.

    Raises:
        ValueError: where there is no such folder, or no such file in it.
    """
    if not root.is_dir():
        raise ValueError(f"ImageFolder: root is {root}, which is not a folder")
    Image.init()
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = [
        Path(folder, name)
        for folder, _, names in os.walk(root)
        for name in names
        if not name.startswith(".") and Path(name).suffix.lower() in endings
    ]
    if not files:
        raise ValueError(f"ImageFolder: root is {root}, which has no pictures in it")
    return sorted(file for file in files if file.is_file())


def held_out_last(count: int, fraction: float) -> dict[str, list[int]]:
    """Indices of `count` examples, the stated fraction of them (one at least) in "val", the same ones every time."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    cut = count - max(1, round(count * fraction))
    return {"train": order[:cut], "val": order[cut:]}


def split(pixels: Tensor, labels: Tensor, held_out: float) -> dict[str, Pictures]:
    """Pictures in memory, with a fraction held out for validation."""
    parts = held_out_last(len(pixels), held_out)
    return {name: HeldPictures(pixels[indices], labels[indices]) for name, indices in parts.items()}
