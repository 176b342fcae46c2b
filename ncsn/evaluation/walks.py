"""Drawing by Lightning's `Trainer.predict`: over devices and nodes, with a bar."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader

from ncsn.data import to_pixels
from ncsn.model.model import Model
from ncsn.noise.streams import Streams
from ncsn.samplers import Sampler
from ncsn.score import Score

__all__ = [
    "Collected",
    "Cost",
    "DrawingProgress",
    "Walks",
    "collect",
    "gathered",
    "predict",
    "usual_batch",
]


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

    `shown` are levels that the state is kept after, besides the last, and 0 for the start: where there are any, what is
    predicted is the pixels (B, S, C, H, W) of all of these states. `is_drawn` tells of indices (B,) that need not be.
    """

    def __init__(
        self,
        module: Model,
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
        self.shown: Sequence[int] = ()
        self.seconds = 0.0  # spent on walks by this device
        self.most: int | None = None  # samples at once, once the device has run out of memory
        self.level_done: Callable[[int], None] = lambda samples: None
        self.skipped: Callable[[int], None] = lambda samples: None
        self.is_drawn: Callable[[Tensor], bool] = lambda indices: False

    def predict_step(self, indices: Tensor, batch_idx: int) -> Tensor | None:
        if self.is_drawn(indices):
            self.skipped(len(indices))
            return None
        began = time.perf_counter()
        x = torch.cat(
            [self._drawn(part) for part in torch.split(indices, self.most or len(indices))]
        )
        self.seconds += time.perf_counter() - began
        with torch.autocast(x.device.type, enabled=False):
            if not self.shown:
                return self.finish(x)
            return to_pixels(torch.cat([x[:, :-1], self.finish(x[:, -1]).unsqueeze(1)], dim=1))

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
        states = [self.start(indices)] if 0 in self.shown else []
        walk = self.module.trajectories(
            indices.tolist(), self.seed, label, self.sampler, self.sigmas, self.guide
        )
        for level, x in enumerate(walk, start=1):
            self.level_done(len(x))
            if level in self.shown:
                states.append(x)
        return torch.stack([*states, x], dim=1) if self.shown else x

    def start(self, indices: Tensor) -> Tensor:
        """What the walks begin with (B, ...): the first numbers of their streams."""
        with Streams(self.seed, indices.tolist(), self.device):
            return self.module.start(len(indices), self.sigmas[0])


class DrawingProgress(Callback):
    """A bar over the samples, level by level, with pictures a second and the time that is left.

    It goes as the first of the devices gets on. Those that an earlier call drew are done, and tell nothing of the rate.
    """

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Walks)
        if not trainer.is_global_zero:
            return
        loader: Any = trainer.predict_dataloaders
        levels, total = len(pl_module.sigmas), len(loader.dataset)
        kind = "pictures" if len(pl_module.module.shape) == 3 else "samples"
        columns = (
            TextColumn("Drawing"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        console = Console(stderr=True)  # standard output is for what is told or measured
        left = TimeRemainingColumn(), TextColumn("left")
        self.bar = Progress(*columns, *left, console=console, disable=not console.is_terminal)
        task = self.bar.add_task("Drawing", total=total, rate="")
        began, drawn, before = time.perf_counter(), 0.0, 0

        def advance(samples: float, skipped: int = 0) -> None:
            nonlocal drawn, before
            drawn, before = (
                drawn + trainer.world_size * samples,
                before + trainer.world_size * skipped,
            )
            rate = f"{drawn / (time.perf_counter() - began):.3g} {kind}/s" if drawn else ""
            self.bar.update(task, completed=min(round(drawn + before), total), rate=rate)

        pl_module.level_done = lambda samples: advance(samples / levels)
        pl_module.skipped = lambda samples: advance(0, samples)
        self.bar.start()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if hasattr(self, "bar"):
            self.bar.stop()


class Collected(Callback):
    """Keeps what comes of the samples, of all devices, for one picture or one table of them all."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.kept: list[tuple[Tensor, Tensor]] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        *_: Any,
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
    size = batch_size or usual_batch(walks.module)
    batches: DataLoader[int] = DataLoader(indices, batch_size=size)  # type: ignore[arg-type]
    trainer.predict(walks, batches, return_predictions=False)


def usual_batch(module: Model) -> int:
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
        return Cost(
            self.calls + other.calls, self.seconds + other.seconds, self.pictures + other.pictures
        )

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
