"""`ncsn evaluate`: metrics of a model's samples, next to those of held-out images.

Samples are made as by `ncsn sample`, on any number of devices, and only rows of numbers
are kept of them (`ncsn.evaluation.measure`). Equally many held-out images give the
floor, the value of a perfect model. Both are compared with the training split.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from lightning.fabric import Fabric
from torch import Tensor

from ncsn.cli.devices import device_of, fabric_for, precision_of, shared_draws
from ncsn.cli.from_options import chosen_data, data_of, label_of, loaded, sampler_of, sigmas_of
from ncsn.cli.writers import Collector, check_replaced
from ncsn.data import FileImages, ImageData, same_images, to_unit
from ncsn.evaluation.extractors import (
    FeatureExtractor,
    extract,
    extract_all,
    real_images,
    reference_features,
)
from ncsn.evaluation.measure import (
    all_rows,
    chosen_extractor,
    held_out_bits,
    knows_classes,
    rows,
)
from ncsn.evaluation.metrics import frechet
from ncsn.evaluation.report import (
    Cost,
    Counter,
    Counts,
    Report,
    Samples,
    is_report,
    markdown,
    notes,
    report_of,
    save_report,
)
from ncsn.evaluation.samplers import compared_samplers, comparison_table
from ncsn.model.checkpoint_file import weights_fingerprint
from ncsn.model.draws import Request, batches, default_batch_size
from ncsn.model.files import exclusive_file
from ncsn.model.load import CHECKPOINTS, default_checkpoint
from ncsn.model.model import Model
from ncsn.samplers import Sampler
from ncsn.score.precision import without_autocast
from ncsn.training.processes import gathered, hold_outputs

__all__ = ["run"]

DEFAULT_COUNT = 10_000  # samples
LEAST_HELD_OUT = 4  # an image and its three neighbours


def run(options: Namespace) -> None:
    """Evaluate a checkpoint, a folder of images, or all samplers, and print a table."""
    held = []
    if options.json is not None:
        if not options.json.parent.is_dir():
            raise ValueError(f"--json: there is no folder {options.json.parent}")
        check_replaced("--json", options.json, ".json", is_report)
        held = [exclusive_file(options.json)]
    with hold_outputs("--json", *held):
        if options.png is None or not options.data:
            options.checkpoint = options.checkpoint or default_checkpoint(CHECKPOINTS)
        model = loaded(options.checkpoint, options) if options.png is None else None
        data = evaluated_data(options, model)
        extractor = chosen_extractor(options.features, data).to(device_of(options.device))
        if model is None:
            show(report_of_folder(options, data, extractor), options)
            return
        fabric = fabric_for(options)
        if options.samplers:
            compare(fabric, options, model, data, extractor)
            return
        report = report_of_checkpoint(fabric, options, model, data, extractor)
        if report is not None:
            show(report, options)


def measured(
    fabric: Fabric,
    model: Model,
    request: Request,
    precision: str,
    measure: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Cost]:
    """Return `measure` of all samples, rows (N, K) by index, and the cost."""
    counter, seconds, indices = Counter(), 0.0, [i for batch in request.batches for i in batch]
    request = replace(request, guide=counter)
    collected = Collector(fabric)
    with collected, shared_draws(fabric, model, request, len(indices), precision) as drawn:
        began = time.perf_counter()
        for batch, x in drawn:
            seconds += time.perf_counter() - began
            with without_autocast(x.device):
                collected.write(batch, measure(x))
            began = time.perf_counter()
    cost = Cost(sum(gathered([counter.evaluations])), max(gathered([seconds])), len(indices))
    return collected.samples(indices), cost


def evaluated_data(options: Namespace, model: Model | None) -> ImageData:
    """Return the data set of the options or of the checkpoint, ready to be read."""
    checkpoint = options.checkpoint
    data = chosen_data(options.data) if checkpoint is None else data_of(checkpoint, options)
    if not isinstance(data, ImageData):
        raise ValueError(f"checkpoint: {checkpoint} was not trained on images")
    if model is not None and model.shape != data.shape:
        drawn = f"{checkpoint} draws examples of shape {model.shape}"
        raise ValueError(f"--data: its images are of shape {data.shape}, but {drawn}")
    data.prepare_data()
    data.setup()
    return data


def counts_of(count: int, data: ImageData, extractor: FeatureExtractor) -> Counts:
    """Return the number of images of each kind; refuse fewer than the features need."""
    least = extractor.num_features + 1
    if count < least:
        raise ValueError(
            f"--num-samples: {count}, and {extractor.num_features} features take {least} images at least"
        )
    sizes = {name: len(split) for name, split in data.splits.items()}
    if sizes["train"] < least:
        raise ValueError(
            f"--data: it has {sizes['train']} training images, and the features take {least} at least"
        )
    if sizes["val"] < LEAST_HELD_OUT:
        raise ValueError(
            f"--data: it has {sizes['val']} held-out images, and the metrics take "
            f"{LEAST_HELD_OUT} at least; set --data.held_out"
        )
    return Counts(count, sizes["train"], min(count, sizes["val"]))


def report_of_checkpoint(
    fabric: Fabric, options: Namespace, model: Model, data: ImageData, extractor: FeatureExtractor
) -> Report | None:
    """Return the report of each seed's samples on the first process, None on others."""
    counts = counts_of(options.num_samples or DEFAULT_COUNT, data, extractor)
    size = options.batch_size or default_batch_size(model)
    sampler = sampler_of(model, options.sampler)
    sigmas, label = sigmas_of(model, options, sampler), label_of(model, options.label)
    request = Request(batches(range(counts.judged), size), sampler, sigmas, options.seed, label)
    precision = precision_of(model, options)
    fabric.launch()
    model = model.to(fabric.device)
    bits = None
    if options.likelihood and fabric.is_global_zero:
        bits = held_out_bits(model, data, options.likelihood, label)
    seeds = list(range(options.seed, options.seed + (options.seeds or 1)))
    measure = partial(rows, extractor, data.splits["train"])
    requests = [replace(request, seed=seed) for seed in seeds]
    each = [measured(fabric, model, request, precision, measure) for request in requests]
    if not fabric.is_global_zero:
        return None
    cost = sum((cost for _, cost in each), Cost(0, 0.0, 0))
    ends = sigmas[0].item(), sigmas[-1].item()
    weights, checkpoint = weights_fingerprint(model.denoiser), options.checkpoint
    how = str(sampler), len(sigmas), *ends, cost, model.labels.described(label)
    samples = Samples(str(checkpoint), weights, seeds, *how)
    of = f"seed {seeds[0]}" if len(seeds) == 1 else f"each of the seeds {seeds[0]} to {seeds[-1]}"
    words = (
        f"{counts.judged:,} samples of {of}, from {checkpoint} by {sampler} over "
        f"{len(sigmas)} levels from {ends[0]:g} to {ends[1]:g}{model.labels.described(label, ', of ')}"
    )
    words += "" if precision == "32-true" else f", in {precision}"
    if bits and model.classes:
        words += (
            f"; bits/dim given {'each class' if knows_classes(model, data, label) else 'no class'}"
        )
    return report_of(words, counts, data, extractor, [seen for seen, _ in each], samples, bits)


