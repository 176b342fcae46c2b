"""The two commands: train, and sample from what was trained.

A wrong setting ends in one line on standard error and exit status 2, a failure of the world (disk, network) in 1, a
walk that diverged in 3, a signal in 128 and its number. A traceback is for bugs.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ncsn.errors import answered, fail

if TYPE_CHECKING:
    import torch

    from ncsn.module import ScoreModule
    from ncsn.samplers import Sampler

__all__ = ["sample", "train"]

DEFAULT_CONFIG = Path("configs/digits.yaml")
CHECKPOINTS = Path("checkpoints")


def train() -> None:
    """Train a model as the configuration and the command line say: `python train.py --help`."""
    names = {argument.split("=")[0] for argument in sys.argv[1:]}
    if not names & {"-c", "--config", "-h", "--help"}:
        if not DEFAULT_CONFIG.is_file():
            fail(2, f"--config: none given, and there is no {DEFAULT_CONFIG} here; give the path of a YAML file")
        sys.argv[1:1] = ["--config", str(DEFAULT_CONFIG)]

    from ncsn.training import run  # takes seconds to import

    run()


def sample(arguments: Sequence[str] | None = None) -> None:
    """Draw pictures from a checkpoint: `python sample.py --help`."""
    parser = sample_parser()
    others, of_sampler = split_options(sys.argv[1:] if arguments is None else arguments, "--sampler")
    options = parser.parse_args(others)
    if options.out.is_dir() or options.out.suffix.lower() != ".png":
        parser.error(f"--out: {options.out} is not the name of a .png file")
    if not options.out.parent.is_dir():
        parser.error(f"--out: there is no folder {options.out.parent}")

    import torch  # these take seconds to import
    from jsonargparse import ArgumentError

    from ncsn.checkpoints import load, newest_checkpoint
    from ncsn.data import save_grid

    with answered({ArgumentError: 2, ValueError: 2, FloatingPointError: 3, OSError: 1}):
        checkpoint = options.checkpoint or newest_checkpoint(CHECKPOINTS)
        module = load(checkpoint, raw=options.raw).to(chosen_device(options.device))
        sampler = overridden_sampler(module, of_sampler)
        print(f"Drawing {options.num_samples} from {checkpoint} by {sampler}")
        torch.manual_seed(options.seed)
        save_grid(draw(module, sampler, options.num_samples, options.batch_size), options.out)
    print(f"Wrote {options.out}")


class OneLineParser(argparse.ArgumentParser):
    """A parser whose error is one line."""

    def error(self, message: str) -> NoReturn:
        fail(2, message)


def sample_parser() -> argparse.ArgumentParser:
    """The options of `sample`, but for those of the sampler, which depend on its class."""
    parser = OneLineParser(description="Draw pictures from a trained model.", allow_abbrev=False)
    option = parser.add_argument
    option("checkpoint", nargs="?", type=Path, help="a checkpoint; the newest under checkpoints/ where none is given")
    option("--num-samples", type=whole(1), default=64, metavar="N", help="how many pictures (64)")
    option("--out", type=Path, default=Path("samples.png"), metavar="FILE", help="the grid to write (samples.png)")
    option("--seed", type=whole(0), default=0, metavar="N", help="of all that is random (0)")
    option("--batch-size", type=whole(1), default=256, metavar="N", help="pictures drawn at once (256)")
    option("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, mps ...; auto takes the fastest")
    option("--raw", action="store_true", help="use the weights as trained, not their moving average")
    option("--sampler", metavar="CLASS", help="another sampler than the checkpoint's, by its class")
    option("--sampler.NAME", metavar="VALUE", help="a number of the sampler, as in --sampler.epsilon 1e-5")
    return parser


def split_options(arguments: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """`arguments` without, and only, the option `name` and its `name.setting`s, each with its value."""
    others, chosen, rest = [], [], iter(arguments)
    for argument in rest:
        key, equals, _ = argument.partition("=")
        if key == name or key.startswith(f"{name}."):
            chosen += [argument] if equals else [argument, next(rest, "")]
        else:
            others.append(argument)
    return others, chosen


def whole(least: int) -> Callable[[str], int]:
    """A converter to whole numbers from `least`, for argparse."""

    def convert(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) < 2**32:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {2**32 - 1}")
        return int(text)

    return convert


def chosen_device(name: str) -> "torch.device":
    """The device called `name`, or the fastest one for "auto".

    Raises:
        ValueError: where this machine has no such device.
    """
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    names = ["cpu"]
    if accelerator:
        names += [accelerator.type, *(f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count()))]
    if name not in names:
        raise ValueError(f"--device: {name} is not on this machine; it has {', '.join(names)}")
    return torch.device(name)


def overridden_sampler(module: "ScoreModule", options: Sequence[str]) -> "Sampler":
    """The sampler that the checkpoint was saved with, but for what the options say.

    Raises:
        ArgumentError: where they name a class or a setting that there is not.
        ValueError: where a setting cannot have the value.
    """
    from jsonargparse import ArgumentParser

    import ncsn.samplers

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ncsn.samplers.Sampler, "sampler", required=True)
    parser.set_defaults(sampler=module.hparams["sampler"])
    sampler = parser.instantiate_classes(parser.parse_args(list(options))).sampler
    assert isinstance(sampler, ncsn.samplers.Sampler)
    return sampler


def draw(module: "ScoreModule", sampler: "Sampler", count: int, batch_size: int) -> "torch.Tensor":
    """`count` pictures (count, C, H, W) on the CPU, with a progress bar.

    Raises:
        FloatingPointError: where the walk diverges.
    """
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    sigmas = module.schedule.sigmas()
    batches = [min(batch_size, count - done) for done in range(0, count, batch_size)]
    pictures = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("levels")
    with Progress(*columns, TimeRemainingColumn()) as progress:
        bar = progress.add_task("Drawing", total=len(batches) * len(sigmas))
        for size in batches:
            for sigma, x in zip(sigmas, module.draw(module.start(size), sampler=sampler), strict=True):
                if not x.isfinite().all():
                    raise FloatingPointError(f"the walk diverged at noise level {sigma:.4g}; nothing was written")
                progress.advance(bar)
            pictures.append(x.cpu())
    return torch.cat(pictures)
