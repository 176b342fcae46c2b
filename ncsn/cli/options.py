"""The options of the commands that draw, and which of them go together: read in no time, without torch."""

import argparse
import os
from argparse import Namespace
from collections.abc import Callable, Sequence
from itertools import chain, count
from pathlib import Path
from typing import NoReturn

from ncsn.cli.errors import fail
from ncsn.model.files import lock_of

__all__ = [
    "MODEL",
    "OneLineParser",
    "add_drawing_options",
    "add_trust_option",
    "free",
    "int_at_least",
    "sample_options",
    "split_options",
]

FORMS = {"": "png", ".png": "grid", ".gif": "gif", ".npz": "npz"}
"""The ending of a name, and what is written there: a PNG for each sample, one of all, a moving one, or an array."""
ON_SHEETS = ("nrow", "captions", "walk", "nearest")
LAID_OUT = (*ON_SHEETS, "upscale")
"""The options of a picture of many samples."""
OF_NETWORK = ("label", "seed", "guidance", "compile", "precision")
DRAWN = ("num_samples", "start_index", "steps", "sigma_max", "sigma_min", *OF_NETWORK)
UNHEEDED = {
    "denoise": (*DRAWN, *ON_SHEETS),
    "interpolate": ("start_index", *OF_NETWORK, *ON_SHEETS),
    "png": LAID_OUT,
    "npz": LAID_OUT,
    "gif": ("nearest", "captions"),
    "walk": ("nrow", "captions"),
    "nearest": ("captions",),
}
"""What is asked for, or written, and the options that it does not heed."""
MODEL = "a model; where none is given the newest that was trained here, or else the digits that come with the package"
EXAMPLES = """\
examples:
  %(prog)s                                              64 samples of the newest checkpoint
  %(prog)s checkpoints/mnist/step=3000.ckpt --out grid.png --num-samples 100 --nrow 20
  %(prog)s old.ckpt new.ckpt                            the same seeds from both, side by side
  %(prog)s --out walk.gif                               the way from noise to pictures
  %(prog)s --num-samples 50000 --out samples.npz        as the tools that measure the FID read it
"""


class OneLineParser(argparse.ArgumentParser):
    """A parser whose error is one line."""

    def error(self, message: str) -> NoReturn:
        fail(2, message)


def sample_options(arguments: Sequence[str]) -> tuple[Namespace, list[str]]:
    """The options of `sample`, of which `out` and `format` are settled; and those of the sampler.

    If no file was named, `default_out` is the default name, of which `out` is the first variant that is free; else it
    is None.

    A wrong one, or two that do not go together, end the program in one line.
    """
    parser = sample_parser()
    others, of_sampler = split_options(arguments, "--sampler")
    options = parser.parse_args(others)
    given = [name for name in vars(options) if getattr(options, name) != parser.get_default(name)]
    if options.show_settings:
        refuse(
            [name for name in given if name not in ("checkpoints", "show_settings", "trust")],
            of_sampler,
            "--show-settings",
        )
        return options, of_sampler
    for one, other in (
        ("denoise", "sigma"),
        ("inpaint", "mask"),
        ("super_resolve", "factor"),
        ("deblur", "blur"),
    ):
        if (one in given) != (other in given):
            fail(2, f"{flag(one)} and {flag(other)} go together")
    settle_output(options)
    if "interpolate" in given and of_sampler:
        fail(
            2,
            f"{of_sampler[0]}: --interpolate has a sampler of its own, the probability flow; leave this out",
        )
    for what in (*(name for name in UNHEEDED if name in given), options.format):
        reason = "nothing is drawn where pictures are denoised" if what == "denoise" else ""
        asked = flag(what) if what in given else f"--out {options.out}"
        unheeded = [name for name in UNHEEDED.get(what, ()) if name in given]
        refuse(unheeded, of_sampler if what == "denoise" else [], asked, reason)
    if len(options.checkpoints) > 1 and (
        {"denoise", "interpolate"} & set(given) or options.format in ("png", "npz")
    ):
        fail(
            2,
            "checkpoint: several are for one picture or GIF of samples, where they are put side by side",
        )
    return options, of_sampler


def refuse(names: Sequence[str], of_sampler: Sequence[str], asked: str, reason: str = "") -> None:
    """End the program where there are options that what is asked for does not heed."""
    for option in (*map(flag, names), *of_sampler[:1]):
        fail(2, f"{option}: {reason or f'{asked} does not heed it; leave one of them out'}")


