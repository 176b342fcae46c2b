"""The sampling command: pictures, or whatever the model is of, drawn from a checkpoint or cleaned of noise."""

import math
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentError, ArgumentParser
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ncsn.checkpoints import load, load_data, newest_checkpoint
from ncsn.data import FilePictures, save_grid, to_unit
from ncsn.errors import answered
from ncsn.module import ScoreModule
from ncsn.plots import plot, save_figure
from ncsn.samplers import Sampler
from ncsn.score import tweedie

__all__ = ["draw", "overridden_sampler", "run"]

CHECKPOINTS = Path("checkpoints")


def run(options: Namespace, of_sampler: Sequence[str]) -> None:
    """Load, draw (or denoise), and write, as the options of the command line say."""
    with answered({ArgumentError: 2, ValueError: 2, FloatingPointError: 3, OSError: 1}):
        checkpoint = options.checkpoint or newest_checkpoint(CHECKPOINTS)
        module = load(checkpoint, raw=options.raw).to(chosen_device(options.device))
        batch_size = options.batch_size or usual_batch(module)
        if options.denoise is not None:
            print(f"Denoising {len(options.denoise)} at noise level {options.sigma:g} with {checkpoint}")
            pairs = denoised_pairs(module, options.denoise, options.sigma, batch_size)
            save_grid(pairs, options.out, columns=2 * math.ceil(math.sqrt(len(options.denoise) / 2)))
        else:
            sampler = overridden_sampler(module, of_sampler)
            count = options.num_samples or usual_count(module)
            print(f"Drawing {count:,} from {checkpoint} by {sampler}")
            torch.manual_seed(options.seed)
            write(draw(module, sampler, count, batch_size), module, checkpoint, options.out)
    print(f"Wrote {options.out}")


def chosen_device(name: str) -> torch.device:
    """The device called `name`, or the fastest one for "auto".

    Raises:
        ValueError: where this machine has no such device.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    names = ["cpu"]
    if accelerator:
        names += [accelerator.type, *(f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count()))]
    if name not in names:
        raise ValueError(f"--device: {name} is not on this machine; it has {', '.join(names)}")
    return torch.device(name)


def overridden_sampler(module: ScoreModule, options: Sequence[str]) -> Sampler:
    """The sampler that the checkpoint was saved with, but for what the options say.

    Raises:
        ArgumentError: where they name a class or a setting that there is not.
        ValueError: where a setting cannot have the value.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Sampler, "sampler", required=True)
    parser.set_defaults(sampler=module.hparams["sampler"])
    sampler = parser.instantiate_classes(parser.parse_args(list(options))).sampler
    assert isinstance(sampler, Sampler)
    return sampler


def usual_count(module: ScoreModule) -> int:
    """How many samples show what a model draws: 64 pictures, or a cloud of points."""
    return 64 if len(module.shape) == 3 else 4000


def usual_batch(module: ScoreModule) -> int:
    """How many samples are drawn at once, which memory limits."""
    return 256 if len(module.shape) == 3 else 4096


def draw(module: ScoreModule, sampler: Sampler, count: int, batch_size: int) -> Tensor:
    """`count` samples (count, ...) on the CPU, with a progress bar.

    Raises:
        FloatingPointError: where the walk diverges.
    """
    sigmas = module.schedule.sigmas()
    batches = [min(batch_size, count - done) for done in range(0, count, batch_size)]
    samples = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("levels")
    with Progress(*columns, TimeRemainingColumn()) as progress:
        bar = progress.add_task("Drawing", total=len(batches) * len(sigmas))
        for size in batches:
            for sigma, x in zip(sigmas, module.draw(module.start(size), sampler=sampler), strict=True):
                if not x.isfinite().all():
                    raise FloatingPointError(f"the walk diverged at noise level {sigma:.4g}; nothing was written")
                progress.advance(bar)
            samples.append(x.cpu())
    return torch.cat(samples)


def write(samples: Tensor, module: ScoreModule, checkpoint: Path, file: Path) -> None:
    """Write the picture that shows best what samples (N, ...) are like to `file`, a PNG.

    Raises:
        ValueError: where the samples are neither pictures nor points of a density that is known.
    """
    pictures = len(module.shape) == 3
    data = None if pictures else load_data(checkpoint)
    if data is not None:
        data.setup()
    figure = plot(samples, module, data)
    if figure is not None:
        save_figure(figure, file)
    elif pictures:
        save_grid(samples, file)
    else:
        raise ValueError(
            f"checkpoint: {checkpoint} draws examples of shape {module.shape}, of which there is no picture; "
            "ncsn.load() gives the module to Python"
        )


@torch.no_grad()
def denoised_pairs(module: ScoreModule, files: Sequence[Path], sigma: float, batch_size: int) -> Tensor:
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
    if len(module.shape) != 3:
        raise ValueError(f"--denoise: this model is of examples of shape {module.shape}, not of pictures")
    channels, size, _ = module.shape
    pictures = FilePictures(files, torch.zeros(len(files)), channels, size)
    given = to_unit(torch.stack([pictures.read(file) for file in files]))
    level = torch.tensor(sigma, device=module.device)
    batches = torch.split(given.to(module.device), batch_size)
    denoised = torch.cat([tweedie(module.denoiser.score, x, level) for x in batches]).cpu()
    return torch.stack([given, denoised], dim=1).flatten(0, 1)
