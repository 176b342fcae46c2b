"""The output of a command, and the writers of samples: a folder of PNGs, an array, memory."""

import os
import shutil
import zipfile
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from lightning.fabric import Fabric
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ncsn.data import to_pixels
from ncsn.model.files import (
    CLOEXEC,
    NOFOLLOW,
    atomic_write,
    exclusive_file,
    exclusive_folder,
    lock_of,
    temporary_file,
)
from ncsn.training.processes import exit_if_orphaned, gathered, hold_outputs

__all__ = ["Collector", "FolderWriter", "NpzWriter", "Writer", "check_replaced", "held_output"]

KEY = "drawn_with"  # of the text in a PNG that says what the sample follows from


@contextmanager
def held_output(options: Namespace) -> Iterator[None]:
    """Hold --out while the command runs; without a name, hold a free default name."""
    given, exclusive = options.out, exclusive_folder if options.kind == "folder" else exclusive_file
    while True:
        options.out = given or free(options.default_out)
        with hold_outputs("--out", exclusive(options.out)):
            if given or not options.out.exists():  # another command may just have finished
                yield
                return


def free(file: Path) -> Path:
    """Return `file`, or the first of name-2, name-3 ... that neither exists nor is being written."""
    names = chain([file], (file.with_stem(f"{file.stem}-{number}") for number in count(2)))
    return next(name for name in names if not any(map(os.path.lexists, (name, lock_of(name)))))


def check_replaced(option: str, file: Path, suffix: str, is_ours: Callable[[Path], bool]) -> None:
    """Refuse a name without the suffix, or a file that holds something else."""
    if file.suffix != suffix:
        raise ValueError(f"{option}: expected a name with {suffix}, got {file}")
    if file.exists() and not (file.is_file() and is_ours(file)):
        raise ValueError(f"{option}: {file} exists and holds something else; give another name")


class Writer(ABC):
    """A context that takes batches of samples (B, ...) with their indices."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: Any) -> None:
        if kind is None:
            self.fabric.barrier()  # the first process holds the output for the others
            self.finish()

    def is_written(self, indices: Sequence[int]) -> bool:
        """Return True if an earlier command has drawn all of these samples."""
        return False

    @abstractmethod
    def write(self, indices: Sequence[int], x: Tensor) -> None:
        """Take a batch."""

    def finish(self) -> None:  # noqa: B027 - a folder needs none
        """Complete the output, once all processes have written."""


class FolderWriter(Writer):
    """A folder with a PNG for each sample, named by its index.

    Each says what it was drawn with: all that it follows from but its index. PNGs that an
    earlier command drew with the same stay as they are; a batch is drawn again whole if some
    are missing, because its last bits depend on the batch.
    """

    def __init__(
        self, fabric: Fabric, folder: Path, indices: Sequence[int], drawn_with: str
    ) -> None:
        super().__init__(fabric)
        self.folder, self.drawn_with = folder, drawn_with
        self.written = {index for index in indices if self.file(index).exists()}
        for file in map(self.file, sorted(self.written)):
            if text_in(file) != drawn_with:
                others = "another folder or --start-index, or the options that it was drawn with"
                raise ValueError(f"--out: {file} exists; give {others}")

    def file(self, index: int) -> Path:
        """Return the file of a sample."""
        return self.folder / f"{index:06d}.png"

    def is_written(self, indices: Sequence[int]) -> bool:
        return self.written.issuperset(indices)

    def write(self, indices: Sequence[int], x: Tensor) -> None:
        """Write the samples that are missing."""
        text = PngInfo()
        text.add_text(KEY, self.drawn_with)
        for index, pixels in zip(indices, to_pixels(x).cpu(), strict=True):
            if index not in self.written:
                exit_if_orphaned(self.fabric.local_rank)
                image = Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy())
                with atomic_write(self.file(index)) as partial:
                    image.save(partial, format="PNG", pnginfo=text)


def text_in(file: Path) -> str | None:
    """Return what a PNG says that it was drawn with, if it says so."""
    try:
        with Image.open(file) as image:
            return image.info.get(KEY)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


class NpzWriter(Writer):
    """`arr_0` (N, H, W, C), uint8, in an .npz file as the tools that compute the FID read it.

    All processes of the machine write their rows to one temporary file, so that none are kept
    in memory. At the end it becomes the .npz. The same samples give the same bytes.
    """

    def __init__(self, fabric: Fabric, file: Path, indices: range, shape: tuple[int, ...]) -> None:
        super().__init__(fabric)
        self.file, self.indices, self.shape = file, indices, (*shape[1:], shape[0])

    def open_rows(self) -> BinaryIO:
        """Open the temporary file, unless a link has taken its place."""
        flags = os.O_RDWR | NOFOLLOW | CLOEXEC
        return os.fdopen(os.open(self.rows, flags), "r+b")

    def __enter__(self) -> "NpzWriter":
        made: Any = None
        if self.fabric.is_global_zero:
            self.rows = temporary_file(self.file)
            shape = (len(self.indices), *self.shape)
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            with self.open_rows() as file:
                np.lib.format.write_array_header_1_0(file, header)
                made = self.rows, file.tell()
        self.rows, self.begin = self.fabric.broadcast(made)
        return self

    def __exit__(self, *raised: Any) -> None:
        try:
            super().__exit__(*raised)
        finally:
            if self.fabric.is_global_zero:
                self.rows.unlink(missing_ok=True)

    def write(self, indices: Sequence[int], x: Tensor) -> None:
        """Write the rows of the samples."""
        pixels = to_pixels(x).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        exit_if_orphaned(self.fabric.local_rank)
        with self.open_rows() as file:
            for index, image in zip(indices, pixels, strict=True):
                file.seek(self.begin + self.indices.index(index) * image.nbytes)
                file.write(image.tobytes())

    def finish(self) -> None:
        """Put the rows into the .npz."""
        if not self.fabric.is_global_zero:
            return
        array = zipfile.ZipInfo("arr_0.npy")  # whose date is always the same
        with self.open_rows() as rows, atomic_write(self.file) as partial:
            array.file_size = os.fstat(rows.fileno()).st_size  # above 2 GiB the zip is another
            with zipfile.ZipFile(partial, "w") as archive, archive.open(array, "w") as content:
                shutil.copyfileobj(rows, content, 2**20)


class Collector(Writer):
    """The samples of all processes, in memory."""

    def __init__(self, fabric: Fabric) -> None:
        super().__init__(fabric)
        self.kept: list[tuple[Sequence[int], Tensor]] = []

    def write(self, indices: Sequence[int], x: Tensor) -> None:
        """Keep a batch."""
        exit_if_orphaned(self.fabric.local_rank)
        self.kept.append((indices, x.cpu()))

    def finish(self) -> None:
        """Gather the batches of all processes."""
        self.kept = gathered(self.kept)

    def samples(self, indices: Sequence[int]) -> Tensor:
        """Return the samples (N, ...) in the order of `indices`."""
        place = {index: row for row, index in enumerate(i for part, _ in self.kept for i in part)}
        return torch.cat([x for _, x in self.kept])[[place[index] for index in indices]]
