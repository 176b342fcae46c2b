"""Examples that are read a batch at a time, and the order in which they are."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence, Sized
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

__all__ = ["Batches", "Examples", "HeldExamples", "held_out_last"]


class Examples(Dataset[tuple[Tensor, Tensor]], Sized, ABC):
    """Examples read a batch at a time: `examples[indices]` is (B, ...), uint8 for pictures, and labels (B,)."""

    @abstractmethod
    def __getitem__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def fingerprint(self) -> str:
        """64 hexadecimal digits that other examples, or the same in another order, do not have."""


class HeldExamples(Examples):
    """Examples held in memory as one tensor (N, ...), uint8 for pictures, with labels (N,)."""

    def __init__(self, values: Tensor, labels: Tensor) -> None:
        if len(values) != len(labels):
            raise ValueError(f"there are {len(values)} examples and {len(labels)} labels")
        self.values, self.labels = values, labels

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(
            indices, dtype=torch.long
        )  # a quarter of the time that indexing by a list takes
        return self.values.index_select(0, chosen), self.labels.index_select(0, chosen)

    def fingerprint(self) -> str:
        """The sha256 of shape and type, values and labels."""
        digest = sha256(repr((tuple(self.values.shape), self.values.dtype)).encode())
        for tensor in (self.values, self.labels):
            for part in torch.split(tensor, 4096):
                digest.update(part.contiguous().numpy().tobytes())
        return digest.hexdigest()


class Batches(DistributedSampler[Any]):
    """Lists of indices, one a batch: this rank's share of an order that follows from (seed, epoch) alone.

    It counts the batches that it has given in the whole run, and is told that count when a run is resumed: an epoch
    that was broken off goes on where it was. It is a `DistributedSampler` so that Lightning leaves it in place.

    `taken` is how many batches of an epoch are asked for, where the trainer's `limit_train_batches` makes it shorter.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        ranks: int,
        rank: int,
        shuffle: bool,
        seed: int,
        drop_last: bool,
    ) -> None:
        super().__init__(examples, ranks, rank, shuffle, seed, drop_last)
        self.batch_size = batch_size
        self.given = 0
        self.taken = len(self)

    def __iter__(self) -> Iterator[list[int]]:
        self.epoch, done = divmod(self.given, self.taken)
        self.given = (self.epoch + 1) * self.taken
        order = list(super().__iter__())
        for i in range(done, len(self)):
            yield order[i * self.batch_size : (i + 1) * self.batch_size]

    def __len__(self) -> int:
        whole, rest = divmod(self.num_samples, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)


def held_out_last(count: int, fraction: float) -> dict[str, list[int]]:
    """Indices of `count` examples, the stated fraction of them (one at least) in "val", the same ones every time."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    cut = count - max(1, round(count * fraction))
    return {"train": order[:cut], "val": order[cut:]}
