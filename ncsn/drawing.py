"""Drawing by Lightning's `Trainer.predict`: over devices and nodes, with a bar, written as it comes."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ncsn.data import to_pixels
from ncsn.files import whole
from ncsn.module import ScoreModule
from ncsn.samplers import Sampler
from ncsn.score import Score

__all__ = ["Collected", "DrawingProgress", "Files", "Walks"]

NAME = "drawn_with"
"""The name, in a PNG, of the text that says what it was drawn with."""


class Walks(LightningModule):
    """What is predicted of a batch of indices: the samples of a seed that they stand for.

    Args:
        module: the model that draws.
        seed: of all that is random.
        sampler: how.
        sigmas: the ladder (L,).
        label: gives the classes (B,) of indices (B,), or None.
        guide: makes of the model's score the one that is walked along.
        finish: what is done to the samples (B, ...) at the end.
    """

    def __init__(
        self,
        module: ScoreModule,
        seed: int,
        sampler: Sampler,
        sigmas: Tensor,
        label: Callable[[Tensor], Tensor | None],
        guide: Callable[[Score], Score] | None,
        finish: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.module = module
        self.seed = seed
        self.sampler = sampler
        self.sigmas = sigmas
        self.label = label
        self.guide = guide
        self.finish = finish
        self.level_done: Callable[[int], None] = lambda samples: None
        self.is_drawn: Callable[[Tensor], bool] = lambda indices: False

    def predict_step(self, indices: Tensor, batch_idx: int) -> Tensor | None:
        if self.is_drawn(indices):
            return None
        label = self.label(indices)
        for state in self.module.samples(indices.tolist(), self.seed, label, self.sampler, self.sigmas, self.guide):
            x = state
            self.level_done(len(x))
        return self.finish(x)


class DrawingProgress(Callback):
    """A bar over `count` samples, level by level, with samples a second: as the first of the devices gets on."""

    def __init__(self, count: int) -> None:
        self.count = count

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Walks)
        if not trainer.is_global_zero:
            return
        levels = len(pl_module.sigmas)
        columns = TextColumn("Drawing"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")
        self.bar = Progress(*columns, TimeRemainingColumn())
        task = self.bar.add_task("Drawing", total=self.count, rate="")
        began, done = time.perf_counter(), 0.0

        def advance(samples: int) -> None:
            nonlocal done
            done += trainer.world_size * samples / levels
            rate = done / (time.perf_counter() - began)
            self.bar.update(task, completed=min(round(done), self.count), rate=f"{rate:.3g}/s")

        pl_module.level_done = advance
        self.bar.start()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if hasattr(self, "bar"):
            self.bar.stop()


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
        for partial in folder.glob(".*.png.partial"):  # of a call that was killed
            partial.unlink(missing_ok=True)

    def file(self, index: int) -> Path:
        """The file of the sample `index`."""
        return self.folder / f"{index:06d}.png"

    def is_drawn(self, indices: Tensor) -> bool:
        """Whether all of the samples were drawn by an earlier call."""
        return self.drawn.issuperset(indices.tolist())

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if outputs is None:
            return
        text = PngInfo()
        text.add_text(NAME, self.drawn_with)
        for index, pixels in zip(batch.tolist(), to_pixels(outputs).cpu(), strict=True):
            picture = pixels.permute(1, 2, 0).squeeze(-1).numpy()
            if index not in self.drawn:
                with whole(self.file(index)) as partial:
                    Image.fromarray(picture).save(partial, format="PNG", pnginfo=text)


def said_of(file: Path) -> str | None:
    """What a picture says that it was drawn with; None where it says nothing, or is not a picture."""
    try:
        with Image.open(file) as picture:
            return picture.info.get(NAME)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


class Collected(Callback):
    """Keeps the samples for one picture of them all."""

    def __init__(self) -> None:
        self.kept: dict[int, Tensor] = {}

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self.kept |= dict(zip(batch.tolist(), outputs.cpu(), strict=True))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:
            shares: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(shares, self.kept)
            self.kept = {index: x for share in shares for index, x in share.items()}

    def samples(self, indices: Sequence[int]) -> Tensor:
        """The samples (N, ...) of `indices`, in their order."""
        return torch.stack([self.kept[index] for index in indices])
