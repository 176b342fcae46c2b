"""Samples and a trajectory in TensorBoard during training."""

import warnings
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from ncsn.data import pixel_grid, to_pixels
from ncsn.evaluation.grids import save_grid, shown_levels, state_names, trajectory_grid
from ncsn.evaluation.plots import plot, save_figure
from ncsn.model.model import Model
from ncsn.training.module import ScoreModule

__all__ = ["SampleGrid"]

STATES = 7  # states shown of the trajectory


class SampleGrid(Callback):
    """Samples and one trajectory in TensorBoard at each validation, from the same seed.

    The samples are also saved to samples/ in the log folder. `EMA` swaps in the
    averaged weights for the validation: list this callback before it.

    Args:
        count: the number of samples; 0 disables the callback.
        seed: of the samples.
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
                    x, first = self.drawn(pl_module.model)
            except FloatingPointError as error:  # early in training samples may diverge
                warnings.warn(
                    f"the samples at step {trainer.global_step} diverged, and are not shown: {error}",
                    stacklevel=2,
                )
                return
        figure = plot(x.cpu(), pl_module.model, trainer.datamodule)  # type: ignore[attr-defined]
        for logger in loggers:
            file = Path(logger.log_dir, "samples", f"step={trainer.global_step:07d}.png")
            if figure is not None:
                logger.experiment.add_figure("samples", figure, trainer.global_step)
                save_figure(figure, file)
            elif len(pl_module.shape) == 3:
                logger.experiment.add_image("samples", pixel_grid(x), trainer.global_step)
                save_grid(x, file)
            if len(pl_module.shape) == 3:
                logger.experiment.add_image(
                    "walk", first_walk(pl_module.model, first), trainer.global_step
                )

    def drawn(self, module: Model) -> tuple[Tensor, list[Tensor]]:
        """Return samples (count, ...), and the states of the first that are shown."""
        start, shown = module.start(self.count), shown_levels(len(module.schedule.sigmas()), STATES)
        states = [start[0].cpu()]
        for level, x in enumerate(module.trajectory(start), start=1):
            if level in shown:
                states.append(x[0].cpu())
        return x, states


def first_walk(module: Model, states: list[Tensor]) -> Tensor:
    """Return the states (C, H, W) of a trajectory as one labelled row (3, H', W')."""
    sigmas = module.schedule.sigmas()
    return trajectory_grid(
        to_pixels(torch.stack(states)[None]), state_names(sigmas, shown_levels(len(sigmas), STATES))
    )
