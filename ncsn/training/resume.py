"""Settings that must match when a run is resumed, and the position it resumes from.

No random state is saved: the order of examples follows from (seed, epoch), the noise of
a step from (seed, step, rank). A run resumes bit-exactly if the settings in `EXACT` and
`OF_STATE` match. The learning rate, the length of the run, the sampler, and logging may
change, and with `--accept_changes true` those in `EXACT` as well. All changes are printed.
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer

from ncsn.data import DataModule
from ncsn.model.checkpoint_file import local_file, read
from ncsn.model.load import newest_whole, numbered
from ncsn.model.renamed import updated
from ncsn.model.settings import check_weights
from ncsn.training.module import ScoreModule

__all__ = [
    "Record",
    "Resume",
    "check_resumed",
    "check_state",
    "checkpoint_of",
    "flattened",
    "is_finished",
    "position_after",
    "resumable",
]

# Settings that an exact continuation follows from, with all settings below them.
EXACT = (
    "seed_everything",
    "data",
    "examples",
    "the classes of data",
    "model.schedule",
    "model.objective",
    "model.label_dropout",
    "model.augment",
    "ema",
    "trainer.precision",
    "trainer.gradient_clip_val",
    "trainer.gradient_clip_algorithm",
    "trainer.accumulate_grad_batches",
    "trainer.limit_train_batches",
    "trainer.devices",
)
# Settings that the weights and the optimiser's state in a checkpoint belong to.
OF_STATE = ("model.denoiser", "model.optimizer")
# Exceptions to both; the data itself is identified by its fingerprint.
FREE = ("data.root", "data.workers", "data.memory", "data.skip_broken", "model.optimizer.lr")
# Settings that are the same, written otherwise.
PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}
DEFAULTS = {
    "trainer.precision": "32-true",
    "trainer.gradient_clip_val": 0,
    "trainer.gradient_clip_algorithm": "norm",
    "trainer.limit_train_batches": 1.0,
}
NEW_RUN = "give another --name, and --model.weights for a start from these weights"
OF_COMMAND = ("name", "config", "ckpt_path", "accept_changes", "checkpoint.dirpath")

# Entries of a checkpoint of the training command, and of its entry "run". None is empty or 0.
ENTRIES = {
    "global_step": int,
    "state_dict": dict,
    "current_model_state": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
    "callbacks": dict,
    "skipped_steps": list,
    "run": dict,
    "run.config": dict,
    "run.fingerprint": str,
    "run.devices": int,
}


class Record(Callback):
    """The entry "run" of checkpoints: configuration, data and devices."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.run: dict[str, Any] = {"config": config}

    def describe(self, data: DataModule, devices: int) -> None:
        """Add the data and the number of devices."""
        self.run |= {"fingerprint": data.fingerprint(), "devices": devices}
        self.run["classes"] = data.class_names[: data.classes]

    def on_save_checkpoint(self, _: Trainer, __: Any, checkpoint: dict[str, Any]) -> None:
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

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self.complete_at = trainer.global_step

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        self.complete_at = trainer.global_step

    def on_save_checkpoint(self, trainer: Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["complete"] = self.complete_at == trainer.global_step

    def on_load_checkpoint(self, trainer: Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        data: DataModule = trainer.datamodule  # type: ignore[attr-defined]
        step, batches = checkpoint["global_step"], data.batches("train").taken
        position = position_after(step, batches, trainer.accumulate_grad_batches)
        checkpoint["loops"]["fit_loop"].update(position.progress())
        self.max_steps = trainer.max_steps
        if not checkpoint.get("complete", False):
            self.resumed_at = position
            if self.max_steps == step:  # otherwise Lightning would not start
                trainer.fit_loop.epoch_loop.max_steps += 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.resumed_at is None:
            return
        loop, progress = trainer.fit_loop.epoch_loop, trainer.fit_loop.epoch_progress.current
        loop.max_steps = self.max_steps
        if self.resumed_at.is_validated(trainer):
            completed = progress.completed
            progress.completed = self.resumed_at.epoch  # the epoch of the log
            trainer.validating = True
            loop.val_loop.run()
            trainer.training = True
            progress.completed = completed


@dataclass(frozen=True)
class Position:
    """The end of the last batch of an optimiser step."""

    step: int  # the optimiser steps taken, at least 1
    epoch: int  # from 0
    done: int  # the batches of the epoch that are done, at least 1
    batches: int  # of an epoch

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

        def counts(started: int, completed: int, processed: int) -> dict[str, int]:
            begun = {"ready": started, "started": started}
            return {**begun, "processed": processed, "completed": completed}

        epochs = counts(self.epoch + 1, self.epoch, self.epoch)
        nothing = dict.fromkeys(("total", "current"), counts(0, 0, 0))
        return {
            "epoch_progress": {"total": epochs, "current": epochs},
            "epoch_loop.batch_progress": {
                "total": counts(self.total, self.total - 1, self.total),
                "current": counts(self.done, self.done - 1, self.done),
                "is_last_batch": self.done == self.batches,
            },
            "epoch_loop.state_dict": {"_batches_that_stepped": self.step - 1},
            "epoch_loop.val_loop.batch_progress": {**nothing, "is_last_batch": False},
        }


def position_after(step: int, batches: int, accumulate: int) -> Position:
    """Return the position after `step` steps of `accumulate` batches each.

    The last step of an epoch of `batches` batches may have fewer.
    """
    epoch, before = divmod(step - 1, math.ceil(batches / accumulate))
    return Position(step, epoch, min((before + 1) * accumulate, batches), batches)


def checkpoint_of(asked: str | None, folder: Path) -> Path | None:
    """Return the checkpoint to resume from: `asked` is its path, `last`, or None."""
    newest = next(iter(numbered(folder)), None)
    if asked == "last":
        file, wrong = newest_whole(folder)
        if wrong:
            rank_zero_only(print)(f"{wrong[0]}; going on from {file}", file=sys.stderr)
        return file
    if asked is None and newest:
        raise ValueError(
            f"name: {folder} has checkpoints already; go on from them with --ckpt_path last, give "
            "another --name, or remove them"
        )
    if asked is None:
        return None
    local_file(asked)
    if newest and Path(asked).resolve() != newest.resolve():
        raise ValueError(
            f"--ckpt_path: {asked}, but {folder} has newer checkpoints or those of another run; "
            "give another --name, or remove them"
        )
    return Path(asked)


def resumable(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint of the training command."""
    content = read(path)
    run = content.get("run")
    of_run = {f"run.{key}": value for key, value in run.items()} if isinstance(run, dict) else {}
    for entry, kind in ENTRIES.items():
        value = (content | of_run).get(entry)
        if type(value) is not kind or not value:
            raise ValueError(
                f"--ckpt_path: {path} has no {entry} of the training command, and cannot be "
                "resumed; --model.weights FILE starts a new run from its weights"
            )
    return content


def is_finished(checkpoint: dict[str, Any], max_steps: int) -> bool:
    """Return True if a checkpoint ends the run; not if its last validation was interrupted."""
    step = checkpoint["global_step"]
    complete = bool(checkpoint.get("complete", True))
    return 0 < max_steps < step or (max_steps == step and complete)


def check_resumed(
    run: dict[str, Any], checkpoint: dict[str, Any], path: str, accept_changes: bool = False
) -> list[str]:
    """Return how a run differs from the checkpoint that it resumes from, one text a setting.

    Args:
        run: the description of the resumed run, of `Record`.
        checkpoint: the content of the checkpoint.
        path: of the checkpoint, for the message.
        accept_changes: also let settings change that an exact continuation needs.

    Raises:
        ValueError: if a setting has changed that must not.
    """
    ours, theirs, changes = compared(run), compared(checkpoint["run"]), []
    as_text = sorted(run["classes"])
    is_earlier = "classes" not in checkpoint["run"] and "data.class_names" in ours
    if is_earlier and as_text != run["classes"]:
        raise ValueError(
            f"data.class_names: {path} is of an earlier version, which numbered the classes in the "
            f"order of text; give --data.class_names {json.dumps(as_text)}"
        )
    for key, value in ours.items():
        # A missing setting is new in this version, or of a class that differs too.
        if key not in theirs or canonical(key, theirs[key]) == canonical(key, value):
            continue
        named = "data: its examples have the fingerprint" if key == "examples" else f"{key}:"
        of_state = key not in FREE and is_below(key, OF_STATE)
        if of_state or (key not in FREE and is_below(key, EXACT) and not accept_changes):
            way_out = NEW_RUN if of_state else "go on with --accept_changes true"
            raise ValueError(
                f"{named} {value}, but {theirs[key]} in {path}; change it back, or {way_out}"
            )
        changes.append(f"{named} {theirs[key]} -> {value}")
    return changes


def check_state(
    model: ScoreModule, keeps_state: bool, checkpoint: dict[str, Any], path: str
) -> None:
    """Check that the weights and the optimiser's state are those of a model.

    Raises:
        ValueError: if they are not, or the optimiser keeps a state and there is none.
    """
    own = model.state_dict()
    for entry in ("state_dict", "current_model_state"):
        weights = checkpoint[entry]
        try:
            check_weights(model, weights, path)
        except ValueError as error:
            raise ValueError(f"{error}; {NEW_RUN}") from error
        for name, weight in weights.items():
            if weight.dtype != own[name].dtype:
                found = f"{name} of {weight.dtype}, here it is {own[name].dtype}"
                raise ValueError(f"--ckpt_path: {path} has a {entry} with {found}; {NEW_RUN}")
    kept = checkpoint["optimizer_states"][0]
    state = kept.get("state") if isinstance(kept, dict) else None
    if keeps_state and not (isinstance(state, dict) and any(state.values())):
        lost = "has no state in its optimizer_states, and cannot be resumed exactly"
        raise ValueError(f"--ckpt_path: {path} {lost}; {NEW_RUN}")


def compared(run: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a checkpoint's entry "run", and its data, by dotted names."""
    settings = flattened(updated(run["config"]))
    settings |= {"trainer.devices": run["devices"], "examples": run["fingerprint"][:12]}
    if "classes" in run:
        settings["the classes of data"] = run["classes"]
    return {key: value for key, value in settings.items() if key not in OF_COMMAND}


def canonical(key: str, value: Any) -> Any:
    """Return a setting as all that mean the same are written."""
    value = value or DEFAULTS.get(key, value)
    if key == "trainer.limit_train_batches":
        return repr(value)  # 1 is one batch, and 1.0 is all
    return PRECISIONS.get(str(value), value) if key == "trainer.precision" else value


def is_below(key: str, settings: tuple[str, ...]) -> bool:
    """Return True if `key` is one of the settings, or below one."""
    return any(f"{key}.".startswith(f"{one}.") for one in settings)


def flattened(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted names, and classes by their names alone."""
    found = {}
    for name, value in settings.items():
        key = prefix if name == "init_args" else f"{prefix}.{name}".strip(".")
        if name == "class_path":  # of which a class has several
            found[prefix] = value.rpartition(".")[2]
        elif isinstance(value, dict):
            found |= flattened(value, key)
        else:
            found[key] = value
    return found
