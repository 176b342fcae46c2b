"""Which checkpoints of a run are kept: the newest ones, and the best."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ncsn.callbacks.score import FIGURE
from ncsn.checkpoints import BEST, numbered

__all__ = ["BestCheckpoint", "Checkpoint"]


class Checkpoint(ModelCheckpoint):
    """The newest checkpoints as step=N.ckpt: one every so many steps, and one of the exact end of the run.

    Args:
        dirpath: the folder.
        every: steps from one to the next.
        keep: how many are kept.

    Raises:
        ValueError: where `every` or `keep` is not positive.
    """

    def __init__(self, dirpath: str | None = None, every: int = 1000, keep: int = 2) -> None:
        for name, value in {"every": every, "keep": keep}.items():
            if value < 1:
                raise ValueError(f"Checkpoint: {name} is {value}, and must be at least 1")
        super().__init__(
            dirpath=dirpath,
            filename="{step}",
            monitor="step",
            mode="max",
            save_top_k=keep,
            every_n_train_steps=every,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Believe nothing that a file says of others, which would be removed: what the folder has is what there is."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # A resumed run saves its first step no more: it is in the file that it was resumed from.
        step = self._last_global_step_saved = trainer.global_step
        known = {file: number for file, number in numbered(str(self.dirpath)).items() if number <= step}
        kept = list(known.items())[: self.save_top_k]
        for file in known.keys() - dict(kept).keys():  # a run that was killed between writing and removing left it
            file.unlink(missing_ok=True)
        self.best_k_models = {str(file): torch.tensor(number) for file, number in kept}
        if kept:
            self.kth_best_model_path, self.kth_value = str(kept[-1][0]), torch.tensor(kept[-1][1])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # `every` need not divide the run: where it ends, whatever ended it, its last step is saved too.
        if trainer.fit_loop.done and self._last_global_step_saved != trainer.global_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


class BestCheckpoint(ModelCheckpoint):
    """The checkpoint whose samples scored best, as best.ckpt: the lowest of the figure that `SampleScore` logs.

    A run goes on from its newest checkpoint, never from this one, unless it is told to.

    Args:
        dirpath: the folder.
    """

    def __init__(self, dirpath: str) -> None:
        super().__init__(
            dirpath=dirpath,
            filename=BEST.removesuffix(".ckpt"),
            monitor=FIGURE,
            mode="min",
            save_top_k=1,
            every_n_epochs=1,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of what a file says, believe the best score alone, and that where the best checkpoint is still there."""
        own, score = Path(str(self.dirpath), BEST), state_dict.get("best_model_score")
        if own.is_file() and isinstance(score, torch.Tensor):
            self.best_model_path = self.kth_best_model_path = str(own)
            self.best_model_score = self.kth_value = score
            self.best_k_models = {str(own): score}
