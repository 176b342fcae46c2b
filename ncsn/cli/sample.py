"""The sampling command: samples of a checkpoint, or of several, as files, an array, a picture, or one that moves."""

import json
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from jsonargparse import ArgumentError
from torch import Tensor

from ncsn.cli.errors import answered, hush
from ncsn.cli.from_options import chosen_trainer, chosen_walks
from ncsn.cli.given import clean, interpolate
from ncsn.cli.options import free
from ncsn.cli.steering import steering
from ncsn.cli.writers import Files, Npz
from ncsn.data import DataModule, ImageData, Points, enlarged, pixel_grid, tiled, to_pixels
from ncsn.evaluation.copies import are_copies, nearest, neighbours
from ncsn.evaluation.grids import (
    abreast,
    captioned_grid,
    nearest_sheet,
    save_gif,
    save_pixels,
    shown_levels,
    titled,
    walk_names,
    walk_sheet,
)
from ncsn.evaluation.plots import plot, save_figure
from ncsn.evaluation.walks import Collected, DrawingProgress, Walks, predict
from ncsn.model.checkpoint_file import digest
from ncsn.model.files import exclusive_file, exclusive_folder
from ncsn.model.load import contents, default_checkpoint, load, load_data
from ncsn.model.model import Model
from ncsn.model.settings import check_settings
from ncsn.training.processes import hold_outputs

__all__ = ["run", "usual_count"]

CHECKPOINTS = Path("checkpoints")
FRAMES = 61
"""Of a GIF, at most, where their number is not given."""


def run(options: Namespace, of_sampler: Sequence[str]) -> None:
    """Load, draw (or denoise), and write, as the options of the command line say."""
    hush()
    with answered({ArgumentError: 2, ValueError: 2, FloatingPointError: 3, OSError: 1}):
        checkpoints = options.checkpoints or [default_checkpoint(CHECKPOINTS)]
        if options.show_settings:
            texts = [settings_text(checkpoint, options.trust) for checkpoint in checkpoints]
            print("---\n".join(texts), end="")
            return
        with hold_output(options):
            if options.denoise is not None:
                clean(load(checkpoints[0], options.raw, options.trust), checkpoints[0], options)
            elif options.interpolate is not None:
                interpolate(
                    load(checkpoints[0], options.raw, options.trust), checkpoints[0], options
                )
            elif options.format in ("png", "npz"):
                draw_files(planned(checkpoints[0], options, of_sampler), options)
            else:
                draw_picture(
                    [planned(checkpoint, options, of_sampler) for checkpoint in checkpoints],
                    options,
                )


@contextmanager
def hold_output(options: Namespace) -> Iterator[None]:
    """Hold the output of the options; if another command has just taken a default name, take the next.

    Raises:
        ValueError: if another command has the output that was given.
    """
    with ExitStack() as held:
        while True:
            lock = (exclusive_folder if options.format == "png" else exclusive_file)(options.out)
            try:
                held.enter_context(hold_outputs("--out", lock))
                if options.default_out is None or not options.out.exists():
                    break
            except ValueError:
                if options.default_out is None:
                    raise
            held.close()
            options.out = free(options.default_out)
        yield


@dataclass(frozen=True)
class Plan:
    """What is to be drawn from a checkpoint.

    Args:
        checkpoint: the file.
        module: the model in it.
        walks: of the samples.
        indices: which samples.
        rows: how many classes have a row each; 0 where there are no such rows.
        given: the pixels (C, H, W) of a picture that the samples are steered by, to show before them; or None.
        data: what the model was trained on, set up, where it is shown beside the samples; or None.
    """

    checkpoint: Path
    module: Model
    walks: Walks
    indices: range
    rows: int
    given: Tensor | None
    data: DataModule | None

    def order(self) -> list[int]:
        """The indices as they are shown: with a row for each class from the first, where there are rows."""
        return sorted(self.indices, key=lambda index: index % self.rows if self.rows else 0)

    def shows_given(self, samples: Tensor) -> Tensor:
        """Samples (N, ...) after the picture that was given, where there is one."""
        if self.given is None:
            return samples
        return torch.cat([self.given.cpu().expand_as(samples[:1]), samples])


def planned(checkpoint: Path, options: Namespace, of_sampler: Sequence[str]) -> Plan:
    """What the options ask of a checkpoint.

    Raises:
        ArgumentError, ValueError: where an option does not fit the model, or the model's examples have no picture.
    """
    module = load(checkpoint, options.raw, options.trust)
    steered = steering(module, options)
    walks = chosen_walks(module, options, of_sampler, steered.guide, steered.finish)
    rows = module.classes if options.label == "all" else 0
    count = options.num_samples or (8 * rows or usual_count(module, options))
    if rows and count % rows:
        raise ValueError(
            f"--num-samples: {count} is no multiple of the {rows} classes that --label all gives a row each"
        )
    if len(module.shape) != 3:
        refuse_pictures(module, checkpoint, options)
    data = shown_data(module, checkpoint, options)
    if options.walk or options.format == "gif":
        walks.shown = shown_levels(len(walks.sigmas), options.walk or FRAMES)[:-1]
    given = (
        None
        if steered.given is None
        else to_pixels(steered.given)
        if walks.shown
        else steered.given
    )
    indices = range(options.start_index, options.start_index + count)
    return Plan(checkpoint, module, walks, indices, rows, given, data)


