"""A model for others: `python -m ncsn.cli.export checkpoints/digits/step=2200.ckpt --to safetensors`.

--to safetensors    weights and settings in one file, for `ncsn.load` and sample.py, and a model card beside it
--to folder         the same in the layout of the Hugging Face Hub, for `ncsn.Model.from_pretrained`
--to program        the denoiser D(x, sigma) by `torch.export`, which runs without this package

`--figures report.json`, of `python -m ncsn.cli.evaluate --json`, puts what was measured on the card. What is written is
whole, or absent, and over nothing.
"""

import io
import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ncsn.cli.errors import answered, fail, hush, stopped_by_signals
from ncsn.cli.options import OneLineParser, add_trust_option
from ncsn.model.files import atomic_write, exclusive_file
from ncsn.model.load import load, newest_checkpoint, save_safetensors
from ncsn.model.model import Model
from ncsn.model.model_card import card
from ncsn.model.pretrained import save_pretrained
from ncsn.score import Denoiser
from ncsn.training.processes import hold_outputs

__all__ = ["exported", "main"]

CHECKPOINTS = Path("checkpoints")
ENDINGS = {"safetensors": ".safetensors", "folder": "", "program": ".pt2"}
CLOSE = 1e-4
"""How far a program may be from its denoiser, at a value of 1 or below; relative, above."""


def main() -> None:
    """Write what the command line asks for."""
    parser = OneLineParser(
        description="Write a trained model for others to use.", allow_abbrev=False
    )
    option = parser.add_argument
    option(
        "checkpoint",
        nargs="?",
        type=Path,
        help="a checkpoint; the newest under checkpoints/ where none is given",
    )
    option(
        "--to",
        choices=ENDINGS,
        required=True,
        help="one file, a folder for the Hub, or a program of torch.export",
    )
    option("--out", type=Path, metavar="FILE", help="a new file, or folder (the run's name, here)")
    option(
        "--figures",
        type=Path,
        metavar="JSON",
        help="of `python -m ncsn.cli.evaluate --json`, for the model card",
    )
    option(
        "--raw", action="store_true", help="take the weights as trained, not their moving average"
    )
    add_trust_option(option)
    options = parser.parse_args()
    if options.to == "program" and options.figures is not None:
        fail(2, "--figures: they are for a model card, which a program does not have")
    hush()
    with stopped_by_signals(), answered({ValueError: 2, RuntimeError: 1, OSError: 1}):
        run(options)


def run(options: Namespace) -> None:
    """Load, and write.

    Raises:
        ValueError: where an option is wrong, or does not fit the model.
        RuntimeError: where the program is not what it should be.
        OSError: where the disk does not take it.
    """
    checkpoint = options.checkpoint or newest_checkpoint(CHECKPOINTS)
    out = options.out or Path(name_of(checkpoint) + ENDINGS[options.to])
    if out.suffix != ENDINGS[options.to] and options.to != "folder":
        raise ValueError(f"--out: {out} does not end in {ENDINGS[options.to]}")
    files = [out, out.with_suffix(".md")] if options.to == "safetensors" else [out]
    refuse_existing(files)
    with hold_outputs("--out", *map(exclusive_file, files)):
        refuse_existing(files)  # again, for one that another command has just finished
        write(checkpoint, out, options)


def refuse_existing(files: list[Path]) -> None:
    """Refuse to write over anything.

    Raises:
        ValueError: if one of the files is there, be it a link to nothing.
    """
    for file in files:
        if os.path.lexists(file):
            raise ValueError(
                f"--out: {file} is there already, and nothing is written over; give another name"
            )


def write(checkpoint: Path, out: Path, options: Namespace) -> None:
    """Load a model, and write it to `out`, in the form of the options.

    Raises:
        ValueError, RuntimeError, OSError: as `run`.
    """
    report = read_report(options.figures) if options.figures is not None else None
    module = load(checkpoint, options.raw, options.trust)
    if options.to == "program":
        program, error = exported(module)
        with atomic_write(out) as partial:
            partial.write_bytes(program)
        print(f"Wrote {out}, which is within {error:.1g} of the denoiser of {checkpoint}")
    elif options.to == "folder":
        save_pretrained(module, out, report)
        print(f"Wrote {out}, from {checkpoint}")
    else:
        about = out.with_suffix(".md")
        text = card(module, f'ncsn.load("{out.name}")', out.stem, report)
        save_safetensors(module, out)
        with atomic_write(about) as partial:
            partial.write_text(text)
        print(f"Wrote {out} and {about}, from {checkpoint}")


def name_of(checkpoint: Path) -> str:
    """The name of a checkpoint's run, or else of the file."""
    return checkpoint.resolve().parent.name if checkpoint.suffix == ".ckpt" else checkpoint.stem


def read_report(file: Path) -> dict[str, Any]:
    """What an evaluation wrote as JSON.

    Raises:
        ValueError: where it is missing, or something else.
    """
    try:
        report = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"--figures: {file} is not a file of JSON ({error})") from error
    if not isinstance(report, dict):
        raise ValueError(
            f"--figures: {file} is not a report of `python -m ncsn.cli.evaluate --json`"
        )
    return report


def exported(module: Model) -> tuple[bytes, float]:
    """A model's denoiser as a file of `torch.export.save`, and how far that is from it.

    The program takes x (B, *shape) and sigma (B, 1, ..., 1) of any B, and label (B,), -1 for none, where the model has
    classes; it gives D(x, sigma). What was written is read again and compared, on noisy examples at all levels.

    Raises:
        ValueError: where the model is not a denoiser.
        RuntimeError: where torch cannot follow its network, or what it made of it gives something else.
    """
    denoiser = module.denoiser
    if not isinstance(denoiser, Denoiser):
        raise ValueError(
            f"--to program: it is made of a denoiser, and this model has an {type(denoiser).__name__}"
        )
    example = noisy_examples(module, 2)
    batch = torch.export.Dim("batch")
    try:
        # Strict: it follows `len(x)` as the size that it is, and not as the number of this example.
        program = torch.export.export(
            denoiser, example, dynamic_shapes=tuple({0: batch} for _ in example), strict=True
        )
    except Exception as error:  # of many kinds
        first = str(error).strip().partition("\n")[0]
        raise RuntimeError(
            f"--to program: torch.export cannot follow the network: {first}"
        ) from error
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    read = torch.export.load(io.BytesIO(buffer.getvalue())).module()  # a file of nobody else's
    worst = 0.0
    for count in (1, 2, 5, len(module.schedule.sigmas())):
        inputs = noisy_examples(module, count)
        with torch.no_grad():
            ours, theirs = denoiser(*inputs), read(*inputs)
        worst = max(worst, ((ours - theirs).abs() / ours.abs().clamp(min=1)).max().item())
    if not worst <= CLOSE:
        raise RuntimeError(
            f"--to program: what torch.export made is {worst:.2g} from the denoiser, above {CLOSE:g}"
        )
    return buffer.getvalue(), worst


def noisy_examples(module: Model, count: int) -> tuple[Tensor, ...]:
    """`count` examples of noise, each at a level of the ladder, with a class where the model has classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sigmas = module.schedule.sigmas()
        sigma = sigmas[torch.arange(count) % len(sigmas)].view(-1, *[1] * len(module.shape))
        x = torch.rand(count, *module.shape)
        x = x + sigma * torch.randn_like(x)
        return (
            (x, sigma, torch.arange(count) % (module.classes + 1) - 1)
            if module.classes
            else (x, sigma)
        )


if __name__ == "__main__":
    main()
