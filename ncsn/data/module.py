"""Base classes of the data modules."""

import hashlib
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from ncsn.data.examples import Batches, Examples, HeldExamples
from ncsn.data.pixels import to_unit

__all__ = ["SIGNALS", "DataModule", "ImageData", "limited"]

# Those that end a run, as in `ncsn.cli.errors`, which imports no torch. Windows has no SIGHUP.
SIGNALS = tuple(n for n in signal.Signals if n.name in ("SIGINT", "SIGTERM", "SIGHUP"))
MOST_WORKERS = 256
SHARE = 0.1  # of a GPU's free memory, for the training examples
LOADER_TIMEOUT = 600  # seconds to wait for a batch of a worker process

Batch = tuple[Tensor, Tensor | None]


class DataModule(LightningDataModule, ABC):
    """Examples for training and validation; a subclass defines `load`.

    Args:
        shape: the shape of an example.
        class_names: the names of the classes, in the order of their labels.
        batch_size: examples per batch, on each device.
        labels: yield class labels with the examples.
        workers: processes that read ahead if the examples are streamed from disk.

    Raises:
        ValueError: if a number is out of range, or `labels` is set without classes.
    """

    downloads = True  # False forbids downloads, if a file names the settings

    def __init__(
        self,
        shape: tuple[int, ...],
        batch_size: int,
        class_names: Sequence[str] = (),
        labels: bool = False,
        workers: int = 0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if batch_size < 1:
            raise ValueError(f"{name}: batch_size is {batch_size}, and must be at least 1")
        if not 0 <= workers <= MOST_WORKERS:
            allowed = f"at least 0 and at most {MOST_WORKERS}"
            raise ValueError(f"{name}: workers is {workers}, and must be {allowed}")
        if labels and not class_names:
            raise ValueError(f"{name}: class labels were asked for, and the data has no classes")
        self.shape = shape
        self.class_names = list(class_names)
        self.batch_size = batch_size
        self.labels = labels
        self.workers = workers
        self.splits: dict[str, Examples] = {}

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *_: Any, **__: Any) -> "DataModule":
        """Refuse, because Lightning's loader would import whatever the file names.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"{cls.__name__}.load_from_checkpoint: not available; "
            f"use ncsn.load_data({checkpoint_path!r})"
        )

    @property
    def classes(self) -> int:
        """Return the number of classes of the labels, or 0 without labels."""
        return len(self.class_names) if self.labels else 0

    @abstractmethod
    def load(self) -> dict[str, Examples]:
        """Return the examples of the splits "train" and "val"."""

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        if getattr(self.trainer, "overfit_batches", 0):  # Lightning would replace `Batches`
            raise ValueError("trainer.overfit_batches: train on a folder of a few images instead")
        self.splits = self.load()
        self.check_share(self.trainer.world_size if self.trainer else 1)

    def fingerprint(self) -> str:
        """Return the sha256 of the fingerprints of the loaded splits."""
        known = {name: examples.fingerprint() for name, examples in self.splits.items()}
        return hashlib.sha256(repr(known).encode()).hexdigest()

    def check_share(self, ranks: int) -> None:
        """Refuse a batch size that leaves a rank without a batch.

        Raises:
            ValueError: if `batch_size` exceeds the training examples per rank.
        """
        share = len(self.splits["train"]) // ranks
        if share < self.batch_size:
            where = f" on each of {ranks} devices" if ranks > 1 else ""
            raise ValueError(
                f"{type(self).__name__}: batch_size is {self.batch_size}, and must be at most the "
                f"number of training examples{where}, {share}"
            )

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader("val")

    def batches(self, split: str) -> Batches:
        """Return this process's batches of a split, from the trainer's position."""
        ranks, rank = (
            (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        )
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        # Ranks need equally many batches, and an epoch must not end with a smaller one.
        training = split == "train"
        batches = Batches(
            self.splits[split], self.batch_size, ranks, rank, training, seed, drop_last=training
        )
        if self.trainer and training:
            batches.given = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
            batches.taken = limited(len(batches), self.trainer.limit_train_batches)
        return batches

    def _loader(self, split: str) -> DataLoader[Any]:
        examples, held = self.splits[split], isinstance(self.splits[split], HeldExamples)
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if isinstance(examples, HeldExamples) and split == "train":
            keep_on(device, examples)
        workers = 0 if held else self.workers
        return DataLoader(
            examples,
            sampler=self.batches(split),
            batch_size=None,
            num_workers=workers,
            pin_memory=device.type == "cuda" and not held,
            persistent_workers=workers > 0,
            timeout=LOADER_TIMEOUT if workers else 0,
            worker_init_fn=ignore_signals,  # Ctrl-C is for the training process
        )

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> Batch:
        x, label = batch
        return x, label.long() if self.labels else None


class ImageData(DataModule):
    """Images for training and validation, stored as uint8 and yielded in [0, 1].

    Args:
        shape: (C, H, W) of an image.
        class_names, batch_size, labels, workers: as for `DataModule`.
        flip: mirror half of the training images, left to right.
        dequantise: add uniform noise of 1/256 of the range to each training pixel.

    Raises:
        ValueError: as `DataModule`.
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
        super().__init__(shape, batch_size, class_names, labels, workers)
        self.flip = flip
        self.dequantise = dequantise

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> Batch:
        pixels, label = super().on_after_batch_transfer(batch, dataloader_idx)
        x = to_unit(pixels)
        if self.trainer is not None and self.trainer.training:
            if self.dequantise:
                x = (255 * x + torch.rand_like(x)) / 256
            if self.flip:
                mirrored = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
                x = torch.where(mirrored, x.flip(-1), x)
        return x, label


def keep_on(device: torch.device, examples: HeldExamples) -> None:
    """Move examples to a GPU that has much more memory than they take."""
    size = examples.values.nbytes + examples.labels.nbytes
    if device.type == "cuda" and size < SHARE * torch.cuda.mem_get_info(device)[0]:
        examples.to(device)


def limited(batches: int, limit: float) -> int:
    """Return the batches of an epoch, of which Lightning's `limit` is a number or a share."""
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def ignore_signals(worker: int) -> None:
    """Make a worker process ignore the signals for the training process."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
