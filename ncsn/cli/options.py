"""The options of every command, read without importing torch."""

import argparse
import re
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from ncsn.cli.errors import fail
from ncsn.model.names import did_you_mean
from ncsn.model.shipped import check_name, model_file

__all__ = ["int_at_least", "parse"]

# The suffix of --out, and what is written there.
KINDS = {".png": "grid", ".gif": "gif", ".npz": "npz", "": "folder"}
LAYOUT = ("nrow", "upscale", "captions", "nearest", "trajectory")
SAMPLING = ("label", "steps", "sigma_max", "sigma_min", "sampler", "seeds")
# An output or an option, and the options that have no effect with it.
NO_EFFECT = {
    "folder": LAYOUT,
    "npz": LAYOUT,
    "gif": ("nearest", "captions"),
    "trajectory": ("nrow", "captions", "nearest"),
    "nearest": ("captions",),
    "png": (*SAMPLING, "likelihood", "samplers"),
    "samplers": (*SAMPLING, "json"),
}
FOR_A_MODEL = ("--checkpoint", "--ckpt", "--ckpt-path", "--ckpt_path", "--weights")
MODEL = """a file or folder, or else a name of `ncsn models`; default: the newest checkpoint under checkpoints/,
or the digits of the package"""
OUT = """NAME.png: a grid; NAME.gif: trajectories; NAME.npz: an array arr_0 (N, H, W, C) of uint8;
NAME: a folder of PNGs, of which missing ones are added. Default: samples.png, or a free name"""
MOST_SAMPLES, MOST_BETWEEN, MOST_SEEDS, MOST_UPSCALE, MOST_WIDE = 10**7, 1000, 1000, 256, 1024
NAMES = re.compile(r"[^\s,]+").findall  # the type of an option with names between commas
HALF = "round the weights to 16 bits, for half the size"
DEVICE = "cpu, cuda, cuda:1, mps, ...; auto is the fastest"
EXAMPLES = """\
examples:
  ncsn sample                               64 samples of the newest checkpoint
  ncsn sample --model digits                64 samples of a model of the package
  ncsn sample checkpoints/mnist/step=3400.ckpt --out grid.png --nrow 20
  ncsn sample old.ckpt new.ckpt             the same seeds from both
  ncsn sample --out trajectory.gif          from noise to images
  ncsn sample --num-samples 50000 --out samples.npz      for tools of the FID
"""
COMMANDS = {
    "train": "train a model",
    "sample": "sample from a model",
    "denoise": "remove Gaussian noise from images",
    "restore": "inpaint, deblur, colourise images, or raise their resolution",
    "interpolate": "interpolate between two images",
    "evaluate": "compute metrics of a model's samples",
    "advise": "choose noise levels for a data set",
    "export": "write a model for others to use",
    "features": "train a classifier, whose features the metrics use",
    "configs": "list the configurations of the package",
    "models": "list the models of the package",
}


