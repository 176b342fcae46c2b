"""`ncsn denoise`: images without their Gaussian noise, by Tweedie's formula."""

import math
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor

from ncsn.cli.from_options import image_model, image_shape
from ncsn.cli.writers import held_output
from ncsn.data import FilePictures, to_unit
from ncsn.evaluation.grids import save_grid
from ncsn.model.model import Model

__all__ = ["read_images", "run"]


def run(options: Namespace) -> None:
    """Write each image next to its posterior mean."""
    with held_output(options):
        checkpoint, model = image_model(options)
        pairs = denoised_pairs(model, options.images, options.sigma, options.batch_size or 256)
        count = len(options.images)
        save_grid(pairs, options.out, 2 * math.ceil(math.sqrt(count / 2)), options.upscale)
        level = f"at noise level {options.sigma:g}"
        print(f"Wrote {options.out}: {count} {level}, denoised with {checkpoint}")


def denoised_pairs(model: Model, files: list[Path], sigma: float, batch_size: int) -> Tensor:
    """Return images in files, each followed by its posterior mean: (2N, C, H, W) on the CPU."""
    given = read_images(files, *image_shape(model))
    known = model.schedule.sigmas()
    low, high = known.min().item(), known.max().item()
    if not low * 0.999 <= sigma <= high * 1.001 or sigma == 0:
        levels = f"{low:g} to {high:g}, the model's levels"
        raise ValueError(f"--sigma: expected {levels}, got {sigma:g}")
    with torch.no_grad():
        parts = torch.split(given.to(model.device), batch_size)
        denoised = torch.cat([model.denoise(x, sigma) for x in parts]).cpu()
    return torch.stack([given, denoised], dim=1).flatten(0, 1)


def read_images(files: list[Path], channels: int, size: int) -> Tensor:
    """Return the images in files, resized and cropped: (N, channels, size, size) in [0, 1]."""
    images = FilePictures(files, torch.zeros(len(files)), channels, size)
    return to_unit(torch.stack([images.read(file) for file in files]))