def flag(name: str) -> str:
    """An option as it is given."""
    return f"--{name.replace('_', '-')}"


def settle_output(options: Namespace) -> None:
    """Settle where to write, and in which form; or end the program where that cannot be."""
    one_picture = options.denoise is not None or options.interpolate is not None
    options.default_out = None
    if options.out is None:
        options.format = options.format or "grid"
        suffix = next(suffix for suffix, form in FORMS.items() if form == options.format)
        default = Path(f"{'samples' if options.denoise is None else 'denoised'}{suffix}")
        options.default_out = default if suffix else None  # into a folder, nothing is drawn over
        options.out = free(default) if suffix else default
    ending = options.out.suffix.lower()
    of_name = FORMS.get(ending, "png" if options.format == "png" else None)
    if of_name is None or (of_name != "png" and options.out.is_dir()):
        fail(
            2,
            f"--out: {options.out} is neither the name of a .png, .gif or .npz file nor, without one, of a folder",
        )
    if options.format not in (None, of_name):
        fail(
            2,
            f"--format: {options.format} does not go by the name {options.out}, which ends as one of {of_name} does",
        )
    options.format = of_name
    if of_name == "png" and options.out.is_file():
        fail(2, f"--out: {options.out} is a file, and without an ending it would name a folder")
    if one_picture and of_name != "grid":
        fail(2, f"--out: {options.out} is not the name of a .png file")
    if not options.out.parent.is_dir():
        fail(2, f"--out: there is no folder {options.out.parent}")


def free(file: Path) -> Path:
    """Return `file`, or the first of name-2, name-3 ... that is neither there nor being written."""
    names = chain([file], (file.with_stem(f"{file.stem}-{number}") for number in count(2)))
    return next(name for name in names if not any(map(os.path.lexists, (name, lock_of(name)))))


def sample_parser() -> argparse.ArgumentParser:
    """The options of `sample`, but for those of the sampler, which depend on its class."""
    parser = OneLineParser(
        usage="%(prog)s [CHECKPOINT ...] [OPTIONS]",
        description="Draw from a trained model, or denoise pictures with it.",
        epilog=EXAMPLES,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=30
        ),
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoints",
        nargs="*",
        type=Path,
        metavar="CHECKPOINT",
        help=f"{MODEL}; several are put side by side",
    )
    add_written_options(parser)
    add_drawing_options(parser)
    add_steering_options(parser)
    return parser


def add_written_options(parser: argparse.ArgumentParser) -> None:
    """The options of how much is drawn, and of what is written."""
    option = parser.add_argument_group("what is written").add_argument
    option(
        "--num-samples",
        type=int_at_least(1),
        metavar="N",
        help="how many to draw (64 pictures, or 4000 points)",
    )
    option(
        "--start-index",
        type=int_at_least(0),
        default=0,
        metavar="N",
        help="of the first sample, to go on from others (0)",
    )
    option(
        "--out",
        type=Path,
        metavar="FILE",
        help="NAME.png: one picture of all; NAME.gif: their way from noise; NAME.npz: an array arr_0 (N, H, W, C) of "
        "uint8; NAME: a folder, a PNG each. A file that is there is overwritten, of a folder what is missing is drawn. "
        "Where it is not given: samples.png, or samples-2.png and so on, and nothing is overwritten",
    )
    option(
        "--format",
        choices=("grid", "png", "gif", "npz"),
        help="the same where the name does not say it: one PNG, a folder of PNGs ...",
    )
    option("--nrow", type=int_at_least(1), metavar="N", help="pictures in a row")
    option(
        "--upscale",
        type=int_at_least(1),
        metavar="N",
        help="pixels of the output on a side of each of a sample's",
    )
    option(
        "--captions", action="store_true", help="the index of each sample under it, and its class"
    )
    kind = parser._action_groups[-1].add_mutually_exclusive_group().add_argument
    kind(
        "--walk",
        type=int_at_least(2),
        metavar="N",
        help="a row for each sample, of N states on its way; of a GIF, N frames",
    )
    kind(
        "--nearest",
        type=int_at_least(1),
        metavar="N",
        help="beside each sample its N nearest training pictures",
    )
    option(
        "--show-settings",
        action="store_true",
        help="print the checkpoint's settings as YAML and its step, and end",
    )


