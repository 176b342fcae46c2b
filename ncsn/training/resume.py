"""Settings that must match when a run is resumed, and the position it resumes from.

No random state is saved: the order of examples follows from (seed, epoch), the noise of
a step from (seed, step, rank). A run resumes bit-exactly if the settings in `FIXED`
match. The learning rate, the length of the run, the sampler, and logging may change.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer

from ncsn.data import DataModule
from ncsn.model.checkpoint_file import local_file, read
from ncsn.model.load import newest_whole, numbered
from ncsn.model.renamed import updated

__all__ = [
    "Record",
    "Resume",
    "check_resumed",
    "checkpoint_of",
    "position_after",
    "recorded",
    "resumable",
]

# Settings that must match when a run is resumed, with all settings below them.
FIXED = (
    "seed_everything",
    "data",
    "model.denoiser",
    "model.schedule",
    "model.objective",
    "model.optimizer",
    "model.label_dropout",
    "trainer.accumulate_grad_batches",
    "trainer.limit_train_batches",
)
# Exceptions to `FIXED`; the data itself is identified by its fingerprint.
FREE = ("data.root", "data.workers", "data.memory", "model.optimizer.lr")

# Entries of a checkpoint of the training command, and their types.
CONTENT = {
    "global_step": int,
    "state_dict": dict,
    "current_model_state": dict,
    "averaging_state": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
    "callbacks": dict,
    "skipped_steps": list,
    "run": dict,
}


class Record(Callback):
    """The entry "run" of checkpoints: configuration, data and devices."""

    def __init__(self) -> None:
        self.run: dict[str, Any] = {}

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["run"] = self.run


class Resume(Callback):
    """A resumed run's exact continuation at the batch after its step.

    Lightning's progress counters depend on the hook that saves a checkpoint, and only
    after a batch do they lead to the next batch and the right step in the logs. The
    counters are therefore computed from the step.

    "complete" in a checkpoint is True if its step was validated or ended the run. If it
    is False and a validation is due at that step, the resumed run begins with it.
    """

    def __init__(self) -> None:
        self.complete_at: int | None = None
        self.resumed_at: Position | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.complete_at = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.complete_at = trainer.global_step

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["complete"] = self.complete_at == trainer.global_step

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        data: DataModule = trainer.datamodule  # type: ignore[attr-defined]
        step = checkpoint["global_step"]
        position = position_after(
            step, data.batches("train").taken, trainer.accumulate_grad_batches
        )
        checkpoint["loops"]["fit_loop"].update(position.progress())
        self.max_steps = trainer.max_steps
        if not checkpoint.get("complete", False):
            self.resumed_at = position
            if self.max_steps == step:  # otherwise Lightning would not start
                trainer.fit_loop.epoch_loop.max_steps += 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.resumed_at is None:
            return
        trainer.fit_loop.epoch_loop.max_steps = self.max_steps
        if self.resumed_at.is_validated(trainer):
            progress = trainer.fit_loop.epoch_progress.current
            completed, progress.completed = (
                progress.completed,
                self.resumed_at.epoch,
            )  # the epoch of the log
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
            progress.completed = completed


@dataclass(frozen=True)
class Position:
    """The end of the last batch of an optimiser step.

    Args:
        step: the optimiser steps taken, at least 1.
        epoch: the number of the epoch, from 0.
        done: the batches of the epoch that are done, at least 1.
        batches: the batches of an epoch.
    """

    step: int
    epoch: int
    done: int
    batches: int

    @property
    def total(self) -> int:
        """Return the number of batches done in the whole run."""
        return self.epoch * self.batches + self.done

    def is_validated(self, trainer: Trainer) -> bool:
        """Return True if a validation is due here; those by time are not supported."""
        interval, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
        if interval is None or not trainer.enable_validation:
            return False
        batches = self.total if epochs is None else self.done
        return batches % interval == 0 and (epochs is None or (self.epoch + 1) % epochs == 0)

    def progress(self) -> dict[str, Any]:
        """Return Lightning's counters, as entries of the fit loop's state."""

        def counts(started: int, processed: int, completed: int) -> dict[str, int]:
            return {
                "ready": started,
                "started": started,
                "processed": processed,
                "completed": completed,
            }

        return {
            "epoch_progress": {
                name: counts(self.epoch + 1, self.epoch, self.epoch)
                for name in ("total", "current")
            },
            "epoch_loop.batch_progress": {
                "total": counts(self.total, self.total, self.total - 1),
                "current": counts(self.done, self.done, self.done - 1),
                "is_last_batch": self.done == self.batches,
            },
            "epoch_loop.state_dict": {"_batches_that_stepped": self.step - 1},
            "epoch_loop.val_loop.batch_progress": {
                "total": counts(0, 0, 0),
                "current": counts(0, 0, 0),
                "is_last_batch": False,
            },
        }


def position_after(step: int, batches: int, accumulate: int) -> Position:
    """Return the position after a step.

    Args:
        step: the optimiser steps taken, at least 1.
        batches: the batches of an epoch.
        accumulate: the batches per step; the last step of an epoch may have fewer.
    """
    epoch, before = divmod(step - 1, math.ceil(batches / accumulate))
    return Position(step, epoch, min((before + 1) * accumulate, batches), batches)


def checkpoint_of(asked: str | None, folder: Path) -> Path | None:
    """Return the checkpoint to resume from: `asked` is its path, `last`, or None.

    Raises:
        ValueError: if it does not exist, or the folder has newer checkpoints or others.
    """
    newest = next(iter(numbered(folder)), None)
    if asked is None:
        if newest:
            raise ValueError(
                f"name: {folder} has checkpoints already; go on from them with --ckpt_path last, give another --name, "
                "or remove them"
            )
        return None
    if asked != "last":
        local_file(asked)
        if newest and Path(asked).resolve() != newest.resolve():
            raise ValueError(
                f"--ckpt_path: {asked}, but {folder} has newer checkpoints or those of another run; give another "
                "--name, or remove them"
            )
        return Path(asked)
    file, wrong = newest_whole(folder)
    if wrong:
        rank_zero_only(print)(f"{wrong[0]}; going on from {file}", file=sys.stderr)
    return file


def resumable(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint of the training command.

    Raises:
        ValueError: if the file is damaged, or was not made by the training command.
    """
    content = read(path)
    kinds = [isinstance(content.get(key), kind) for key, kind in CONTENT.items()]
    if not (
        all(kinds)
        and content["optimizer_states"]
        and {"config", "fingerprint", "devices"} <= content["run"].keys()
    ):
        raise ValueError(
            f"--ckpt_path: {path} was not made by the training command, and cannot be resumed"
        )
    return content


