"""Denoised images in TensorBoard during training."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from ncsn.data import to_pixels
from ncsn.evaluation.grids import level_name, trajectory_grid
from ncsn.score import tweedie
from ncsn.training.module import ScoreModule

__all__ = ["DenoisingStrips"]

LEVELS = 5


class DenoisingStrips(Callback):
    """Held-out images in TensorBoard at each validation: clean, noisy, and denoised.

    The images, the five noise levels and the noise are the same at each validation.

    Args:
        count: the number of images; 0 disables the callback.

    Raises:
        ValueError: if `count` is negative.
    """

    def __init__(self, count: int = 4) -> None:
        if count < 0:
            raise ValueError(f"DenoisingStrips: count is {count}, and must be at least 0")
        self.count = count

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        *_: Any,
    ) -> None:
        assert isinstance(pl_module, ScoreModule)
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        ladder = pl_module.schedule.sigmas()
        denoises = (
            len(pl_module.shape) == 3 and pl_module.model.gaussian_noise and bool(ladder.min() > 0)
        )
        if batch_idx or not (self.count and loggers and denoises and trainer.is_global_zero):
            return
        x, label = batch[0][: self.count], None if batch[1] is None else batch[1][: self.count]
        ends = ladder.max().log().item(), ladder.min().log().item()
        sigmas = torch.linspace(*ends, LEVELS + 2)[
            1:-1
        ].exp()  # the ends are left out: they show clean images or pure noise
        with trainer.precision_plugin.forward_context():
            states = strips(pl_module, x, label, sigmas)
        sheet = trajectory_grid(
            to_pixels(states).cpu(), ["clean", *map(level_name, sigmas.tolist())]
        )
        for logger in loggers:
            logger.experiment.add_image("denoising", sheet, trainer.global_step)


@torch.no_grad()
def strips(module: ScoreModule, x: Tensor, label: Tensor | None, sigmas: Tensor) -> Tensor:
    """Return rows of `x` clean and noisy, each above its denoised: (2B, 1 + L, ...)."""

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        return (
            module.denoiser.score(x, sigma)
            if label is None
            else module.denoiser.score(x, sigma, label)
        )

    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    noisy = [x + sigma * z for sigma in sigmas.to(x)]
    denoised = [
        tweedie(score, state, sigma) for state, sigma in zip(noisy, sigmas.to(x), strict=True)
    ]
    rows = [torch.stack([x, *noisy], dim=1), torch.stack([torch.zeros_like(x), *denoised], dim=1)]
    return torch.stack(rows, dim=1).flatten(0, 1)
