"""`ncsn interpolate`: the images between two, by their latents of the probability flow."""

from argparse import Namespace
from functools import partial

import torch

from ncsn.cli.denoise import read_images
from ncsn.cli.from_options import image_model, image_shape, label_of, sigmas_of
from ncsn.cli.writers import held_output
from ncsn.evaluation.grids import save_grid
from ncsn.model.labels import NONE
from ncsn.samplers import Heun
from ncsn.score.guidance import encode, slerp

__all__ = ["run"]

LEVELS = 40


def run(options: Namespace) -> None:
    """Write the images in a row."""
    with held_output(options):
        checkpoint, model = image_model(options)
        model.expect_gaussian_noise("ncsn interpolate")
        label = label_of(model, options.label or NONE)  # the class of a given image is not known
        sampler = Heun()
        sigmas = sigmas_of(model, options, sampler, LEVELS)
        ends = read_images(options.images, image_shape(model), convert=True).to(model.device)
        a, b = torch.split(encode(partial(model.score, label=label), ends, sigmas), 1)
        count = options.num_samples
        t = torch.linspace(0, 1, count, device=model.device).view(-1, 1, 1, 1)
        start = slerp(a.expand(count, -1, -1, -1), b.expand(count, -1, -1, -1), t)
        *_, x = model.trajectory(start, label, sampler, sigmas)
        save_grid(x, options.out, count, options.upscale)
        about = f"{count} images from one to the other, with {checkpoint}"
        print(f"Wrote {options.out}: {about}{model.labels.described(label, ', of ')}")