def add_drawing_options(parser: argparse.ArgumentParser) -> None:
    """The options of every command that draws from a checkpoint."""
    option = parser.add_argument_group("how it is drawn").add_argument
    option(
        "--seed",
        type=int_at_least(0),
        default=0,
        metavar="N",
        help="a sample follows from this and its index (0)",
    )
    option(
        "--steps",
        type=int_at_least(2),
        metavar="N",
        help="noise levels, on Karras's ladder; else the model's own",
    )
    option(
        "--sigma-max",
        type=float,
        metavar="LEVEL",
        help="the noise level to begin at, in place of the model's",
    )
    option("--sigma-min", type=float, metavar="LEVEL", help="the last noise level, in the same way")
    option("--label", metavar="CLASS", help="the number of a class, or `all` for each in its turn")
    option(
        "--raw", action="store_true", help="use the weights as trained, not their moving average"
    )
    add_trust_option(option)
    option("--sampler", metavar="CLASS", help="another sampler than the checkpoint's, by its class")
    option(
        "--sampler.NAME",
        metavar="VALUE",
        help="a number of the sampler, as in --sampler.epsilon 1e-5",
    )
    option = parser.add_argument_group("what it is drawn on").add_argument
    option(
        "--batch-size",
        type=int_at_least(1),
        metavar="N",
        help="how many at once (256 pictures, or 4096 points)",
    )
    option(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda, cuda:1, mps ...; auto takes the fastest",
    )
    option(
        "--devices",
        type=int_at_least(1),
        default=1,
        metavar="N",
        help="how many of them, on each machine (1)",
    )
    option(
        "--num-nodes",
        type=int_at_least(1),
        default=1,
        metavar="N",
        help="machines, as torchrun or SLURM started them (1)",
    )
    kinds = ("32-true", "bf16-mixed", "16-mixed")
    option(
        "--precision",
        choices=kinds,
        default=kinds[0],
        help="the network's; the picture's is always float32",
    )
    option(
        "--compile",
        action="store_true",
        help="compile the network first: minutes, which many pictures make up for",
    )


def add_steering_options(parser: argparse.ArgumentParser) -> None:
    """The options of what a sample is told, and of what is made of given pictures."""
    group = parser.add_argument_group("steered by a class or by pictures")
    option, given = group.add_argument, group.add_mutually_exclusive_group().add_argument
    option(
        "--guidance",
        type=float,
        metavar="W",
        help="weight of the class; 1 is none, more exaggerates it",
    )
    given("--inpaint", type=Path, metavar="PICTURE", help="fill in what is white in --mask")
    option(
        "--mask",
        type=Path,
        metavar="PICTURE",
        help="black where --inpaint is known, white where it is not",
    )
    given(
        "--super-resolve",
        type=Path,
        metavar="PICTURE",
        help="give it --factor times the pixels on a side",
    )
    option("--factor", type=int_at_least(2), metavar="N", help="of --super-resolve")
    given("--deblur", type=Path, metavar="PICTURE", help="undo a Gaussian blur of width --blur")
    option("--blur", type=float, metavar="PIXELS", help="of --deblur")
    given("--colourise", type=Path, metavar="PICTURE", help="give colour to a grey picture")
    option(
        "--noise",
        type=float,
        default=0.01,
        metavar="LEVEL",
        help="the noise that is on such a picture (0.01)",
    )
    given(
        "--interpolate",
        type=Path,
        nargs=2,
        metavar="PICTURE",
        help="draw those between two pictures",
    )
    given(
        "--denoise",
        type=Path,
        nargs="+",
        metavar="PICTURE",
        help="clean these of noise, in place of drawing",
    )
    option(
        "--sigma",
        type=float,
        metavar="LEVEL",
        help="the width of the noise on them, black to white being 1",
    )


def add_trust_option(option: Callable[..., object]) -> None:
    """Add the option of the user's own classes, for every command that reads a model."""
    option(
        "--trust",
        action="extend",
        type=lambda text: [name.strip() for name in text.split(",")],
        default=[],
        metavar="CLASS",
        help="a class of your own that the checkpoint may name, as mine.MyUNet; once for each, or with commas between",
    )


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


def int_at_least(least: int) -> Callable[[str], int]:
    """A converter to whole numbers from `least`, for argparse."""

    def convert(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) < 2**32:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number from {least} to {2**32 - 1}"
            )
        return int(text)

    return convert
