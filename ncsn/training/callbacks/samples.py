"""Samples and a trajectory in TensorBoard during training."""

import warnings
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ncsn.data import pixel_grid, to_pixels
from ncsn.evaluation.grids import save_grid, shown_levels, state_names, trajectory_grid
from ncsn.evaluation.plots import plot, save_figure
from ncsn.model.model import Model
from ncsn.noise.checks import expect
from ncsn.training.callbacks.dashboard import writers
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
        expect("count >= 0", count >= 0, self, count=count)
        self.count = count
        self.seed = seed

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ScoreModule)
        model, step, found = pl_module.model, trainer.global_step, writers(trainer)
        if not (self.count and found):
            return
        shown = shown_levels(len(model.schedule.sigmas()), STATES)
        try:
            with trainer.precision_plugin.forward_context():
                x, states = self.sampled(model, shown)
        except FloatingPointError as error:  # early in training samples may diverge
            message = f"the samples at step {step} diverged, and are not shown: {error}"
            warnings.warn(message, stacklevel=2)
            return
        figure = plot(x.cpu(), model, trainer.datamodule)  # type: ignore[attr-defined]
        for writer in found:
            file = Path(writer.log_dir, "samples", f"step={step:07d}.png")
            if figure is not None:
                writer.add_figure("samples", figure, step)
                save_figure(figure, file)
            elif len(model.shape) == 3:
                writer.add_image("samples", pixel_grid(x), step)
                save_grid(x, file)
            if len(model.shape) == 3:
                names = state_names(model.schedule.sigmas(), shown)
                writer.add_image("walk", trajectory_grid(to_pixels(states[None]), names), step)

    def sampled(self, model: Model, shown: list[int]) -> tuple[Tensor, Tensor]:
        """Return samples (count, ...), and the first sample's states after levels `shown`."""
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            start = model.start(self.count)
            states = [start[0].cpu()]
            for level, x in enumerate(model.trajectory(start), start=1):
                if level in shown:
                    states.append(x[0].cpu())
        return x, torch.stack(states)
