"""`ncsn sample`: samples of one or several models, as files, an array, a grid or a GIF."""

import json
import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml
from lightning.fabric import Fabric
from torch import Tensor

from ncsn.cli.devices import fabric_for, precision_of, shared_draws
from ncsn.cli.from_options import data_of, label_of, loaded, sampler_of, sigmas_of
from ncsn.cli.writers import Collector, FolderWriter, NpzWriter, Writer, held_output
from ncsn.data import (
    DataModule,
    ImageData,
    Points,
    enlarged,
    is_visible,
    pixel_grid,
    scale_of,
    tiled,
    to_pixels,
)
from ncsn.evaluation.copies import are_copies, nearest, neighbours
from ncsn.evaluation.grids import (
    abreast,
    captioned_grid,
    nearest_grid,
    save_gif,
    save_pixels,
    shown_levels,
    state_names,
    titled,
    trajectory_grid,
)
from ncsn.evaluation.plots import plot, save_figure
from ncsn.model.checkpoint_file import digest
from ncsn.model.draws import Request, batches, default_batch_size
from ncsn.model.labels import ALL, NONE
from ncsn.model.load import CHECKPOINTS, contents, default_checkpoint
from ncsn.model.model import DATA, Model
from ncsn.model.pretrained import SETTINGS, WEIGHTS
from ncsn.model.renamed import updated
from ncsn.model.settings import check_settings
from ncsn.score import Score

__all__ = ["Measurement", "run"]

FRAMES = 61  # of a GIF, if --trajectory does not say
MOST_PIXELS = 2**27  # of an image, which is made in memory
# Settings that a new run has of its own.
NOT_SHOWN = ("_instantiator", "shape", "class_names", "weights")


@dataclass(frozen=True)
class Measurement:
    """A measured image, and how samples are made to agree with it."""

    guide: Callable[[Score], Score]  # from the model's score to that of the posterior
    shown: Tensor  # the measured image (C, H, W)
    finish: Callable[[Tensor], Tensor] | None = None  # of the samples (B, ...), at the end


Measure = Callable[[Model, Namespace], Measurement]


@dataclass(frozen=True)
class Job:
    """The samples of one checkpoint, and what is shown with them."""

    checkpoint: Path
    model: Model
    request: Request
    order: list[int]  # the indices of the samples, as they are shown
    columns: int | None  # images in a row
    measured: Tensor | None  # the measured image (C, H, W), which is shown first
    data: DataModule | None  # of the training, if it is shown
    precision: str  # of the network


def run(options: Namespace, measure: Measure | None = None) -> None:
    """Sample as the options say, from a posterior if there is a measurement."""
    checkpoints = options.checkpoints or [default_checkpoint(CHECKPOINTS)]
    if options.show_settings:
        texts = [settings_text(checkpoint, options.trust) for checkpoint in checkpoints]
        print("---\n".join(texts), end="")
        return
    if len(checkpoints) > 1 and options.kind in ("folder", "npz"):
        raise ValueError("checkpoint: several are put side by side in one .png or .gif file alone")
    fabric = fabric_for(options)
    with held_output(options):
        jobs = [job_of(checkpoint, options, measure) for checkpoint in checkpoints]
        writers = [writer_for(fabric, job, options) for job in jobs]
        fabric.launch()
        for job, writer in zip(jobs, writers, strict=True):
            write(fabric, job, writer)
        if fabric.is_global_zero:
            collectors = [writer for writer in writers if isinstance(writer, Collector)]
            if collectors:
                drawn = [shown_samples(*pair) for pair in zip(jobs, collectors, strict=True)]
                save(jobs, drawn, options)
            print(f"Wrote {options.out}")