def usual_count(module: Model, options: Namespace | None = None) -> int:
    """How many samples show what a model draws: 64 pictures, fewer where each takes more room; or a cloud of points."""
    if len(module.shape) != 3:
        return 4000
    if options is None or options.format in ("png", "npz"):
        return 64
    roomy = options.nearest or options.format == "gif"
    return 8 if options.walk and options.format == "grid" else 16 if roomy else 64


def refuse_pictures(module: Model, checkpoint: Path, options: Namespace) -> None:
    """Refuse what is for pictures alone, of a model of something else.

    Raises:
        ValueError: with the option.
    """
    if options.format == "png":
        raise ValueError(
            f"--out: {options.out} names a folder for pictures, but the model is of shape {module.shape}"
        )
    laid_out = {
        "--nrow": options.nrow,
        "--upscale": options.upscale,
        "--captions": options.captions,
    }
    asked = {
        **laid_out,
        "--walk": options.walk,
        "--nearest": options.nearest,
        "--out": options.format != "grid",
    }
    for option, value in asked.items():
        if value:
            raise ValueError(
                f"{option}: it is for pictures, and {checkpoint} draws examples of shape {module.shape}"
            )
    if len(options.checkpoints) > 1:
        raise ValueError("checkpoint: several are put side by side of pictures alone")


def shown_data(module: Model, checkpoint: Path, options: Namespace) -> DataModule | None:
    """What a model was trained on, where that is shown: for its nearest pictures, and with points of the plane.

    Raises:
        ValueError: where it is not of the kind that can be.
        OSError: where it cannot be had.
    """
    if len(module.shape) == 3 and not options.nearest:
        return None
    data = load_data(checkpoint, options.trust)
    if len(module.shape) == 3 and not isinstance(data, ImageData):
        raise ValueError(f"--nearest: {checkpoint} was not trained on pictures")
    if len(module.shape) != 3 and (module.shape != (2,) or not isinstance(data, Points)):
        raise ValueError(
            f"checkpoint: {checkpoint} draws examples of shape {module.shape}, of which there is no picture; "
            "ncsn.load() gives the module to Python"
        )
    if data.shape != module.shape:
        raise ValueError(
            f"checkpoint: {checkpoint} draws examples of shape {module.shape}, but its data is of shape {data.shape}"
        )
    data.prepare_data()
    data.setup()
    return data


def announce(plan: Plan) -> None:
    """Say what is drawn."""
    walks = plan.walks
    print(
        f"Drawing {len(plan.indices):,} from {plan.checkpoint} by {walks.sampler} over {len(walks.sigmas)} levels"
    )


def draw_files(plan: Plan, options: Namespace) -> None:
    """Draw on all of the devices, and write each sample as it comes: into a folder, or an array on the disk.

    Raises:
        ValueError: where the folder has pictures of other settings.
        FloatingPointError: where a walk diverges.
    """
    walks = plan.walks
    if options.format == "npz":
        writer: Files | Npz = Npz(options.out, plan.indices, plan.module.shape)
    else:
        writer = Files(options.out, plan.indices, drawn_with(plan, options))
        walks.is_drawn = writer.is_drawn
    trainer = chosen_trainer(options, writer, DrawingProgress())
    if trainer.is_global_zero:
        announce(plan)
    predict(trainer, walks, plan.indices, options.batch_size)
    if trainer.is_global_zero:
        print(f"Wrote {options.out}")


def drawn_with(plan: Plan, options: Namespace) -> str:
    """All that a sample follows from but its index: the weights, the sampler, and the options that tell on it."""
    walked = ("seed", "steps", "sigma_max", "sigma_min", "label", "raw", "guidance")
    steered = ("inpaint", "mask", "super_resolve", "factor", "deblur", "blur", "colourise", "noise")
    telling = (*walked, *steered, "precision", "compile")
    given = {
        name: str(getattr(options, name)) for name in telling if getattr(options, name) is not None
    }
    return json.dumps(
        {"weights": digest(plan.checkpoint), "sampler": str(plan.walks.sampler), **given}
    )


def draw_picture(plans: list[Plan], options: Namespace) -> None:
    """Draw on all of the devices, and write the samples of all plans as one picture, still or moving.

    Raises:
        FloatingPointError: where a walk diverges.
    """
    collected, drawn = Collected(), []
    trainer = chosen_trainer(options, collected, DrawingProgress())
    for plan in plans:
        if trainer.is_global_zero:
            announce(plan)
        predict(trainer, plan.walks, plan.indices, options.batch_size)
        drawn.append(collected.samples(plan.order()))
    if trainer.is_global_zero:
        write(plans, drawn, options)
        print(f"Wrote {options.out}")


