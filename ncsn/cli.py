"""The two commands: train, and sample from what was trained.

A wrong setting ends in one line on standard error and exit status 2, a failure of the world (disk, network) in 1, a
walk that diverged in 3, a signal in 128 and its number. A traceback is for bugs.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from ncsn.errors import answered, fail, stopped_by_signals
from ncsn.preflight import check_config

__all__ = ["OneLineParser", "add_drawing_options", "sample", "split_options", "train", "whole"]

DEFAULT_CONFIG = Path("configs/digits.yaml")


def train() -> None:
    """Train a model as the configuration and the command line say: `python train.py --help`."""
    names = {argument.split("=")[0] for argument in sys.argv[1:]}
    if not names & {"-c", "--config", "-h", "--help"}:
        if not DEFAULT_CONFIG.is_file():
            fail(2, f"--config: none given, and there is no {DEFAULT_CONFIG} here; give the path of a YAML file")
        sys.argv[1:1] = ["--config", str(DEFAULT_CONFIG)]
    for config in configs(sys.argv[1:]):
        with answered({ValueError: 2, OSError: 1}):
            check_config(config)

    with stopped_by_signals():
        from ncsn.training import run  # takes seconds to import

        run()


def configs(arguments: Sequence[str]) -> list[str]:
    """The configurations that arguments name, as `--config FILE` or `--config=FILE`."""
    named = [argument.partition("=")[2] for argument in arguments if argument.startswith(("--config=", "-c="))]
    return named + [file for option, file in pairwise(arguments) if option in ("--config", "-c")]


def sample(arguments: Sequence[str] | None = None) -> None:
    """Draw from a checkpoint, or denoise pictures with it: `python sample.py --help`."""
    parser = sample_parser()
    others, of_sampler = split_options(sys.argv[1:] if arguments is None else arguments, "--sampler")
    options = parser.parse_args(others)
    if (options.denoise is None) != (options.sigma is None):
        parser.error("--denoise and --sigma go together: the pictures, and the noise level that they are at")
    if options.denoise is not None:
        of_drawing = ("num_samples", "start_index", "steps", "label", "seed", "guidance", "compile")
        given = [f"--{name.replace('_', '-')}" for name in of_drawing if getattr(options, name)] + of_sampler
        if given:
            parser.error(f"{given[0]}: nothing is drawn where pictures are denoised")
    for picture, more in {"inpaint": "mask", "super_resolve": "factor", "deblur": "blur"}.items():
        if (getattr(options, picture) is None) != (getattr(options, more) is None):
            parser.error(f"--{picture.replace('_', '-')} and --{more} go together")
    if options.interpolate is not None and of_sampler:
        parser.error(f"{of_sampler[0]}: the way between two pictures is that of the probability flow")
    options.out = options.out or Path("samples.png" if options.denoise is None else "denoised.png")
    if options.out.suffix and (options.out.is_dir() or options.out.suffix.lower() != ".png"):
        parser.error(f"--out: {options.out} is neither the name of a .png file nor, without an ending, of a folder")
    if not options.out.suffix and options.out.is_file():
        parser.error(f"--out: {options.out} is a file, and without an ending it would name a folder")
    if not options.out.suffix and (options.denoise is not None or options.interpolate is not None):
        parser.error(f"--out: {options.out} is not the name of a .png file")
    if not options.out.parent.is_dir():
        parser.error(f"--out: there is no folder {options.out.parent}")

    with stopped_by_signals():
        from ncsn.sampling import run  # takes seconds to import

        run(options, of_sampler)


class OneLineParser(argparse.ArgumentParser):
    """A parser whose error is one line."""

    def error(self, message: str) -> NoReturn:
        fail(2, message)


def sample_parser() -> argparse.ArgumentParser:
    """The options of `sample`, but for those of the sampler, which depend on its class."""
    parser = OneLineParser(description="Draw from a trained model, or denoise pictures with it.", allow_abbrev=False)
    add_drawing_options(parser)
    option = parser.add_argument
    option("--num-samples", type=whole(1), metavar="N", help="how many to draw (64 pictures, or 4000 points)")
    option("--out", type=Path, metavar="FILE", help="one picture (samples.png, denoised.png); or a folder, for many")
    option("--start-index", type=whole(0), default=0, metavar="N", help="of the first sample, to go on from others (0)")
    option("--guidance", type=float, metavar="W", help="weight of the class; 1 is none, more exaggerates it")
    given = parser.add_mutually_exclusive_group().add_argument
    given("--inpaint", type=Path, metavar="PICTURE", help="fill in what is white in --mask")
    given("--super-resolve", type=Path, metavar="PICTURE", help="give it --factor times the pixels on a side")
    given("--deblur", type=Path, metavar="PICTURE", help="undo a Gaussian blur of width --blur")
    given("--colourise", type=Path, metavar="PICTURE", help="give colour to a grey picture")
    given("--interpolate", type=Path, nargs=2, metavar="PICTURE", help="draw those between two pictures")
    option("--mask", type=Path, metavar="PICTURE", help="black where --inpaint is known, white where it is not")
    option("--factor", type=whole(2), metavar="N", help="of --super-resolve")
    option("--blur", type=float, metavar="PIXELS", help="of --deblur")
    option("--noise", type=float, default=0.01, metavar="LEVEL", help="the noise that is on such a picture (0.01)")
    given("--denoise", type=Path, nargs="+", metavar="PICTURE", help="clean these of noise, in place of drawing")
    option("--sigma", type=float, metavar="LEVEL", help="the width of the noise on them, black to white being 1")
    return parser


def add_drawing_options(parser: argparse.ArgumentParser) -> None:
    """The options of every command that draws from a checkpoint."""
    option = parser.add_argument
    option("checkpoint", nargs="?", type=Path, help="a checkpoint; the newest under checkpoints/ where none is given")
    option("--seed", type=whole(0), default=0, metavar="N", help="a sample follows from this and its index (0)")
    option("--steps", type=whole(2), metavar="N", help="noise levels, on Karras's ladder; else those of training")
    option("--label", metavar="CLASS", help="the number of a class, or `all` for each in its turn")
    option("--batch-size", type=whole(1), metavar="N", help="how many at once (256 pictures, or 4096 points)")
    option("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, mps ...; auto takes the fastest")
    option("--devices", type=whole(1), default=1, metavar="N", help="how many of them, on each machine (1)")
    option("--num-nodes", type=whole(1), default=1, metavar="N", help="machines, as torchrun or SLURM started them (1)")
    kinds = ("32-true", "bf16-mixed", "16-mixed")
    option("--precision", choices=kinds, default=kinds[0], help="the network's; the picture's is always float32")
    option("--compile", action="store_true", help="compile the network first: minutes, which many pictures make up for")
    option("--raw", action="store_true", help="use the weights as trained, not their moving average")
    option("--sampler", metavar="CLASS", help="another sampler than the checkpoint's, by its class")
    option("--sampler.NAME", metavar="VALUE", help="a number of the sampler, as in --sampler.epsilon 1e-5")


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
