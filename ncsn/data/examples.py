"""Examples that are read in batches, and the order of the batches."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence, Sized
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

__all__ = ["Batches", "Examples", "HeldExamples", "held_out_last"]


class Examples(Dataset[tuple[Tensor, Tensor]], Sized, ABC):
    """Examples read in batches: `examples[indices]` is (B, ...), with labels (B,)."""

    @abstractmethod
    def __getitem__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def fingerprint(self) -> str:
        """Return 64 hexadecimal digits that identify the examples and their order."""


class HeldExamples(Examples):
    """Examples in memory: one tensor (N, ...), uint8 for images, and labels (N,).

    Batches are on the device of the tensors.
    """

    def __init__(self, values: Tensor, labels: Tensor) -> None:
        if len(values) != len(labels):
            raise ValueError(f"there are {len(values)} examples and {len(labels)} labels")
        self.values, self.labels = values, labels

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices, dtype=torch.long)  # faster than a list as index
        if self.values.is_cuda:  # from pinned memory, so that nothing waits for the copy
            chosen = chosen.pin_memory()
        chosen = chosen.to(self.values.device, non_blocking=True)
        return self.values.index_select(0, chosen), self.labels.index_select(0, chosen)

    def to(self, device: torch.device | str) -> None:
        """Move the examples to `device`."""
        self.values, self.labels = self.values.to(device), self.labels.to(device)

    def fingerprint(self) -> str:
        """Return the sha256 of the shape, the dtype, the values and the labels."""
        digest = sha256(repr((tuple(self.values.shape), self.values.dtype)).encode())
        for tensor in (self.values, self.labels):
            for part in torch.split(tensor, 4096):
                digest.update(part.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()


class Batches(DistributedSampler[Any]):
    """Lists of indices, one per batch: this rank's share of the order of (seed, epoch).

    `given` counts the batches of the whole run. It is set when a run is resumed, so
    that an interrupted epoch continues. `taken` is the number of batches per epoch,
    which `limit_train_batches` may reduce. Lightning keeps a `DistributedSampler` in
    place.
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
    """Return the indices of "train" and "val", of which val is the given fraction."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    cut = count - min(max(1, round(count * fraction)), count - 1)  # at least one in each
    return {"train": order[:cut], "val": order[cut:]}