def recorded(config: dict[str, Any], data: DataModule, devices: int) -> dict[str, Any]:
    """Return the entry that `Record` saves, in plain values."""
    return {"config": config, "fingerprint": data.fingerprint(), "devices": devices}


def check_resumed(run: dict[str, Any], checkpoint: dict[str, Any], path: str) -> None:
    """Check that a run matches the checkpoint that it resumes from.

    Args:
        run: the result of `recorded` for the resumed run.
        checkpoint: the result of `resumable`.
        path: of the checkpoint, for the message.

    Raises:
        ValueError: if a setting in `FIXED`, the data or the number of devices differs.
    """
    before = checkpoint["run"]
    ours, theirs = dict(fixed(run["config"])), dict(fixed(updated(before["config"])))
    ours |= {"trainer.devices": run["devices"], "examples": run["fingerprint"][:12]}
    theirs |= {"trainer.devices": before["devices"], "examples": before["fingerprint"][:12]}
    for key in ours:
        # A missing setting is new in this version, or of a class that differs too.
        if key in theirs and ours[key] != theirs[key]:
            named = "data: its examples have the fingerprint" if key == "examples" else f"{key}:"
            raise ValueError(
                f"{named} {ours[key]}, but {theirs[key]} in {path}; a run goes on as it began"
            )


def fixed(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted names and values of the settings in `FIXED`."""
    for name, value in settings.items():
        key = prefix if name == "init_args" else f"{prefix}.{name}".strip(".")
        if isinstance(value, dict):
            yield from fixed(value, key)
        elif key not in FREE and any(key == one or key.startswith(f"{one}.") for one in FIXED):
            # A class has several import paths: those of its package and of its module.
            yield (
                (key.removesuffix(".class_path"), value.rpartition(".")[2])
                if name == "class_path"
                else (key, value)
            )
