"""What takes samples as they are drawn: a folder of PNGs, or an array on the disk, however many there are."""

import os
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ncsn.data import to_pixels
from ncsn.model.files import atomic_write, temporary_file
from ncsn.training.processes import exit_if_orphaned

__all__ = ["Files", "Npz"]

NAME = "drawn_with"
"""The name, in a PNG, of the text that says what it was drawn with."""


class Files(Callback):
    """Writes each sample as a PNG of its own, named by its index, as soon as its batch is drawn.

    Each says what it was drawn with. Those that an earlier call left, drawn with the same, stay as they are; a batch of
    which some are missing is drawn again whole, since its numbers depend, in the last bit, on what is beside them.

    Args:
        folder: where; it is made where it is not there.
        indices: what will be drawn.
        drawn_with: all that a sample follows from but its index, as text.

    Raises:
        ValueError: where one of the files is there already, and was drawn with something else.
    """

    def __init__(self, folder: Path, indices: Sequence[int], drawn_with: str) -> None:
        self.folder = folder
        self.drawn_with = drawn_with
        numbers = {int(file.stem) for file in folder.glob("*.png") if file.stem.isdecimal()}
        self.drawn = {index for index in numbers if index in indices and self.file(index).exists()}
        for index in sorted(self.drawn):
            if said_of(self.file(index)) != drawn_with:
                raise ValueError(
                    f"--out: {self.file(index)} is there already; choose another folder or --start-index, or the "
                    "settings that it was drawn with"
                )

    def file(self, index: int) -> Path:
        """The file of the sample `index`."""
        return self.folder / f"{index:06d}.png"

    def is_drawn(self, indices: Tensor) -> bool:
        """Whether all of the samples were drawn by an earlier call."""
        return self.drawn.issuperset(indices.tolist())

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        *_: Any,
    ) -> None:
        if outputs is None:
            return
        text = PngInfo()
        text.add_text(NAME, self.drawn_with)
        for index, pixels in zip(batch.tolist(), to_pixels(outputs).cpu(), strict=True):
            picture = pixels.permute(1, 2, 0).squeeze(-1).numpy()
            if index not in self.drawn:
                exit_if_orphaned(trainer)
                with atomic_write(self.file(index)) as partial:
                    Image.fromarray(picture).save(partial, format="PNG", pnginfo=text)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier()  # the first process holds the folder for the others


def said_of(file: Path) -> str | None:
    """What a picture says that it was drawn with; None where it says nothing, or is not a picture."""
    try:
        with Image.open(file) as picture:
            return picture.info.get(NAME)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


class Npz(Callback):
    """Writes samples into `arr_0` (N, H, W, C), uint8, of a file as NumPy writes it and the FID tools read it.

    The rows are in the order of the indices. All processes of the machine write them, as they are drawn, to a temporary
    file next to `file`, and none is kept in memory; at the end that becomes the .npz. Until then `file` is as it was
    before. The same samples give the same bytes.

    Args:
        file: a name that ends in .npz.
        indices: what will be drawn, one after the other.
        shape: (C, H, W) of a picture.
    """

    def __init__(self, file: Path, indices: range, shape: tuple[int, ...]) -> None:
        channels, height, width = shape
        self.file, self.indices, self.shape = file, indices, (height, width, channels)
        self.rows: Path | None = None

    def open_rows(self) -> BinaryIO:
        """Open the temporary file for reading and writing, unless a link has taken its place."""
        assert self.rows is not None
        return os.fdopen(os.open(self.rows, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), "r+b")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.rows = temporary_file(self.file)
            described = {
                "descr": "|u1",
                "fortran_order": False,
                "shape": (len(self.indices), *self.shape),
            }
            with self.open_rows() as rows:
                np.lib.format.write_array_header_1_0(rows, described)
        self.rows = trainer.strategy.broadcast(self.rows)
        with self.open_rows() as rows:
            self.begin = rows.seek(0, os.SEEK_END)
        trainer.strategy.barrier()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        *_: Any,
    ) -> None:
        pixels = to_pixels(outputs).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        exit_if_orphaned(trainer)
        with self.open_rows() as rows:
            for index, picture in zip(batch.tolist(), pixels, strict=True):
                rows.seek(self.begin + self.indices.index(index) * picture.nbytes)
                rows.write(picture.tobytes())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            with (
                self.open_rows() as rows,
                atomic_write(self.file) as partial,
                zipfile.ZipFile(partial, "w") as archive,
            ):
                array = zipfile.ZipInfo("arr_0.npy")  # whose date is always the same
                array.file_size = os.fstat(
                    rows.fileno()
                ).st_size  # past 2 GiB it is another kind of zip
                with archive.open(array, "w") as content:
                    shutil.copyfileobj(rows, content, 2**20)
            self.remove_rows()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if trainer.is_global_zero:
            self.remove_rows()

    def remove_rows(self) -> None:
        """Remove the temporary file, if there is one."""
        if self.rows is not None:
            self.rows.unlink(missing_ok=True)
