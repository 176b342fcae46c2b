"""How well a checkpoint draws: `python -m ncsn.cli.evaluate` prints one table of figures, with what each of them is of.

Samples are drawn as the sampling command does, over any number of devices, and are looked at once, as they come
(`ncsn.evaluation`): what is kept of them is rows of numbers. Each figure is put beside the same of held-out pictures,
as many, which is what a perfect model would reach: the floor. Both are judged by the training split. `--seeds 3` gives
the spread; `--png` scores pictures that something else has made; `--family` compares the samplers; `--likelihood` adds
what held-out pictures take in bits per dimension.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from jsonargparse import ArgumentError
from torch import Tensor

from ncsn.cli.data_option import chosen_data
from ncsn.cli.errors import answered, fail, hush, stopped_by_signals
from ncsn.cli.from_options import chosen_trainer, chosen_walks, place_of
from ncsn.cli.options import MODEL, OneLineParser, add_drawing_options, int_at_least, split_options
from ncsn.data import FilePictures, ImageData, same_pictures, to_unit
from ncsn.evaluation.extractors import Judge, look_at, looks, real_pictures, reference_looks
from ncsn.evaluation.family import family_of, family_table
from ncsn.evaluation.measure import chosen_judge, figures, held_out_bits, rows
from ncsn.evaluation.metrics import frechet
from ncsn.evaluation.report import Counts, Report, Samples, is_report, markdown, notes, save_report
from ncsn.evaluation.walks import Collected, Cost, DrawingProgress, Walks, collect
from ncsn.model.checkpoint_file import weights_fingerprint
from ncsn.model.files import exclusive_file
from ncsn.model.load import default_checkpoint, load, load_data, saved_shape
from ncsn.model.model import Model
from ncsn.samplers import Sampler
from ncsn.training.processes import hold_outputs

__all__ = ["main"]

CHECKPOINTS = Path("checkpoints")
USUAL_COUNT = 10_000
"""Samples, where no number is given."""


def main() -> None:
    """Draw, judge and print, as the command line says."""
    others, of_data = split_options(sys.argv[1:], "--data")
    others, of_sampler = split_options(others, "--sampler")
    options = parser().parse_args(others)
    if options.json is not None:
        check_json(options.json)
    refuse_unheeded(options, of_sampler)
    hush()
    ends = answered(
        {ArgumentError: 2, ValueError: 2, FloatingPointError: 3, RuntimeError: 1, OSError: 1}
    )
    outputs = [] if options.json is None else [exclusive_file(options.json)]
    with stopped_by_signals(), ends, hold_outputs("--json", *outputs):
        data = evaluated_data(options, of_data)
        judge = chosen_judge(options.features, data).to(place_of(options.device))
        if options.png is not None:
            show(report_of_folder(options, data, judge), options)
        elif options.family:
            compare(options, data, judge)
        else:
            report = report_of_checkpoint(options, of_sampler, data, judge)
            if report is not None:
                show(report, options)


def parser() -> OneLineParser:
    """The options, but for those of the sampler and the data, which depend on their classes."""
    parser = OneLineParser(
        description="Say how good the samples of a checkpoint are.", allow_abbrev=False
    )
    option = parser.add_argument
    option("checkpoint", nargs="?", type=Path, help=MODEL)
    add_drawing_options(parser)
    option(
        "--num-samples",
        type=int_at_least(1),
        metavar="N",
        help=f"how many are drawn ({USUAL_COUNT}), or read of --png",
    )
    option(
        "--seeds",
        type=int_at_least(1),
        default=1,
        metavar="N",
        help="draw so often, from --seed on: for the spread (1)",
    )
    option(
        "--data",
        metavar="CONFIG",
        help="a configuration, for its data set; else that of the checkpoint",
    )
    option("--data.NAME", metavar="VALUE", help="a setting of the data set, as in --data.root DIR")
    option(
        "--features",
        metavar="FILE",
        help="weights of `python -m ncsn.cli.features`, or `inception`; else the data's own",
    )
    option(
        "--likelihood",
        type=int_at_least(2),
        metavar="N",
        help="bits per dimension of N held-out pictures, too",
    )
    option("--json", type=Path, metavar="FILE", help="write the same to a file that ends in .json")
    kind = parser.add_mutually_exclusive_group().add_argument
    kind(
        "--png",
        type=Path,
        metavar="FOLDER",
        help="score the pictures in a folder, in place of drawing",
    )
    kind(
        "--family",
        action="store_true",
        help="every sampler at several lengths, by the distance alone",
    )
    return parser


def check_json(file: Path) -> None:
    """End the program if the report cannot be written to `file`, or would replace something else."""
    if file.is_dir() or not file.parent.is_dir():
        fail(2, f"--json: {file} is not a file in a folder that is there")
    if file.suffix != ".json":
        fail(2, f"--json: {file} does not end in .json")
    if file.exists() and not (file.is_file() and is_report(file)):
        fail(
            2,
            f"--json: {file} is there already and is not a report; remove it, or give another name",
        )


def refuse_unheeded(options: Namespace, of_sampler: Sequence[str]) -> None:
    """End the program where an option was given that what is asked for does not heed."""
    ladder = ("steps", "sigma_max", "sigma_min")
    unheeded = {"png": (*ladder, "label", "likelihood"), "family": (*ladder, "label", "json")}
    for kind, names in unheeded.items():
        if getattr(options, kind):
            given = [
                f"--{name.replace('_', '-')}"
                for name in names
                if getattr(options, name) is not None
            ] + list(of_sampler[:1])
            given += ["--seeds"] if options.seeds > 1 else []
            if given:
                fail(2, f"{given[0]}: --{kind} does not heed it; leave one of them out")


def evaluated_data(options: Namespace, of_data: Sequence[str]) -> ImageData:
    """The data set of the options, or that of the checkpoint, ready to be read.

    Raises:
        ArgumentError, ValueError: where a setting is wrong, or the checkpoint is not of pictures.
        OSError: where the data cannot be had.
    """
    if of_data:
        if not any(argument.partition("=")[0] == "--data" for argument in of_data):
            raise ValueError(f"{of_data[0]}: a setting of which data set? give --data CONFIG too")
        data = chosen_data(of_data)
    else:
        options.checkpoint = options.checkpoint or default_checkpoint(CHECKPOINTS)
        trained_on = load_data(options.checkpoint, options.trust)
        if not isinstance(trained_on, ImageData):
            raise ValueError(f"checkpoint: {options.checkpoint} was not trained on pictures")
        data = trained_on
    if options.png is None:
        options.checkpoint = options.checkpoint or default_checkpoint(CHECKPOINTS)
        check_shape(saved_shape(options.checkpoint), options.checkpoint, data)
    data.prepare_data()
    data.setup()
    return data


def counts_of(count: int, data: ImageData, judge: Judge) -> Counts:
    """How many pictures of each kind there will be.

    Raises:
        ValueError: where they are too few for the covariance of the features.
    """
    least = judge.num_features + 1
    if count < least:
        raise ValueError(
            f"--num-samples: {count}, and {judge.num_features} features take {least} pictures at least"
        )
    sizes = {name: len(split) for name, split in data.splits.items()}
    if sizes["train"] < least:
        raise ValueError(
            f"--data: it has {sizes['train']} training pictures, and the features take {least} at least"
        )
    return Counts(count, sizes["train"], min(count, sizes["val"]))


def report_of_checkpoint(
    options: Namespace, of_sampler: Sequence[str], data: ImageData, judge: Judge
) -> Report | None:
    """Draw the samples of each seed and judge them; None on all but the first process.

    Raises:
        ArgumentError, ValueError: where an option does not fit.
        FloatingPointError: where a walk diverges.
    """
    checkpoint = options.checkpoint or default_checkpoint(CHECKPOINTS)
    counts = counts_of(options.num_samples or USUAL_COUNT, data, judge)
    module = model_of(checkpoint, options, data)
    judged = partial(rows, judge, data.splits["train"])
    walks = chosen_walks(module, options, of_sampler, None, judged)
    collected = Collected()
    trainer = chosen_trainer(options, collected, DrawingProgress())
    bits = None
    if options.likelihood and trainer.is_global_zero:
        bits = held_out_bits(module.to(place_of(options.device)), data, options.likelihood)
    drawn, cost, seeds = (
        [],
        Cost(0, 0.0, 0),
        list(range(options.seed, options.seed + options.seeds)),
    )
    for seed in seeds:
        walks.seed = seed
        seen, took = collect(trainer, collected, walks, counts.judged, options.batch_size)
        drawn.append(seen)
        cost += took
    if not trainer.is_global_zero:
        return None
    weights = weights_fingerprint(module.denoiser)
    ends = walks.sigmas[0].item(), walks.sigmas[-1].item()
    samples = Samples(
        str(checkpoint), weights, seeds, str(walks.sampler), len(walks.sigmas), *ends, cost
    )
    of = f"seed {seeds[0]}" if len(seeds) == 1 else f"each of the seeds {seeds[0]} to {seeds[-1]}"
    ladder = f"{samples.levels} levels from {samples.sigma_max:g} to {samples.sigma_min:g}"
    words = (
        f"{counts.judged:,} samples of {of}, from {checkpoint} by {samples.sampler} over {ladder}"
    )
    return judged_report(words, counts, data, judge, drawn, samples, bits)


def report_of_folder(options: Namespace, data: ImageData, judge: Judge) -> Report:
    """Judge the pictures of a folder.

    Raises:
        ValueError: where they are not as many as asked for, not of the size of the data's, or not pictures.
    """
    pictures = same_pictures(options.png, data.shape)
    count = options.num_samples or len(pictures)
    if count > len(pictures):
        raise ValueError(f"--num-samples: {count}, and {options.png} has {len(pictures)} pictures")
    counts = counts_of(count, data, judge)
    place = next(judge.parameters()).device
    seen = [
        rows(judge, data.splits["train"], x.to(place)).cpu() for x in in_batches(pictures, count)
    ]
    return judged_report(
        f"{count:,} pictures of {options.png}", counts, data, judge, [torch.cat(seen)]
    )


def judged_report(
    words: str,
    counts: Counts,
    data: ImageData,
    judge: Judge,
    seen: list[Tensor],
    samples: Samples | None = None,
    bits: tuple[float, float, int] | None = None,
) -> Report:
    """The figures of the rows (N, F + K + 2) of each seed, and those of held-out pictures."""
    reference = reference_looks(judge, data)
    place = next(judge.parameters()).device
    held_out = [
        rows(judge, data.splits["train"], x.to(place)).cpu()
        for x in real_pictures(data, "val", counts.floor)
    ]
    each = [figures(judge, part, reference) for part in seen]
    by_name = {name: [one[name] for one in each] for name in each[0]}
    floor = figures(judge, torch.cat(held_out), reference)
    return Report(words, type(data).__name__, judge.source, counts, by_name, floor, samples, bits)


def compare(options: Namespace, data: ImageData, judge: Judge) -> None:
    """Print the table of samplers."""
    checkpoint = options.checkpoint or default_checkpoint(CHECKPOINTS)
    counts = counts_of(options.num_samples or USUAL_COUNT, data, judge)
    module = model_of(checkpoint, options, data)
    collected = Collected()
    trainer = chosen_trainer(options, collected, DrawingProgress())
    reference = reference_looks(judge, data).features

    def draw(sampler: Sampler, sigmas: Tensor) -> tuple[Tensor, Cost]:
        walks = Walks(module, options.seed, sampler, sigmas, lambda indices: None, None, features)
        return collect(trainer, collected, walks, counts.judged, options.batch_size)

    def features(x: Tensor) -> Tensor:
        return look_at(judge.to(x.device), x).features

    distance: Callable[[Tensor], float] = partial(frechet, reference=reference)
    floor = distance(looks(judge, real_pictures(data, "val", counts.floor)).features)
    lines = family_table(
        family_of(module), draw, distance, floor, f"{judge.figures[0]} of {counts.judged:,}"
    )
    if trainer.is_global_zero:
        print(markdown(lines))
        words = f"{counts.judged:,} samples of each, of seed {options.seed}, from {checkpoint}"
        print("\n" + notes(words, type(data).__name__, judge.source, counts))
    if trainer.is_global_zero and options.likelihood:
        mean, error, count = held_out_bits(
            module.to(place_of(options.device)), data, options.likelihood
        )
        print(f"Likelihood: {mean:.3f} +- {error:.3f} bits/dim, of {count:,} held-out pictures")


def model_of(checkpoint: Path, options: Namespace, data: ImageData) -> Model:
    """The model of a checkpoint, which must draw pictures of the shape of the data's.

    Raises:
        ValueError: where it does not, or is no model.
    """
    module = load(checkpoint, options.raw, options.trust)
    check_shape(module.shape, checkpoint, data)
    return module


def check_shape(shape: tuple[int, ...], checkpoint: Path, data: ImageData) -> None:
    """Refuse data of another shape than that of the model.

    Raises:
        ValueError: with both shapes.
    """
    if shape != data.shape:
        raise ValueError(
            f"--data: its pictures are of shape {data.shape}, but {checkpoint} draws examples of shape {shape}"
        )


def in_batches(pictures: FilePictures, count: int, size: int = 100) -> Iterator[Tensor]:
    """The first `count` pictures (B, C, H, W) in [0, 1], in batches."""
    for start in range(0, count, size):
        yield to_unit(pictures[range(start, min(start + size, count))][0])


def show(report: Report, options: Namespace) -> None:
    """Print a report, and write it where the options say."""
    print(markdown(report.table()) + "\n")
    print(notes(report.judged, report.data, report.features, report.counts))
    if options.json is not None:
        save_report(report, options.json)
        print(f"Wrote {options.json}")


if __name__ == "__main__":
    main()
