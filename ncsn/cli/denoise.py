"""`ncsn denoise`: images without their Gaussian noise, by Tweedie's formula."""

import math
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor

from ncsn.cli.from_options import image_model, image_shape, label_of
from ncsn.cli.writers import held_output
from ncsn.data import FileImages, to_unit
from ncsn.evaluation.grids import save_grid
from ncsn.model.labels import NONE

__all__ = ["read_images", "run"]


def run(options: Namespace) -> None:
    """Write each image next to its posterior mean."""
    sigma, count = options.sigma, len(options.images)
    with held_output(options):
        checkpoint, model = image_model(options)
        label = label_of(model, options.label or NONE)  # the class of a given image is not known
        x = read_images(options.images, *image_shape(model))
        known = model.schedule.sigmas()
        low, high = known.min().item(), known.max().item()
        if not low * 0.999 <= sigma <= high * 1.001 or sigma == 0:
            levels = f"{low:g} to {high:g}, the model's levels"
            raise ValueError(f"--sigma: expected {levels}, got {sigma:g}")
        with torch.no_grad():
            parts = torch.split(x.to(model.device), options.batch_size or 256)
            denoised = torch.cat([model.denoise(part, sigma, label) for part in parts]).cpu()
        pairs = torch.stack([x, denoised], dim=1).flatten(0, 1)
        save_grid(pairs, options.out, 2 * math.ceil(math.sqrt(count / 2)), options.upscale)
        about = f"{count} at noise level {sigma:g}, denoised with {checkpoint}"
        about += model.labels.described(label, ", of ")
        print(f"Wrote {options.out}: {about}")


def read_images(files: list[Path], channels: int, size: int) -> Tensor:
    """Return the images in files, resized and cropped: (N, channels, size, size) in [0, 1]."""
    images = FileImages(files, torch.zeros(len(files)), channels, size)
    return to_unit(torch.stack([images.read(file) for file in files]))
