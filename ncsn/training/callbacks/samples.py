"""Training images, samples and a trajectory in the logs during training."""

import warnings

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchvision.io import ImageReadMode, read_image

from ncsn.data import ImageData, enlarged, pixel_grid, tiled, to_pixels
from ncsn.evaluation.grids import save_grid, shown_levels, state_names, trajectory_grid
from ncsn.evaluation.plots import plot, save_figure
from ncsn.model.model import Model
from ncsn.noise.checks import expect
from ncsn.noise.streams import Streams
from ncsn.training.callbacks.logged import log_folder, show_image
from ncsn.training.module import ScoreModule

__all__ = ["SampleGrid"]

STATES = 7  # states shown of the trajectory
MOST = 10_000  # samples in memory at once, as one image


class SampleGrid(Callback):
    """Samples and one trajectory in the logs at each validation, from the same seed.

    As many training images are shown at the start, for comparison.
    The samples are also saved to samples/ in the log folder. `EMA` swaps in the
    averaged weights for the validation: list this callback before it.

    Args:
        count: the number of samples; 0 disables the callback.
        seed: of the samples.
    """

    def __init__(self, count: int = 16, seed: int = 0) -> None:
        expect(f"count from 0 to {MOST:,}", 0 <= count <= MOST, self, count=count)
        self.count = count
        self.seed = seed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if self.count and isinstance(data, ImageData):
            examples = data.splits["train"]
            spread = torch.linspace(0, len(examples) - 1, self.count).long().tolist()
            pixels, _ = examples[spread]  # files may be sorted by class
            show_image(trainer, "training images", tiled(enlarged(pixels.cpu())))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ScoreModule)
        model, step = pl_module.model, trainer.global_step
        shows = trainer.loggers and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if not (self.count and shows and trainer.is_global_zero):
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
        file = log_folder(trainer.loggers[0]) / "samples" / f"step={step:07d}.png"
        if figure is not None:
            save_figure(figure, file)
            show_image(trainer, "samples", read_image(str(file), ImageReadMode.RGB))
        elif len(model.shape) == 3:
            save_grid(x, file)
            show_image(trainer, "samples", pixel_grid(x))
        if len(model.shape) == 3:
            names = state_names(model.schedule.sigmas(), shown)
            show_image(trainer, "trajectory", trajectory_grid(to_pixels(states[None]), names))

    def sampled(self, model: Model, shown: list[int]) -> tuple[Tensor, Tensor]:
        """Return samples (count, ...), and the first sample's states after levels `shown`."""
        with Streams(self.seed, range(self.count), model.device):
            start = model.start(self.count)
            states = [start[0].cpu()]
            for level, x in enumerate(model.trajectory(start), start=1):
                if level in shown:
                    states.append(x[0].cpu())
        return x, torch.stack(states)