def job_of(checkpoint: Path, options: Namespace, measure: Measure | None) -> Job:
    """Return what the options ask of a checkpoint."""
    model = loaded(checkpoint, options)
    measurement = measure(model, options) if measure else None
    sampler = sampler_of(model, options.sampler)
    sigmas = sigmas_of(model, options, sampler)
    label = label_of(model, options.label)
    classes = model.classes if options.label == ALL else 1  # that have a row each
    count = options.num_samples or (8 * classes if classes > 1 else default_count(model, options))
    if count % classes:
        expected = f"a multiple of the {classes} classes with --label all"
        raise ValueError(f"--num-samples must be {expected}, got {count}")
    if len(model.shape) != 3:
        refuse_images(model, checkpoint, options)
    scale = options.upscale or (scale_of(model.shape) if len(model.shape) == 3 else 1)
    shown: Sequence[int] = ()
    if options.trajectory or options.kind == "gif":
        shown = shown_levels(len(sigmas), options.trajectory or FRAMES)[:-1]
    images = (len(shown) + 1) * (1 + (options.nearest or 0)) * scale**2
    each = images * math.prod(model.shape[1:])
    if options.kind in ("grid", "gif") and count * each > MOST_PIXELS:
        found = f"{count:,} of {each:,} pixels are more than the {MOST_PIXELS:,} of an image"
        way_out = "lower it, --upscale, --trajectory or --nearest, or give --out a folder"
        raise ValueError(f"--num-samples: {found}; {way_out}")
    indices = range(options.start_index, options.start_index + count)
    parts = batches(indices, options.batch_size or default_batch_size(model))
    guide = measurement.guide if measurement else guide_of(model, options)
    finish = measurement.finish if measurement else None
    request = Request(parts, sampler, sigmas, options.seed, label, guide, finish, shown)
    order = sorted(indices, key=lambda index: index % classes)
    in_rows = classes > 1 and measurement is None  # a measured image comes before the first row
    columns = options.nrow or (count // classes if in_rows else None)
    measured = measurement.shown if measurement else None
    data = data_shown(model, checkpoint, options)
    precision = precision_of(model, options)
    return Job(checkpoint, model, request, order, columns, measured, data, precision)


def guide_of(model: Model, options: Namespace) -> Callable[[Score], Score] | None:
    """Return classifier-free guidance by --guidance, if it is given."""
    if options.guidance is None:
        return None
    if options.label == NONE:
        raise ValueError(f"--guidance: {options.guidance:g} is the weight of a class; give one")
    try:
        return model.guidance(options.guidance)
    except ValueError as error:
        raise ValueError(f"--{error}") from error


def default_count(model: Model, options: Namespace) -> int:
    """Return how many samples to draw: 64 images, fewer if each takes more room, or 4,000 points."""
    if len(model.shape) != 3:
        return 4000
    if options.trajectory and options.kind == "grid":
        return 8
    return 16 if options.nearest or options.kind == "gif" else 64


def refuse_images(model: Model, checkpoint: Path, options: Namespace) -> None:
    """Refuse the options of images, for a model of something else."""
    names = ("nrow", "upscale", "captions", "trajectory", "nearest")
    given = [f"--{name}" for name in names if getattr(options, name)]
    given += [f"--out {options.out}"] * (options.kind != "grid")
    given += ["several checkpoints"] * (len(options.checkpoints) > 1)
    if given:
        raise ValueError(f"{given[0]}: needs images, and {checkpoint} has shape {model.shape}")


def data_shown(model: Model, checkpoint: Path, options: Namespace) -> DataModule | None:
    """Return the data that a model was trained on, if it is shown: for --nearest, and of points."""
    is_image = len(model.shape) == 3
    if not options.nearest and (is_image or (model.shape == (2,) and model.trained_on is None)):
        if options.data:
            raise ValueError("--data has no effect without --nearest; remove it")
        return None
    of_python = "ncsn.load() gives the model to Python"
    examples = f"checkpoint: {checkpoint} has examples of shape {model.shape}"
    if not is_image and model.shape != (2,):
        raise ValueError(f"{examples}, of which there is no image; {of_python}")
    data = data_of(checkpoint, options)
    is_shown = isinstance(data, ImageData) if is_image else isinstance(data, Points)
    if not is_shown or data.shape != model.shape:
        name = type(data).__name__
        raise ValueError(f"{examples}, of which there is no image with {name}; {of_python}")
    data.prepare_data()
    data.setup()
    return data


def writer_for(fabric: Fabric, job: Job, options: Namespace) -> Writer:
    """Return what takes the samples."""
    if options.kind == "npz":
        indices = range(options.start_index, options.start_index + len(job.order))
        return NpzWriter(fabric, options.out, indices, job.model.shape)
    if options.kind == "folder":
        if not is_visible(job.model.shape):
            raise ValueError(
                f"--out: a sample of {job.model.shape[0]} channels is not written as PNG; give "
                "--out NAME.npz"
            )
        return FolderWriter(fabric, options.out, job.order, drawn_with(job, options))
    return Collector(fabric)


def drawn_with(job: Job, options: Namespace) -> str:
    """Return all that a sample follows from but its index, as text."""
    steered = ("image", "mask", "factor", "blur", "grey", "noise")
    names = ("seed", "steps", "sigma_max", "sigma_min", "label", "raw", "guidance", *steered)
    values = {name: vars(options).get(name) for name in names}
    values |= {"precision": job.precision, "compile": options.compile}
    given = {name: str(value) for name, value in values.items() if value is not None}
    if job.model.classes:
        given["label"] = str(job.request.label or ALL)
    images = {name: values[name] for name in ("image", "mask")}
    given |= {name: digest(file) for name, file in images.items() if file is not None}
    path = job.checkpoint
    files = [path / name for name in (WEIGHTS, SETTINGS)] if path.is_dir() else [path]
    weights = " ".join(map(digest, files))
    return json.dumps({"weights": weights, "sampler": str(job.request.sampler), **given})


def write(fabric: Fabric, job: Job, writer: Writer) -> None:
    """Draw this process's share of the batches, and write them."""
    request, total = job.request, len(job.order)
    if fabric.is_global_zero:
        how = f"{request.sampler} over {len(request.sigmas)} levels"
        how += job.model.labels.described(request.label, ", of ")
        how += "" if job.precision == "32-true" else f", in {job.precision}"
        print(f"Sampling {total:,} from {job.checkpoint} by {how}")
    left = [batch for batch in request.batches if not writer.is_written(batch)]
    model, rest = job.model.to(fabric.device), replace(request, batches=left)
    with writer as out, shared_draws(fabric, model, rest, total, job.precision) as drawn:
        for indices, x in drawn:
            out.write(indices, to_pixels(x) if request.shown else x)


def shown_samples(job: Job, collector: Collector) -> Tensor:
    """Return samples (N, ...), or states (N, S, C, H, W) as pixels, after any measured image."""
    samples = collector.samples(job.order)
    if job.measured is None:
        return samples
    first = to_pixels(job.measured) if job.request.shown else job.measured
    return torch.cat([first.cpu().expand_as(samples[:1]), samples])


def save(jobs: list[Job], drawn: list[Tensor], options: Namespace) -> None:
    """Write the samples (N, ...) or states (N, S, C, H, W) of all jobs as one image."""
    layout = options.nrow, options.upscale, options.captions, options.trajectory, options.nearest
    if len(jobs) == 1 and options.kind == "grid" and not any(layout):
        figure = plot(drawn[0], jobs[0].model.to("cpu"), jobs[0].data)
        if figure is not None:
            save_figure(figure, options.out)
            return
    blocks = [frames_of(job, samples, options) for job, samples in zip(jobs, drawn, strict=True)]
    if len(jobs) > 1:
        names = [str(Path(job.checkpoint.parent.name, job.checkpoint.stem)) for job in jobs]
        named = zip(blocks, names, strict=True)
        blocks = [[titled(frame, name) for frame in frames] for frames, name in named]
    # One with fewer frames than another stays at its last.
    longest = max(map(len, blocks))
    frames = [abreast([block[min(i, len(block) - 1)] for block in blocks]) for i in range(longest)]
    if options.kind == "gif":
        save_gif(frames, options.out)
    else:
        save_pixels(frames[0], options.out)


def frames_of(job: Job, samples: Tensor, options: Namespace) -> list[Tensor]:
    """Return what is shown of one checkpoint: one image (3, H, W), or the frames of a GIF."""
    shown, sigmas, scale = job.request.shown, job.request.sigmas, options.upscale
    if options.nearest:
        return [nearest_images(job, samples, options)]
    if shown:
        names = state_names(sigmas, [*shown, len(sigmas)])
        if options.kind == "grid":
            return [trajectory_grid(samples, names, scale)]
        states = zip(enlarged(samples, scale).unbind(1), names, strict=True)
        return [titled(tiled(state, job.columns), name) for state, name in states]
    if options.captions:
        words = [*([] if job.measured is None else ["given"]), *captions(job)]
        return [captioned_grid(to_pixels(samples), words, job.columns, scale)]
    return [pixel_grid(samples, job.columns, scale)]


def nearest_images(job: Job, samples: Tensor, options: Namespace) -> Tensor:
    """Return samples (N, C, H, W), each next to its nearest training images and distances."""
    assert job.data is not None
    training = job.data.splits["train"]
    distances, found = neighbours(samples, training, options.nearest)
    copied = are_copies(nearest(samples, training)).tolist()
    others = torch.stack([training[indices][0] for indices in found.tolist()])
    words = [
        [f"{'copy' if copy else 'no.'} {index}", *(f"{distance:.2f}" for distance in row)]
        for index, copy, row in zip(job.order, copied, distances.tolist(), strict=True)
    ]
    return nearest_grid(to_pixels(samples), others, words, options.nrow, options.upscale)


def captions(job: Job) -> list[str]:
    """Return the index of each sample, with the name of its class if it has one."""
    labels, names = job.model.labels.of(job.request.label, job.order), job.model.labels.names
    if labels is None or labels.min() < 0:
        return [str(index) for index in job.order]
    return [f"{i}: {names[label]}" for i, label in zip(job.order, labels.tolist(), strict=True)]


def settings_text(checkpoint: Path, trust: Sequence[str]) -> str:
    """Return the settings in a checkpoint as YAML for `ncsn train`, and its step."""
    content = contents(checkpoint)
    settings, data = content["hyper_parameters"], content.get(DATA)
    check_settings(settings, data, checkpoint, trust)  # training will build what they name
    model = {key: value for key, value in updated(settings).items() if key not in NOT_SHOWN}
    given = {name: each for name, each in (("data", data), ("model", model)) if each}
    text = yaml.safe_dump(json.loads(json.dumps(given)), sort_keys=False)
    number = content.get("global_step")
    step = f", step {number:,}" if isinstance(number, int) else ""
    name = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in str(checkpoint))
    return f"# {name}{step}\n{text}"