def report_of_folder(options: Namespace, data: ImageData, extractor: FeatureExtractor) -> Report:
    """Return the report of a folder's images, which must have the shape of the data."""
    images = same_images(options.png, data.shape)
    count = options.num_samples or len(images)
    if count > len(images):
        raise ValueError(f"--num-samples: {count}, and {options.png} has {len(images)} images")
    counts = counts_of(count, data, extractor)
    seen = all_rows(extractor, data.splits["train"], in_batches(images, count))
    return report_of(f"{count:,} images of {options.png}", counts, data, extractor, [seen])


def compare(
    fabric: Fabric, options: Namespace, model: Model, data: ImageData, extractor: FeatureExtractor
) -> None:
    """Print a table of all samplers."""
    counts = counts_of(options.num_samples or DEFAULT_COUNT, data, extractor)
    precision = precision_of(model, options)
    fabric.launch()
    model, reference = model.to(fabric.device), reference_features(extractor, data).features
    size = options.batch_size or default_batch_size(model)

    def draw(sampler: Sampler, sigmas: Tensor) -> tuple[Tensor, Cost]:
        request = Request(batches(range(counts.judged), size), sampler, sigmas, options.seed)
        return measured(fabric, model, request, precision, features)

    def features(x: Tensor) -> Tensor:
        return extract(extractor.to(x.device), x).features

    distance: Callable[[Tensor], float] = partial(frechet, reference=reference)
    floor = distance(extract_all(extractor, real_images(data, "val", counts.floor)).features)
    name = f"{extractor.metric_names[0]} of {counts.judged:,} (lower is better)"
    lines = comparison_table(compared_samplers(model), draw, distance, floor, counts.floor, name)
    if fabric.is_global_zero:
        print(markdown(lines))
        words = f"{counts.judged:,} samples of each, seed {options.seed}, from {options.checkpoint}"
        words += model.labels.described(None, ", of ")
        words += "" if precision == "32-true" else f", in {precision}"
        words += "; differences below the spread of one sampler (--seeds 3) are chance"
        print("\n" + notes(words, type(data).__name__, extractor.source, counts))
    if fabric.is_global_zero and options.likelihood:
        mean, error, count = held_out_bits(model, data, options.likelihood)
        print(f"Likelihood: {mean:.3f} +- {error:.3f} bits/dim, of {count:,} held-out images")


def in_batches(images: FileImages, count: int, size: int = 100) -> Iterator[Tensor]:
    """Yield the first `count` images in batches (B, C, H, W) in [0, 1]."""
    for start in range(0, count, size):
        yield to_unit(images[range(start, min(start + size, count))][0])


def show(report: Report, options: Namespace) -> None:
    """Print a report, and write it to the file of the options."""
    print(markdown(report.table()) + "\n")
    print(notes(report.judged, report.data, report.features, report.counts))
    if options.json is not None:
        save_report(report, options.json)
        print(f"Wrote {options.json}")
