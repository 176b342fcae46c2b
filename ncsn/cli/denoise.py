"""`ncsn denoise`: images without their Gaussian noise, by Tweedie's formula."""

import math
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ncsn.cli.from_options import image_model, image_shape, label_of
from ncsn.cli.writers import held_output
from ncsn.data import FileImages, to_unit, upright
from ncsn.evaluation.grids import save_grid
from ncsn.model.labels import NONE

__all__ = ["read_images", "run"]

COLOURLESS = 8  # of 255, the largest difference between the channels of a grey pixel


def run(options: Namespace) -> None:
    """Write each image next to its posterior mean."""
    sigma, count = options.sigma, len(options.images)
    with held_output(options):
        checkpoint, model = image_model(options)
        label = label_of(model, options.label or NONE)  # the class of a given image is not known
        x = read_images(options.images, image_shape(model))
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


def read_images(
    files: Sequence[Path], shape: tuple[int, int, int], convert: bool = False
) -> Tensor:
    """Return the images in files, (N, *shape) in [0, 1].

    Those of another size, with transparent pixels, or with colours for a shape without, are
    refused unless `convert` is True, because the conversion would change their noise and blur.
    """
    channels, height, width = shape
    expected = f"{width}x{height} pixels (width x height)" + " without colours" * (channels == 1)
    for file in files:
        image = upright(file)
        found = "x".join(map(str, image.size)) + " pixels"
        if channels == 1 and np.ptp(np.asarray(image, dtype=int), -1).max() > COLOURLESS:
            found += " with colours"
        with Image.open(file) as stored:
            if stored.has_transparency_data:
                opaque = stored.convert("RGBA").getchannel("A").getextrema() == (255, 255)
                found += "" if opaque else ", some of them transparent"
        if found != f"{width}x{height} pixels":
            if not convert:
                caveat = "convert it first, knowing that this changes noise and blur"
                raise ValueError(f"{file}: expected {expected}, got {found}; {caveat}")
            print(f"{file}: {found}; resized and cropped to {expected}, on white")
    images = FileImages(files, torch.zeros(len(files)), channels, (height, width))
    return to_unit(torch.stack([images.read(file) for file in files]))
