"""`ncsn denoise`: images without their Gaussian noise, by Tweedie's formula."""

import math
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor

from ncsn.cli.devices import place_of
from ncsn.cli.from_options import loaded, with_images
from ncsn.cli.output import held_output
from ncsn.data import FileImages, to_unit
from ncsn.evaluation.grids import save_grid
from ncsn.model.load import CHECKPOINTS, default_checkpoint
from ncsn.model.model import Model

__all__ = ["denoised_pairs", "read_images", "run"]


def run(options: Namespace) -> None:
    """Write each image next to its posterior mean."""
    checkpoint = options.model or default_checkpoint(CHECKPOINTS)
    with held_output(options):
        model = loaded(checkpoint, options).to(place_of(options.device))
        pairs = denoised_pairs(model, options.images, options.sigma, options.batch_size or 256)
        columns = 2 * math.ceil(math.sqrt(len(options.images) / 2))
        save_grid(pairs, options.out, columns, options.upscale)
        print(
            f"Wrote {options.out}: {len(options.images)} at noise level {options.sigma:g}, "
            f"denoised with {checkpoint}"
        )


def denoised_pairs(model: Model, files: list[Path], sigma: float, batch_size: int) -> Tensor:
    """Return images in files, each followed by its posterior mean: (2N, C, H, W) on the CPU.

    Raises:
        ValueError: if a file is not an image, or the model does not know the noise level.
    """
    size = with_images(model, "denoise")
    known = model.schedule.sigmas()
    low, high = known.min().item(), known.max().item()
    if not low * 0.999 <= sigma <= high * 1.001 or sigma == 0:
        raise ValueError(
            f"--sigma: expected {low:g} to {high:g}, the model's levels, got {sigma:g}"
        )
    given = read_images(files, *size)
    with torch.no_grad():
        parts = torch.split(given.to(model.device), batch_size)
        denoised = torch.cat([model.denoise(x, sigma) for x in parts]).cpu()
    return torch.stack([given, denoised], dim=1).flatten(0, 1)


def read_images(files: list[Path], channels: int, size: int) -> Tensor:
    """Return the images in files, resized and cropped: (N, channels, size, size) in [0, 1].

    Raises:
        ValueError: if a file is not an image.
    """
    images = FileImages(files, torch.zeros(len(files)), channels, size)
    return to_unit(torch.stack([images.read(file) for file in files]))
