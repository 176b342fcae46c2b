"""The sampling command: pictures, or whatever the model is of, drawn from a checkpoint or cleaned of noise."""

import json
import math
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentError
from torch import Tensor

from ncsn.archive import digest
from ncsn.checkpoints import load, load_data, newest_checkpoint
from ncsn.choices import chosen_trainer, chosen_walks, ladder, place_of
from ncsn.data import Points, save_grid
from ncsn.drawing import Collected, DrawingProgress, Files, predict, usual_batch
from ncsn.errors import answered, hush
from ncsn.guidance import encode, slerp
from ncsn.module import ScoreModule
from ncsn.plots import plot, save_figure
from ncsn.samplers import ProbabilityFlow, Sampler
from ncsn.score import tweedie
from ncsn.steering import read_pictures, steering

__all__ = ["draw", "run"]

CHECKPOINTS = Path("checkpoints")


def run(options: Namespace, of_sampler: Sequence[str]) -> None:
    """Load, draw (or denoise), and write, as the options of the command line say."""
    hush()
    with answered({ArgumentError: 2, ValueError: 2, FloatingPointError: 3, OSError: 1}):
        checkpoint = options.checkpoint or newest_checkpoint(CHECKPOINTS)
        module = load(checkpoint, raw=options.raw)
        if options.denoise is not None:
            clean(module, checkpoint, options)
        elif options.interpolate is not None:
            interpolate(module, checkpoint, options)
        else:
            draw(module, checkpoint, options, of_sampler)


def clean(module: ScoreModule, checkpoint: Path, options: Namespace) -> None:
    """Denoise the pictures of the options, and write each beside what came of it."""
    module.to(place_of(options.device))
    pairs = denoised_pairs(module, options.denoise, options.sigma, options.batch_size or usual_batch(module))
    save_grid(pairs, options.out, columns=2 * math.ceil(math.sqrt(len(options.denoise) / 2)))
    print(f"Wrote {options.out}: {len(options.denoise)} at noise level {options.sigma:g}, denoised with {checkpoint}")


def interpolate(module: ScoreModule, checkpoint: Path, options: Namespace) -> None:
    """Write the pictures between the two of the options, by way of their latents of the probability flow."""
    module.to(place_of(options.device))
    if len(module.shape) != 3:
        raise ValueError(f"--interpolate: this model is of examples of shape {module.shape}, not of pictures")
    sigmas = ladder(module, options.steps or 40, ProbabilityFlow())
    ends = read_pictures(options.interpolate, module.shape[0], module.shape[1]).to(module.device)
    a, b = torch.split(encode(module.denoiser.score, ends, sigmas), 1)
    count = options.num_samples or 10
    t = torch.linspace(0, 1, count, device=module.device).view(-1, 1, 1, 1)
    start = slerp(a.expand(count, -1, -1, -1), b.expand(count, -1, -1, -1), t)
    *_, x = module.draw(start, sampler=ProbabilityFlow(), sigmas=sigmas)
    save_grid(x, options.out, columns=count)
    print(f"Wrote {options.out}: from one picture to the other in {count}, with {checkpoint}")


def draw(module: ScoreModule, checkpoint: Path, options: Namespace, of_sampler: Sequence[str]) -> None:
    """Draw what the options say, on all of the devices, and write it as it comes or as one picture.

    Raises:
        ValueError: where an option does not fit the model or the machine.
        FloatingPointError: where a walk diverges.
    """
    steered = steering(module, options)
    walks = chosen_walks(module, options, of_sampler, steered.guide, steered.finish)
    rows = module.classes if options.label == "all" else None
    count = options.num_samples or (8 * rows if rows else usual_count(module))
    if rows and count % rows:
        raise ValueError(
            f"--num-samples: {count} is no multiple of the {rows} classes that --label all gives a row each"
        )
    folder = options.out.suffix == ""
    pictures = len(module.shape) == 3
    if folder and not pictures:
        raise ValueError(f"--out: {options.out} names a folder for pictures, but the model is of shape {module.shape}")
    data = None if pictures else points_of(module, checkpoint)
    indices = range(options.start_index, options.start_index + count)
    drawn_with = folder and drawing(checkpoint, walks.sampler, options)
    writer = Files(options.out, indices, drawn_with) if drawn_with else Collected()
    if isinstance(writer, Files):
        walks.is_drawn = writer.is_drawn
    trainer = chosen_trainer(options, writer, DrawingProgress(count))
    if trainer.is_global_zero:
        print(f"Drawing {count:,} from {checkpoint} by {walks.sampler} over {len(walks.sigmas)} levels")
    predict(trainer, walks, indices, options.batch_size)
    if trainer.is_global_zero:
        if isinstance(writer, Collected):
            # With a row for each class, from the first: `chosen_labels` gives an index the class that it leaves.
            order = sorted(indices, key=lambda index: index % rows) if rows else indices
            samples = writer.samples(order)
            if steered.given is not None:
                samples = torch.cat([steered.given.unsqueeze(0), samples])
            write(samples, module, data, options.out, columns=count // rows if rows else None)
        print(f"Wrote {options.out}")


def drawing(checkpoint: Path, sampler: Sampler, options: Namespace) -> str:
    """All that a sample follows from but its index: the weights, the sampler, and the options that tell on it."""
    telling = ["seed", "steps", "label", "raw", "guidance", "inpaint", "mask", "super_resolve", "factor", "deblur"]
    telling += ["blur", "colourise", "noise", "precision", "compile"]
    given = {name: str(getattr(options, name)) for name in telling if getattr(options, name) is not None}
    return json.dumps({"weights": digest(checkpoint), "sampler": str(sampler), **given})


def usual_count(module: ScoreModule) -> int:
    """How many samples show what a model draws: 64 pictures, or a cloud of points."""
    return 64 if len(module.shape) == 3 else 4000


def points_of(module: ScoreModule, checkpoint: Path) -> Points:
    """The data of a model of points of the plane, to be put beside its samples.

    Raises:
        ValueError: where the model is of something else, of which there is no picture.
    """
    data = load_data(checkpoint)
    if module.shape != (2,) or not isinstance(data, Points):
        raise ValueError(
            f"checkpoint: {checkpoint} draws examples of shape {module.shape}, of which there is no picture; "
            "ncsn.load() gives the module to Python"
        )
    data.setup()
    return data


def write(samples: Tensor, module: ScoreModule, data: Points | None, file: Path, columns: int | None = None) -> None:
    """Write the picture that shows best what samples (N, ...) are like to `file`, a PNG."""
    figure = plot(samples, module.to("cpu"), data)
    if figure is not None:
        save_figure(figure, file)
    else:
        save_grid(samples, file, columns)


@torch.no_grad()
def denoised_pairs(module: ScoreModule, files: list[Path], sigma: float, batch_size: int) -> Tensor:
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
    if not module.of_gaussian_noise:
        raise ValueError(
            "--denoise: this model was trained on noise that is not Gaussian, which Tweedie's formula supposes"
        )
    if len(module.shape) != 3:
        raise ValueError(f"--denoise: this model is of examples of shape {module.shape}, not of pictures")
    given = read_pictures(files, module.shape[0], module.shape[1])
    level = torch.tensor(sigma, device=module.device)
    batches = torch.split(given.to(module.device), batch_size)
    denoised = torch.cat([tweedie(module.denoiser.score, x, level) for x in batches]).cpu()
    return torch.stack([given, denoised], dim=1).flatten(0, 1)
