"""`ncsn export`: a model as one file, a folder for the Hub, or a program.

The program is the denoiser D(x, sigma) from `torch.export`, which runs without this
package. Output is written completely or not at all, and replaces nothing.
"""

import io
import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ncsn.model.files import atomic_write, exclusive_file
from ncsn.model.labels import numbered_names
from ncsn.model.load import CHECKPOINTS, default_checkpoint, load
from ncsn.model.model import Model
from ncsn.model.model_card import card, loading
from ncsn.model.pretrained import save_pretrained, save_safetensors
from ncsn.score import Denoiser
from ncsn.training.processes import hold_outputs

__all__ = ["exported", "run"]

SUFFIXES = {"safetensors": ".safetensors", "folder": "", "program": ".pt2"}
TOLERANCE = 1e-4  # error of a program: absolute up to 1, relative above


def run(options: Namespace) -> None:
    """Load a model and write it."""
    for name in ("metrics", "image", "half"):
        if options.to == "program" and getattr(options, name):
            raise ValueError(f"--{name} has no effect with --to program; remove one of them")
    checkpoint = options.checkpoint or default_checkpoint(CHECKPOINTS)
    suffix = SUFFIXES[options.to]
    out = options.out or Path(name_of(checkpoint) + suffix)
    if suffix and out.suffix != suffix:
        raise ValueError(f"--out: expected a name with {suffix}, got {out}")
    files = [out, out.with_suffix(".md")] if options.to == "safetensors" else [out]
    image = None if options.image is None else read_png(options.image)
    if image is not None and options.to == "safetensors":
        files.append(out.with_suffix(".png"))
    with hold_outputs("--out", *map(exclusive_file, files)):
        for file in files:
            if os.path.lexists(file):  # a broken link, too
                wrong = "exists, and nothing is overwritten; give another name"
                raise ValueError(f"--out: {file} {wrong}")
        report = None if options.metrics is None else read_report(options.metrics)
        model = load(checkpoint, options.raw, options.trust)
        model = model.half() if options.half else model
        about = write(model, out, options.to, report, image)
    print(f"Wrote {' and '.join(map(str, files))}{about}, from {checkpoint}")


def write(model: Model, out: Path, form: str, report: Any, image: bytes | None) -> str:
    """Write a model in one of the forms of `SUFFIXES`, and return what to say about it."""
    if form == "program":
        program, error = exported(model)
        with atomic_write(out) as partial:
            partial.write_bytes(program)
        shapes = [tuple(tensor.shape[1:]) for tensor in noisy_examples(model, 1)[:2]]
        x, sigma = (f"(B, {', '.join(map(str, shape))})" for shape in shapes)
        labels = f", takes labels ({numbered_names(model.labels.names)}; -1 for none)"
        about = f", which is within {error:.1g} of the denoiser{labels * (model.classes > 0)}"
        return f"{about}; call it with x {x} and sigma {sigma}"
    if form == "folder":
        save_pretrained(model, out, report, image)
        return ""
    shown = "" if image is None else out.with_suffix(".png").name
    text = card(model, loading(out.name), out.stem, report, shown)
    save_safetensors(model, out)
    if image is not None:
        with atomic_write(out.with_suffix(".png")) as partial:
            partial.write_bytes(image)
    with atomic_write(out.with_suffix(".md")) as partial:
        partial.write_text(text, "utf-8")
    return ""


def name_of(checkpoint: Path) -> str:
    """Return the name of a checkpoint's run, or else of the file or folder."""
    if checkpoint.is_dir():
        return checkpoint.resolve().name
    return checkpoint.resolve().parent.name if checkpoint.suffix == ".ckpt" else checkpoint.stem


def read_png(file: Path) -> bytes:
    """Return the content of a PNG file."""
    content = file.read_bytes() if file.is_file() else b""
    if not content.startswith(b"\x89PNG\r\n"):
        raise ValueError(
            f"--image: {file} is not a PNG file; `ncsn sample --out FILE.png` makes one"
        )
    return content


def read_report(file: Path) -> Any:
    """Return the JSON report of an evaluation."""
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"--metrics: {file} is not a file of JSON ({error})") from error


def exported(model: Model) -> tuple[bytes, float]:
    """Return a denoiser as the bytes of `torch.export.save`, and the program's error.

    The program maps x (B, *shape), sigma (B, 1, ..., 1) and, if the model has classes,
    label (B,), -1 for none, to D(x, sigma). It is read back and compared with the
    denoiser on noisy examples at all levels.

    Raises:
        ValueError: if the model is not a denoiser, or was not trained on Gaussian noise.
        OSError: if torch cannot export the network, or the program's result differs.
    """
    denoiser = model.denoiser
    if not isinstance(denoiser, Denoiser):
        kind = type(denoiser).__name__
        raise ValueError(f"--to program: it is made of a denoiser, and this model has an {kind}")
    model.expect_gaussian_noise("--to program: the posterior mean")
    example, batch = noisy_examples(model, 2), torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in example)
    try:
        # Strict mode keeps `len(x)` symbolic.
        program = torch.export.export(denoiser, example, dynamic_shapes=shapes, strict=True)
    except Exception as error:  # torch raises errors of many kinds
        first = str(error).strip().partition("\n")[0]
        raise OSError(f"--to program: torch.export cannot follow the network: {first}") from error
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    read = torch.export.load(io.BytesIO(buffer.getvalue())).module()  # written above
    worst = 0.0
    for count in (1, 2, 5, len(model.schedule.sigmas())):
        inputs = noisy_examples(model, count)
        with torch.no_grad():
            ours, theirs = denoiser(*inputs), read(*inputs)
        worst = max(worst, ((ours - theirs).abs() / ours.abs().clamp(min=1)).max().item())
    if not worst <= TOLERANCE:
        bound = f"{worst:.2g} from the denoiser, above {TOLERANCE:g}"
        raise OSError(f"--to program: what torch.export made is {bound}")
    return buffer.getvalue(), worst


def noisy_examples(model: Model, count: int) -> tuple[Tensor, ...]:
    """Return `count` noisy examples at the schedule's levels, with any classes."""
    generator, sigmas = torch.Generator().manual_seed(0), model.schedule.sigmas()
    index = torch.arange(count)
    sigma = sigmas[index % len(sigmas)].view(-1, *[1] * len(model.shape))
    x = torch.rand(count, *model.shape, generator=generator)
    x = x + sigma * torch.randn(x.shape, generator=generator)
    label = index % (model.classes + 1) - 1
    return (x, sigma, label) if model.classes else (x, sigma)
