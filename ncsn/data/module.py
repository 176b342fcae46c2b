"""The data modules that the others are made from."""

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

__all__ = ["DataModule", "ImageData"]

PATIENCE = 600
"""Seconds for which a batch is waited for that worker processes read."""

Batch = tuple[Tensor, Tensor | None]


class DataModule(LightningDataModule, ABC):
    """Examples for training and validation. A subclass says how to `load` them.

    Args:
        shape: the shape of an example.
        class_names: the names of the classes, in the order of their numbers; empty where there are none.
        batch_size: examples in a batch, on each device.
        labels: give class labels beside the examples.
        workers: processes that read ahead, where the examples are streamed from disk.

    Raises:
        ValueError: where a number is out of its range, or there are no classes to label with.
    """

    downloads = True
    """False if the settings come from a file: then no folder is made, and nothing is downloaded into one."""

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
        if workers < 0:
            raise ValueError(f"{name}: workers is {workers}, and must be at least 0")
        if labels and not class_names:
            raise ValueError(f"{name}: labels is true, but the data has no classes")
        self.shape = shape
        self.class_names = list(class_names)
        self.batch_size = batch_size
        self.labels = labels
        self.workers = workers
        self.splits: dict[str, Examples] = {}

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *_: Any, **__: Any) -> "DataModule":
        """Refuse: Lightning's own loader would import what the file names.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"{cls.__name__}.load_from_checkpoint: not available; use ncsn.load_data({checkpoint_path!r})"
        )

    @property
    def classes(self) -> int:
        """How many classes the batches' labels tell apart; 0 where they have none."""
        return len(self.class_names) if self.labels else 0

    @abstractmethod
    def load(self) -> dict[str, Examples]:
        """The examples of the splits "train" and "val"."""

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        self.splits = self.load()
        self.check_share(self.trainer.world_size if self.trainer else 1)

    def fingerprint(self) -> str:
        """The sha256 of the fingerprints of the splits, once they are loaded."""
        known = {name: examples.fingerprint() for name, examples in self.splits.items()}
        return hashlib.sha256(repr(known).encode()).hexdigest()

    def check_share(self, ranks: int) -> None:
        """Refuse a batch size that leaves a rank without a single batch.

        Raises:
            ValueError: with both numbers.
        """
        share = len(self.splits["train"]) // ranks
        if share < self.batch_size:
            raise ValueError(
                f"{type(self).__name__}: batch_size is {self.batch_size}, and must be at most the number of training "
                f"examples on each of {ranks} devices, {share}"
            )

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader("val")

    def batches(self, split: str) -> Batches:
        """Return the batches of a split for this process, from where the trainer is in the run."""
        ranks, rank = (
            (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        )
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        # Equal batches on every rank, and none at the end of an epoch that is smaller than the others.
        training = split == "train"
        batches = Batches(
            self.splits[split], self.batch_size, ranks, rank, training, seed, drop_last=training
        )
        if self.trainer and training:
            batches.given = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
            limit = self.trainer.limit_train_batches
            batches.taken = (
                min(len(batches), limit) if isinstance(limit, int) else int(len(batches) * limit)
            )
        return batches

    def _loader(self, split: str) -> DataLoader[Any]:
        examples = self.splits[split]
        workers = 0 if isinstance(examples, HeldExamples) else self.workers
        return DataLoader(
            examples,
            sampler=self.batches(split),
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            timeout=PATIENCE if workers else 0,
            worker_init_fn=ignore_signals,  # Ctrl-C in a terminal is for the process that trains
        )

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> Batch:
        x, label = batch
        return x, label.long() if self.labels else None


class ImageData(DataModule):
    """Examples for training and validation, uint8 as they are loaded and float in [0, 1] as they are given.

    Args:
        shape: (C, H, W) of a picture.
        class_names, batch_size, labels, workers: as for `DataModule`.
        flip: mirror half of the training pictures, left to right.
        dequantise: spread each training pixel uniformly over its 1/256 of the range.

    Raises:
        ValueError: as `DataModule` does.
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


def ignore_signals(worker: int) -> None:
    """Let a worker process outlive the signals that are for the process that trains."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