class OneLineParser(ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """End the program, with the option that an unknown one is close to."""
        unknown = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        known = re.findall(r"--[\w-]+", self.format_help())
        if unknown and unknown[1] in FOR_A_MODEL and "--raw" in known:
            fail(2, f"{message}; did you mean --model FILE?")
        fail(2, message + (did_you_mean(unknown[1], known) if unknown else ""))


def parse(command: str, arguments: Sequence[str]) -> Namespace:
    """Return the options of a command, checked as far as can be without reading a model.

    The options `sampler` and `data` are lists of `--sampler=CLASS`, `--sampler.NAME=VALUE` ...
    """
    parser = OneLineParser(
        prog=f"ncsn {command}",
        description=f"{COMMANDS[command].capitalize()}.",
        epilog=EXAMPLES if command == "sample" else None,
        formatter_class=partial(RawDescriptionHelpFormatter, max_help_position=30, width=80),
        allow_abbrev=False,
    )
    if command in ADDERS:
        ADDERS[command](parser)
    for key in dict.fromkeys(argument.partition("=")[0] for argument in arguments):
        name, _, setting = key.partition(".")
        if setting and name in ("--sampler", "--data") and parser.get_default(name[2:]) == []:
            add_setting(parser, key)
    options = parser.parse_args(arguments)
    take_model(options)
    if "default_out" in options:
        check_output(options)
    refuse_without_effect(options)
    return options


def take_model(options: Namespace) -> None:
    """Set the model to that of --model, and end the program if there is no model of a name."""
    given = vars(options)
    if given.get("named") is not None:
        options.checkpoint, options.checkpoints = options.named, [options.named]
    files = [given.get("checkpoint"), given.get("model"), *(given.get("checkpoints") or [])]
    try:
        for file in filter(None, files):
            check_name(file)
    except ValueError as error:
        fail(2, str(error))


def refuse_without_effect(options: Namespace) -> None:
    """End the program if an option was given that has no effect with another."""
    given = {name for name, value in vars(options).items() if value not in (None, False, [])}
    kind = vars(options).get("kind")
    for what in [name for name in NO_EFFECT if name in given or name == kind]:
        other = f"--out {options.out}" if what == kind else f"--{what}"
        for name in given.intersection(NO_EFFECT[what]):
            option = f"--{name.replace('_', '-')}"
            fail(2, f"{option} has no effect with {other}; remove one of them")


def add_sample_options(parser: ArgumentParser) -> None:
    """Add the options of `ncsn sample`."""
    add_model_options(parser, several=True)
    add_output_options(parser)
    add_sampling_options(parser)
    option = parser.add_argument
    add_label(option, "default: every class in turn, `all`; with `all`, a row for each")
    option("--guidance", type=float, metavar="W", help="weight of the class; 1 is no guidance")
    option("--nearest", type=int_at_least(1), metavar="N", help="show N nearest training images")
    add_data_options(parser, "a configuration, for its data; default: the model's")
    option("--show-settings", action="store_true", help="print the checkpoint's settings as YAML")


def add_model_options(parser: ArgumentParser, several: bool = False) -> None:
    """Add an argument for a model, or for several, and an option that is the same."""
    option = parser.add_mutually_exclusive_group().add_argument
    about: dict[str, Any] = {"type": model_file, "metavar": "CHECKPOINT", "help": MODEL}
    if several:
        option("checkpoints", nargs="*", default=[], **about)
    else:
        option("checkpoint", nargs="?", **about)
    option("--model", dest="named", type=model_file, metavar="FILE", help="the same, as an option")


def add_denoise_options(parser: ArgumentParser) -> None:
    """Add the options of `ncsn denoise`."""
    option = parser.add_argument
    option("images", nargs="+", type=Path, metavar="IMAGE")
    option("--sigma", type=float, required=True, help="noise level of the images; white is 1")
    option("--batch-size", type=int_at_least(1), metavar="N", help="images at once (256)")
    add_image_options(parser, "denoised.png")


def add_restore_options(parser: ArgumentParser) -> None:
    """Add the options of `ncsn restore`."""
    option = parser.add_argument
    task = parser.add_mutually_exclusive_group(required=True).add_argument
    option("image", type=Path, metavar="IMAGE")
    task("--mask", type=Path, metavar="MASK", help="inpaint the image: fill in what is white here")
    task("--factor", type=int_at_least(2), metavar="N", help="give it N times the pixels a side")
    task("--blur", type=float, metavar="PIXELS", help="undo a Gaussian blur of this width")
    task("--grey", action="store_true", help="give it colour")
    option("--noise", type=positive, default=0.01, metavar="SIGMA", help="its noise level (0.01)")
    add_label(option)
    add_output_options(parser)
    add_sampling_options(parser)
    option("--model", dest="checkpoints", nargs=1, type=model_file, metavar="FILE", help=MODEL)


def add_interpolate_options(parser: ArgumentParser) -> None:
    """Add the options of `ncsn interpolate`."""
    option = parser.add_argument
    option("images", nargs=2, type=Path, metavar="IMAGE")
    option(
        "--num-samples",
        type=int_at_least(2, MOST_BETWEEN),
        default=10,
        metavar="N",
        help="images (10)",
    )
    add_levels(option)
    add_image_options(parser, "interpolated.png")


def add_evaluate_options(parser: ArgumentParser) -> None:
    """Add the options of `ncsn evaluate`."""
    option = parser.add_argument
    add_model_options(parser)
    add_sampling_options(parser)
    add_label(option, "default: every class in turn, `all`")
    option(
        "--num-samples",
        type=int_at_least(1, MOST_SAMPLES),
        metavar="N",
        help="samples of a seed (10000)",
    )
    option("--seeds", type=int_at_least(1, MOST_SEEDS), metavar="N", help="repeat for N seeds (1)")
    add_data_options(parser, "a configuration, for its data; default: the model's")
    option("--features", metavar="FILE", help="weights of `ncsn features`, or `inception`")
    option("--likelihood", type=int_at_least(2), metavar="N", help="bits/dim of N held-out images")
    option("--json", type=Path, metavar="FILE", help="write the report to FILE.json as well")
    kind = parser.add_mutually_exclusive_group().add_argument
    kind("--png", type=Path, metavar="FOLDER", help="evaluate the images in a folder")
    kind("--samplers", action="store_true", help="compare all samplers, by the distance alone")


def add_export_options(parser: ArgumentParser) -> None:
    """Add the options of `ncsn export`."""
    option = parser.add_argument
    forms = ("safetensors", "folder", "program")
    add_model_options(parser)
    option("--to", choices=forms, required=True, help="a file, a folder for the Hub, torch.export")
    option("--out", type=Path, metavar="FILE", help="a new file or folder (the run's name, here)")
    option("--metrics", type=Path, metavar="JSON", help="of `ncsn evaluate --json`, for the card")
    option("--image", type=Path, metavar="PNG", help="of `ncsn sample`, for the card")
    option("--half", action="store_true", help=HALF)
    add_weights_options(parser.add_argument)


def add_features_options(parser: ArgumentParser) -> None:
    """Add the options of `ncsn features`."""
    option = parser.add_argument
    add_data_options(parser, "a configuration, for its data; or the class of a data set")
    option("--epochs", type=int_at_least(1), default=5, help="passes over the images (5)")
    option("--lr", type=float, default=3e-3, help="the peak of the learning rate (0.003)")
    about = "channels of the first convolution (32); the file grows with its square"
    option("--width", type=int_at_least(1, MOST_WIDE), default=32, metavar="N", help=about)
    about = "further convolutions at the second and the third resolution (0)"
    option("--blocks", type=int_at_least(0), default=0, metavar="N", help=about)
    about = "move each image of a batch by up to N pixels (0)"
    option("--shift", type=int_at_least(0), default=0, metavar="N", help=about)
    about = "AdamW (the default), or MuonAdam, which may learn more in as many epochs"
    option("--optimizer", choices=("AdamW", "MuonAdam"), default="AdamW", help=about)
    option("--half", action="store_true", help=HALF)
    option("--seed", type=int_at_least(0), default=0, help="of the weights and the order (0)")
    option("--accelerator", default="auto", help="cpu, gpu, ...; auto is the fastest")
    kinds = ("32-true", "bf16-mixed")
    option("--precision", choices=kinds, default=kinds[0], help="bf16-mixed is faster on some")
    option("--out", type=Path, help="default: checkpoints/features_NAME.safetensors")


def add_data_options(parser: ArgumentParser, about: str) -> None:
    """Add the options of the data."""
    add_setting(parser, "--data", metavar="CONFIG", help=about)
    about = "a setting of the data, as in --data.root DIR"
    parser.add_argument("--data.NAME", metavar="VALUE", help=about)


def add_setting(option: argparse._ActionsContainer, key: str, **others: Any) -> None:
    """Add an option that is kept as KEY=VALUE, in the list of its part: `sampler` or `data`."""
    name = key.strip("-").partition(".")[0]
    keep = f"{key}={{}}".format
    option.add_argument(key, dest=name, action="append", default=[], type=keep, **others)


def add_output_options(parser: ArgumentParser) -> None:
    """Add the options of the output: its file, its samples and its layout."""
    option = parser.add_argument_group("output").add_argument
    option("--out", type=Path, metavar="FILE", help=OUT)
    option(
        "--num-samples",
        type=int_at_least(1, MOST_SAMPLES),
        metavar="N",
        help="(64 images, 4000 points)",
    )
    option("--start-index", type=int_at_least(0), default=0, metavar="N", help="first index (0)")
    option("--nrow", type=int_at_least(1), metavar="N", help="images in a row")
    option(
        "--upscale",
        type=int_at_least(1, MOST_UPSCALE),
        metavar="N",
        help="enlarge each image N times",
    )
    option("--captions", action="store_true", help="write the index and class under each image")
    states = "show N states of each trajectory: in a row, or as frames"
    option("--trajectory", type=int_at_least(2), metavar="N", help=states)
    parser.set_defaults(default_out=Path("samples.png"), kinds=KINDS)


def add_sampling_options(parser: ArgumentParser) -> None:
    """Add the options of how samples are drawn, and on what."""
    group = parser.add_argument_group("sampling")
    option = group.add_argument
    option("--seed", type=int_at_least(0), default=0, metavar="N", help="(0)")
    add_levels(option)
    add_setting(group, "--sampler", metavar="CLASS", help="another sampler, as DPMSolver")
    option("--sampler.NAME", metavar="VALUE", help="a setting of it, as in --sampler.eta 1")
    add_weights_options(option)
    option = parser.add_argument_group("device").add_argument
    option("--batch-size", type=int_at_least(1), metavar="N", help="(256 images, 4096 points)")
    option("--device", default="auto", help=DEVICE)
    option("--devices", type=int_at_least(1), default=1, metavar="N", help="on each machine (1)")
    option("--num-nodes", type=int_at_least(1), default=1, metavar="N", help="machines (1)")
    kinds = ("32-true", "bf16-mixed", "16-mixed")
    about = "of the network (that of training on CUDA if it is bf16-mixed, else 32-true)"
    option("--precision", choices=kinds, help=about)
    option("--compile", action="store_true", help="compile the network: minutes, for many samples")


def add_label(option: Callable[..., Any], default: str = "default: none") -> None:
    """Add the option of the class."""
    option("--label", metavar="CLASS", help=f"name or number of a class, or `none`; {default}")


def add_levels(option: Callable[..., Any]) -> None:
    """Add the options of the noise levels."""
    option("--steps", type=int_at_least(2), metavar="N", help="noise levels; default: the model's")
    option("--sigma-max", type=float, metavar="SIGMA", help="highest noise level")
    option("--sigma-min", type=float, metavar="SIGMA", help="lowest noise level")


def add_image_options(parser: ArgumentParser, default: str) -> None:
    """Add the options of the model and of one PNG, for commands whose arguments are images."""
    option = parser.add_argument
    option("--out", type=Path, metavar="FILE", help=f"a .png file ({default}, or a free name)")
    option(
        "--upscale",
        type=int_at_least(1, MOST_UPSCALE),
        metavar="N",
        help="enlarge each image N times",
    )
    parser.set_defaults(default_out=Path(default), kinds={".png": "grid"})
    add_label(option)
    option("--device", default="auto", help=DEVICE)
    option("--model", type=model_file, metavar="FILE", help=MODEL)
    add_weights_options(option)


def add_weights_options(option: Callable[..., Any]) -> None:
    """Add the options of how a model is loaded."""
    option("--raw", action="store_true", help="the optimiser's weights, not their average")
    about = "a class of your own that the file may name, as mine.MyUNet (repeatable)"
    option("--trust", action="extend", type=NAMES, default=[], metavar="CLASS", help=about)


ADDERS: dict[str, Callable[[ArgumentParser], None]] = {
    "sample": add_sample_options,
    "denoise": add_denoise_options,
    "restore": add_restore_options,
    "interpolate": add_interpolate_options,
    "evaluate": add_evaluate_options,
    "export": add_export_options,
    "features": add_features_options,
}


def check_output(options: Namespace) -> None:
    """Set `kind` to what the suffix of --out asks for, and end the program if that cannot be."""
    out, kinds = options.out or options.default_out, options.kinds
    options.kind = kinds.get(out.suffix.lower())
    if options.kind is None and kinds is KINDS and out.is_dir():
        options.kind = "folder"  # though its name has a dot
    if options.kind is None:
        expected = "a .png, .gif or .npz file, or a folder" if kinds is KINDS else "a .png file"
        fail(2, f"--out: expected {expected}, got {out}")
    if options.kind == "folder" and out.is_file():
        fail(2, f"--out: {out} is a file; give it a suffix, or name a folder")
    if options.kind != "folder" and options.out and out.is_dir():
        fail(2, f"--out: {out} is a folder; give another name")
    if not out.parent.is_dir():
        fail(2, f"--out: there is no folder {out.parent}")


def positive(text: str) -> float:
    """Return a positive number, for argparse."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return number


def int_at_least(least: int, most: int = 2**32 - 1) -> Callable[[str], int]:
    """Return a converter to integers from `least` to `most`, for argparse."""

    def convert(text: str) -> int:
        if not text.isdecimal() or len(text) > 10 or not least <= int(text) <= most:
            to = "" if most == 2**32 - 1 else f" to {most}"
            raise argparse.ArgumentTypeError(f"expected an integer from {least}{to}, got {text!r}")
        return int(text)

    return convert
