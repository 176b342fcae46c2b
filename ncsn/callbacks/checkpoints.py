"""Which checkpoints of a run are kept: the newest ones, and the best."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ncsn.callbacks.score import FIGURE
from ncsn.checkpoints import BEST

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
