"""Pictures of samples, as a run goes on."""

import warnings
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from ncsn.data import pixel_grid, save_grid
from ncsn.module import ScoreModule
from ncsn.plots import plot, save_figure

__all__ = ["SampleGrid"]


class SampleGrid(Callback):
    """Draws samples at each validation, from the same start: to TensorBoard, and to samples/ in its folder.

    It draws with the averaged weights, which `EMA` puts in place for the time of a validation: list it before `EMA`.

    Args:
        count: how many pictures; 0 draws none.
        seed: of the start and of the walk.
    """

    def __init__(self, count: int = 16, seed: int = 0) -> None:
        if count < 0:
            raise ValueError(f"SampleGrid: count is {count}, and must be at least 0")
        self.count = count
        self.seed = seed

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ScoreModule)
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not (self.count and loggers and trainer.is_global_zero):
            return
        with torch.random.fork_rng([pl_module.device] if pl_module.device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            try:
                with trainer.precision_plugin.forward_context():
                    *_, x = pl_module.draw(pl_module.start(self.count))
            except FloatingPointError as error:  # as of a model that has yet to learn
                warnings.warn(
                    f"the samples at step {trainer.global_step} diverged, and are not shown: {error}", stacklevel=2
                )
                return
        figure = plot(x.cpu(), pl_module, trainer.datamodule)  # type: ignore[attr-defined]
        for logger in loggers:
            file = Path(logger.log_dir, "samples", f"step={trainer.global_step:07d}.png")
            if figure is not None:
                logger.experiment.add_figure("samples", figure, trainer.global_step)
                save_figure(figure, file)
            elif len(pl_module.shape) == 3:
                logger.experiment.add_image("samples", pixel_grid(x), trainer.global_step)
                save_grid(x, file)
