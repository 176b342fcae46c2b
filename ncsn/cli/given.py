"""What is made of pictures that are given: cleaned of noise, or the way from one to another."""

import math
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor

from ncsn.cli.from_options import ladder, place_of
from ncsn.cli.steering import read_pictures
from ncsn.evaluation.grids import save_grid
from ncsn.evaluation.walks import usual_batch
from ncsn.model.model import Model
from ncsn.samplers import ProbabilityFlow
from ncsn.score import tweedie
from ncsn.score.guidance import encode, slerp

__all__ = ["clean", "interpolate"]


def clean(module: Model, checkpoint: Path, options: Namespace) -> None:
    """Denoise the pictures of the options, and write each beside what came of it.

    Raises:
        ValueError: where a file is not a picture, the model is not of pictures, or does not know the noise level.
    """
    module.to(place_of(options.device))
    pairs = denoised_pairs(
        module, options.denoise, options.sigma, options.batch_size or usual_batch(module)
    )
    save_grid(
        pairs, options.out, 2 * math.ceil(math.sqrt(len(options.denoise) / 2)), options.upscale
    )
    print(
        f"Wrote {options.out}: {len(options.denoise)} at noise level {options.sigma:g}, denoised with {checkpoint}"
    )


def interpolate(module: Model, checkpoint: Path, options: Namespace) -> None:
    """Write the pictures between the two of the options, by way of their latents of the probability flow.

    Raises:
        ValueError: where a file is not a picture, or the model is not of pictures.
    """
    module.to(place_of(options.device))
    if len(module.shape) != 3:
        raise ValueError(
            f"--interpolate: this model is of examples of shape {module.shape}, not of pictures"
        )
    sigmas = ladder(module, options, ProbabilityFlow(), usual=40)
    ends = read_pictures(options.interpolate, module.shape[0], module.shape[1]).to(module.device)
    a, b = torch.split(encode(module.denoiser.score, ends, sigmas), 1)
    count = options.num_samples or 10
    t = torch.linspace(0, 1, count, device=module.device).view(-1, 1, 1, 1)
    start = slerp(a.expand(count, -1, -1, -1), b.expand(count, -1, -1, -1), t)
    *_, x = module.trajectory(start, sampler=ProbabilityFlow(), sigmas=sigmas)
    save_grid(x, options.out, count, options.upscale)
    print(f"Wrote {options.out}: from one picture to the other in {count}, with {checkpoint}")


@torch.no_grad()
def denoised_pairs(module: Model, files: list[Path], sigma: float, batch_size: int) -> Tensor:
    """Pictures in files, and after each the posterior mean of it without its noise: (2N, C, H, W) on the CPU.

    They are resized and cropped to what the model was trained on.

    Raises:
        ValueError: where a file is not a picture, the model is not of pictures, or does not know the noise level.
    """
    ladder = module.schedule.sigmas()
    low, high = ladder.min().item(), ladder.max().item()
    if not low * 0.999 <= sigma <= high * 1.001 or sigma == 0:
        raise ValueError(
            f"--sigma: {sigma:g} is outside of the noise levels that this model knows, {low:g} to {high:g}"
        )
    if not module.gaussian_noise:
        raise ValueError(
            "--denoise: this model was trained on noise that is not Gaussian, which Tweedie's formula supposes"
        )
    if len(module.shape) != 3:
        raise ValueError(
            f"--denoise: this model is of examples of shape {module.shape}, not of pictures"
        )
    given = read_pictures(files, module.shape[0], module.shape[1])
    level = torch.tensor(sigma, device=module.device)
    batches = torch.split(given.to(module.device), batch_size)
    denoised = torch.cat([tweedie(module.denoiser.score, x, level) for x in batches]).cpu()
    return torch.stack([given, denoised], dim=1).flatten(0, 1)
