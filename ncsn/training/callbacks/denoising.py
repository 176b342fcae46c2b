"""Denoised images in the logs during training."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ncsn.data import to_pixels
from ncsn.evaluation.grids import level_name, trajectory_grid
from ncsn.model.model import Model
from ncsn.noise.checks import expect
from ncsn.training.callbacks.logged import show_image
from ncsn.training.module import ScoreModule

__all__ = ["DenoisingStrips"]

LEVELS = 5


class DenoisingStrips(Callback):
    """Held-out images in the logs at each validation: clean, noisy, and denoised.

    The images, the five noise levels and the noise are the same at each validation.

    Args:
        count: the number of images; 0 disables the callback.
    """

    def __init__(self, count: int = 4) -> None:
        expect("count >= 0", count >= 0, self, count=count)
        self.count = count

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, _: Any, batch: Any, index: int, *__: Any
    ) -> None:
        assert isinstance(pl_module, ScoreModule)
        model, sigmas = pl_module.model, pl_module.schedule.sigmas()
        denoises = len(model.shape) == 3 and model.gaussian_noise and sigmas.min() > 0
        if index or not (self.count and denoises and trainer.loggers and trainer.is_global_zero):
            return
        # The ends are left out: they show clean images or pure noise.
        ends = sigmas.max().log().item(), sigmas.min().log().item()
        sigmas = torch.linspace(*ends, LEVELS + 2)[1:-1].exp()
        names = ["clean", *map(level_name, sigmas.tolist())]
        x, label = pl_module.examples(batch)
        spread = slice(None, None, max(1, len(x) // self.count))  # files may be sorted
        x, label = x[spread][: self.count], None if label is None else label[spread][: self.count]
        with trainer.precision_plugin.forward_context():
            states = strips(model, x, label, sigmas.to(x))
        sheet = trajectory_grid(to_pixels(states).cpu(), names)
        show_image(trainer, "denoising", sheet)


@torch.no_grad()
def strips(model: Model, x: Tensor, label: Tensor | None, sigmas: Tensor) -> Tensor:
    """Return rows of `x` clean and noisy, each above its denoised: (2B, 1 + L, ...)."""
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    noisy = [x + sigma * z for sigma in sigmas]
    denoised = [model.denoise(y, sigma, label) for y, sigma in zip(noisy, sigmas, strict=True)]
    rows = [torch.stack([x, *noisy], dim=1), torch.stack([torch.zeros_like(x), *denoised], dim=1)]
    return torch.stack(rows, dim=1).flatten(0, 1)
