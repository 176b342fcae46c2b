"""Drawing by Lightning's `Trainer.predict`: over devices and nodes, with a bar, written as it comes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader

from ncsn.data import to_pixels
from ncsn.files import whole
from ncsn.module import ScoreModule
from ncsn.samplers import Sampler
from ncsn.score import Score

__all__ = [
    "Collected",
    "Cost",
    "DrawingProgress",
    "Files",
    "Walks",
    "collect",
    "gathered",
    "predict",
    "usual_batch",
]

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
        self.seconds = 0.0  # spent on walks by this device
        self.most: int | None = None  # samples at once, once the device has run out of memory
        self.level_done: Callable[[int], None] = lambda samples: None
        self.is_drawn: Callable[[Tensor], bool] = lambda indices: False

    def predict_step(self, indices: Tensor, batch_idx: int) -> Tensor | None:
        if self.is_drawn(indices):
            return None
        began = time.perf_counter()
        x = torch.cat([self._drawn(part) for part in torch.split(indices, self.most or len(indices))])
        self.seconds += time.perf_counter() - began
        with torch.autocast(x.device.type, enabled=False):
            return self.finish(x)

    def _drawn(self, indices: Tensor) -> Tensor:
        """The samples `indices`: in halves, where the device's memory does not hold as many."""
        try:
            return self._walked(indices)
        except torch.OutOfMemoryError:
            if len(indices) == 1:
                raise
        # Past the handler, whose traceback holds on to the walk.
        self.most = (len(indices) + 1) // 2
        torch.accelerator.empty_cache()
        return torch.cat([self._drawn(part) for part in torch.split(indices, self.most)])

    def _walked(self, indices: Tensor) -> Tensor:
        label = self.label(indices)
        for state in self.module.samples(indices.tolist(), self.seed, label, self.sampler, self.sigmas, self.guide):
            x = state
            self.level_done(len(x))
        return x


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
        console = Console(stderr=True)  # standard output is for what is told or measured
        self.bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
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
    """Keeps what comes of the samples, of all devices, for one picture or one table of them all."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.kept: list[tuple[Tensor, Tensor]] = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self.kept.append((batch.cpu(), outputs.cpu()))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.kept = gathered(self.kept)

    def samples(self, indices: Sequence[int]) -> Tensor:
        """What came of `indices`, in their order: (N, ...)."""
        drawn, outputs = (torch.cat(parts) for parts in zip(*self.kept, strict=True))
        place = {index: row for row, index in enumerate(drawn.tolist())}
        return outputs[[place[index] for index in indices]]


def predict(trainer: Trainer, walks: Walks, indices: Sequence[int], batch_size: int | None) -> None:
    """Draw the samples `indices`, so many at once on each device, for the callbacks of the trainer."""
    batches: DataLoader[int] = DataLoader(indices, batch_size=batch_size or usual_batch(walks.module))  # type: ignore[arg-type]
    trainer.predict(walks, batches, return_predictions=False)


def usual_batch(module: ScoreModule) -> int:
    """How many samples are drawn at once, which memory limits."""
    return 256 if len(module.shape) == 3 else 4096


def counted(score: Score, calls: list[int]) -> Score:
    """A score that adds 1 to `calls[0]` for each example that it is asked about."""

    def counting(x: Tensor, sigma: Tensor) -> Tensor:
        calls[0] += len(x)
        return score(x, sigma)

    return counting


@dataclass(frozen=True)
class Cost:
    """What drawing took: calls of the network, counted for each picture in them, seconds, and how many were drawn."""

    calls: int
    seconds: float
    pictures: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.calls + other.calls, self.seconds + other.seconds, self.pictures + other.pictures)

    def named(self) -> dict[str, float]:
        """What a user asks: calls for a picture, seconds for all, and pictures a second."""
        return {
            "network calls": self.calls / self.pictures,
            "seconds": self.seconds,
            "pictures/s": self.pictures / self.seconds,
        }


def collect(
    trainer: Trainer, collected: Collected, walks: Walks, count: int, batch_size: int | None
) -> tuple[Tensor, Cost]:
    """What comes of the first `count` samples of a seed, and what drawing them took, without what was made of them.

    Args:
        trainer: predicts, with `collected` among its callbacks.
        collected: where it comes together.
        walks: of the samples; its score is counted on the way.
        count: how many.
        batch_size: how many at once, on each device.

    Returns:
        (count, ...) on every rank, with the time of the slowest.
    """
    calls = [0]
    walks.guide, walks.seconds = lambda score: counted(score, calls), 0.0
    predict(trainer, walks, range(count), batch_size)
    seconds = max(gathered([walks.seconds]))
    return collected.samples(range(count)), Cost(sum(gathered(calls)), seconds, count)


def gathered(parts: list[Any]) -> list[Any]:
    """The parts of all processes, one after the other."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return parts
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, parts)
    return [part for share in shares for part in share]
