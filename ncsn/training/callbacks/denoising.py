"""What a model makes of noise, as a run goes on."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from ncsn.data import to_pixels
from ncsn.evaluation.grids import level_name, walk_sheet
from ncsn.score import tweedie
from ncsn.training.module import ScoreModule

__all__ = ["DenoisingStrips"]

LEVELS = 5


class DenoisingStrips(Callback):
    """Shows held-out pictures in TensorBoard at each validation: clean, with noise of five levels, and denoised.

    They are the first of the held-out pictures, with the same noise every time, by the weights that are validated.

    Args:
        count: how many pictures; 0 shows none.

    Raises:
        ValueError: where `count` is negative.
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
        ].exp()  # at the ends there is nothing to see
        with trainer.precision_plugin.forward_context():
            states = strips(pl_module, x, label, sigmas)
        sheet = walk_sheet(to_pixels(states).cpu(), ["clean", *map(level_name, sigmas.tolist())])
        for logger in loggers:
            logger.experiment.add_image("denoising", sheet, trainer.global_step)


@torch.no_grad()
def strips(module: ScoreModule, x: Tensor, label: Tensor | None, sigmas: Tensor) -> Tensor:
    """Pictures `x` (B, C, H, W), with noise of the levels (L,) after each, and below what is left without it.

    Returns:
        (2B, 1 + L, C, H, W); under the clean ones there is nothing.
    """

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
