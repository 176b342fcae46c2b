"""Checkpoints of a run: the newest ones and the best one."""

import math
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer, callbacks

from ncsn.model.load import BEST, numbered
from ncsn.noise.checks import expect
from ncsn.training.callbacks.quality import FIGURE

__all__ = ["BestCheckpoint", "Checkpoint"]


class Checkpoint(callbacks.Checkpoint):
    """The newest checkpoints of a run, as step=N.ckpt.

    The run is saved every `every` steps, before each validation, and when it ends. On
    one device it is also saved if an error ends it between two steps. `saved` is the
    last step on disk. If `due` is True, the current step is saved too.

    Args:
        dirpath: the folder.
        every: steps between checkpoints.
        keep: the number of checkpoints to keep.
    """

    def __init__(self, dirpath: str | None = None, every: int = 1000, keep: int = 2) -> None:
        expect("every >= 1 and keep >= 1", min(every, keep) >= 1, self, every=every, keep=keep)
        self.folder = Path(dirpath or "checkpoints").absolute()
        self.every = every
        self.keep = keep
        self.saved = 0
        self.completed = 0  # the last step that all callbacks have seen
        self.due = False

    def save(self, trainer: Trainer) -> None:
        """Save the current step unless it is already saved, and prune older ones."""
        step = trainer.global_step
        if step == self.saved or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        trainer.save_checkpoint(self.folder / f"step={step}.ckpt")
        if is_written(trainer):
            self.saved = step
            self.prune(trainer)

    def prune(self, trainer: Trainer) -> None:
        """Remove all but the newest checkpoints up to this step; ignore later ones."""
        now = trainer.global_step
        known = [file for file, step in numbered(self.folder).items() if step <= now]
        for file in known[self.keep :]:
            trainer.strategy.remove_checkpoint(file)

    def on_load_checkpoint(self, trainer: Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        if checkpoint["global_step"] in numbered(self.folder).values():
            self.saved = checkpoint["global_step"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.prune(trainer)  # a run killed before pruning leaves one too many

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.completed = 0  # an error in the step may leave a part of the weights behind

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.completed = trainer.global_step
        if trainer.global_step % self.every == 0 or self.due:
            self.save(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved = 0  # the step is saved again after the last validation
        self.save(trainer)

    def on_exception(self, trainer: Trainer, *_: Any) -> None:
        # On several devices the others would be waited for.
        if trainer.world_size == 1 and self.completed == trainer.global_step > 0:
            self.save(trainer)


class BestCheckpoint(callbacks.Checkpoint):
    """The checkpoint of the lowest distance of `SampleQuality`, as best.ckpt.

    A run resumes from its newest checkpoint by default, not from this one.

    Args:
        dirpath: the folder.
    """

    def __init__(self, dirpath: str | Path) -> None:
        self.file = Path(dirpath, BEST).absolute()
        self.lowest = math.inf

    def state_dict(self) -> dict[str, Any]:
        return {"lowest": self.lowest}

    def on_load_checkpoint(self, trainer: Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        if not self.file.is_file():
            return
        for key, state in checkpoint["callbacks"].items():
            if key.startswith("BestCheckpoint"):  # earlier versions append settings
                self.lowest = float(state.get("lowest", state.get("best_model_score", math.inf)))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        distance = float(trainer.callback_metrics.get(FIGURE, math.inf))
        fits = trainer.state.fn == "fit" and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if not fits or not distance < self.lowest:
            return
        before, self.lowest = self.lowest, distance
        trainer.save_checkpoint(self.file)
        if not is_written(trainer):
            self.lowest = before


def is_written(trainer: Trainer) -> bool:
    """Return True if rank 0 has written the last checkpoint to disk."""
    failure = getattr(trainer.strategy.checkpoint_io, "failure", None)
    return trainer.strategy.broadcast(failure) is None