def write(plans: list[Plan], drawn: list[Tensor], options: Namespace) -> None:
    """Write what came of each plan, (N, ...) or (N, S, C, H, W), as one picture."""
    laid_out = any((options.nrow, options.upscale, options.captions, options.walk, options.nearest))
    if len(plans) == 1 and options.format == "grid" and not laid_out:
        figure = plot(plans[0].shows_given(drawn[0]), plans[0].module.to("cpu"), plans[0].data)
        if figure is not None:
            save_figure(figure, options.out)
            return
    blocks = [block(plan, samples, options) for plan, samples in zip(plans, drawn, strict=True)]
    if len(plans) > 1:
        names = [str(Path(plan.checkpoint.parent.name, plan.checkpoint.stem)) for plan in plans]
        blocks = [
            [titled(frame, name) for frame in frames]
            for frames, name in zip(blocks, names, strict=True)
        ]
    # Where one has fewer frames than another, it stays at its last.
    longest = max(map(len, blocks))
    frames = [
        abreast([frames[min(i, len(frames) - 1)] for frames in blocks]) for i in range(longest)
    ]
    if options.format == "gif":
        save_gif(frames, options.out)
    else:
        save_pixels(frames[0], options.out)


def block(plan: Plan, samples: Tensor, options: Namespace) -> list[Tensor]:
    """What is shown of one checkpoint: one sheet (3, H, W), or those that a GIF goes through."""
    columns = options.nrow or (len(plan.indices) // plan.rows if plan.rows else None)
    if options.nearest:
        return [neighbourhood(plan, samples, options)]
    samples = plan.shows_given(samples)
    if plan.walks.shown:
        names = walk_names(plan.walks.sigmas, [*plan.walks.shown, len(plan.walks.sigmas)])
        if options.format == "grid":
            return [walk_sheet(samples, names, options.upscale)]
        states = enlarged(samples, options.upscale).unbind(1)
        return [
            titled(tiled(state, columns), name) for state, name in zip(states, names, strict=True)
        ]
    if options.captions:
        given = [] if plan.given is None else ["given"]
        return [
            captioned_grid(
                to_pixels(samples),
                [*given, *captions(plan, options.trust)],
                columns,
                options.upscale,
            )
        ]
    return [pixel_grid(samples, columns, options.upscale)]


def neighbourhood(plan: Plan, samples: Tensor, options: Namespace) -> Tensor:
    """Samples (N, C, H, W), each beside the training pictures that are nearest to it, with their distances."""
    assert plan.data is not None
    training = plan.data.splits["train"]
    distances, found = neighbours(samples, training, options.nearest)
    copied = are_copies(nearest(samples, training)).tolist()
    others = torch.stack([training[indices][0] for indices in found.tolist()])
    words = [
        [f"{'copy' if copy else 'no.'} {index}", *(f"{distance:.2f}" for distance in row)]
        for index, copy, row in zip(plan.order(), copied, distances.tolist(), strict=True)
    ]
    return nearest_sheet(to_pixels(samples), others, words, options.nrow, options.upscale)


def captions(plan: Plan, trust: Sequence[str]) -> list[str]:
    """The index of each sample, and its class where it has one: by its name, where the data is there to tell it."""
    order = plan.order()
    labels = plan.walks.label(torch.tensor(order))
    if labels is None:
        return [str(index) for index in order]
    try:
        names = load_data(plan.checkpoint, trust).class_names
    except ValueError:
        names = []
    if len(names) != plan.module.classes:
        names = [str(label) for label in range(plan.module.classes)]
    return [f"{index}: {names[label]}" for index, label in zip(order, labels.tolist(), strict=True)]


def settings_text(checkpoint: Path, trust: Sequence[str]) -> str:
    """Return the settings in a checkpoint as YAML, for the training command, and its step.

    A configuration is code, so that the settings are checked first, as if they were to be built.

    Raises:
        ValueError: if the file is missing, is not a checkpoint or is damaged, or its settings are refused.
    """
    content = contents(checkpoint)
    settings, data = (
        content["hyper_parameters"],
        content.get(DataModule.CHECKPOINT_HYPER_PARAMS_KEY),
    )
    check_settings(settings, data, checkpoint, trust)
    left_out = ("_instantiator", "shape")  # of which the data tells
    model = {key: value for key, value in settings.items() if key not in left_out}
    plain = json.loads(
        json.dumps({key: value for key, value in {"data": data, "model": model}.items() if value})
    )
    step = (
        f", step {content['global_step']:,}" if isinstance(content.get("global_step"), int) else ""
    )
    text: str = yaml.safe_dump(plain, sort_keys=False)
    name = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in str(checkpoint))
    return f"# {name}{step}\n{text}"
