"""Report of an evaluation, as a Markdown table and as JSON."""

import json
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ncsn.data import ImageData
from ncsn.evaluation.copies import COPIES, significantly_more
from ncsn.evaluation.extractors import FeatureExtractor, real_images, reference_features
from ncsn.evaluation.measure import all_rows, metrics_of
from ncsn.model.files import atomic_write
from ncsn.model.model_card import spread
from ncsn.score import Score

__all__ = [
    "Cost",
    "Counter",
    "Counts",
    "Report",
    "Samples",
    "is_report",
    "markdown",
    "notes",
    "report_of",
    "save_report",
]

BETTER = {
    "distance": "lower",
    "FID": "lower",
    "KID": "lower",
    "score": "higher",
    "precision": "higher",
    "recall": "higher",
    "(median)": "as held-out",
    COPIES: "as held-out",
}  # by the last word of a metric's name


@dataclass(frozen=True)
class Cost:
    """The cost of sampling: network evaluations, each counted for every image, and seconds."""

    nfe: int
    seconds: float
    images: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.nfe + other.nfe, self.seconds + other.seconds, self.images + other.images)

    def named(self) -> dict[str, float]:
        """Return NFE per image, seconds for all, and images per second."""
        return {
            "NFE": self.nfe / self.images,
            "seconds": self.seconds,
            "images/s": self.images / self.seconds,
        }


class Counter:
    """A guide that leaves the score as it is, and counts its evaluations, one for each example."""

    observes = True  # and so goes with any sampler

    def __init__(self) -> None:
        self.evaluations = 0

    def __call__(self, score: Score) -> Score:
        def counting(x: Tensor, sigma: Tensor) -> Tensor:
            self.evaluations += len(x)
            return score(x, sigma)

        return counting


@dataclass(frozen=True)
class Counts:
    """The numbers of images: evaluated, in the training split, and held out."""

    judged: int
    reference: int
    floor: int


@dataclass(frozen=True)
class Samples:
    """The samples of an evaluation, and their cost.

    `weights` is the fingerprint of the weights, which identifies them in any file. `label`
    says of which classes the samples are, if the model has labels.
    """

    checkpoint: str
    weights: str
    seeds: list[int]
    sampler: str
    levels: int
    sigma_max: float
    sigma_min: float
    cost: Cost
    label: str = ""


@dataclass(frozen=True)
class Report:
    """The report of an evaluation; the fields are the keys of its JSON file.

    Args:
        judged: a description of the evaluated images.
        data: the name of the data set.
        features: the network and its file.
        counts: the numbers of images.
        figures: the values of each metric, one per seed.
        floor: the value of each metric for held-out images.
        samples: the samples, if the images are samples of a model.
        bits_per_dim: the mean over held-out images, its standard error, and their number.
    """

    judged: str
    data: str
    features: str
    counts: Counts
    figures: dict[str, list[float]]
    floor: dict[str, float]
    samples: Samples | None = None
    bits_per_dim: tuple[float, float, int] | None = None

    def table(self) -> Table:
        """Return a table of the metrics with their spread over the seeds, and of the floor."""
        seeds = len(next(iter(self.figures.values())))
        value = "value" if seeds == 1 else f"mean +- std of {seeds} seeds"
        value += f", {self.counts.judged:,} images"
        floor = f"{self.counts.floor:,} held-out images"
        lines = Table("metric", value, floor, "better", box=box.MARKDOWN)
        for name, values in self.figures.items():
            better = BETTER.get(name.split()[-1], "")
            lines.add_row(
                name, spread(values) + self.verdict(name), f"{self.floor[name]:.4g}", better
            )
        if self.bits_per_dim:
            bits, error, count = self.bits_per_dim
            lines.add_row("bits/dim", "", f"{bits:.3f} +- {error:.3f} (of {count:,})")
        if self.samples:
            for name, cost in self.samples.cost.named().items():
                lines.add_row(name, f"{cost:.4g}", "")
        return lines

    def verdict(self, name: str) -> str:
        """Return a remark if the share of copies significantly exceeds that of held-out images."""
        values, floor = self.figures[name], self.floor[name]
        share, count = sum(values) / len(values), len(values) * self.counts.judged
        copied = name == COPIES and significantly_more(share, count, floor, self.counts.floor)
        return " (copies of training images)" if copied else ""


def report_of(
    words: str,
    counts: Counts,
    data: ImageData,
    extractor: FeatureExtractor,
    seen: list[Tensor],
    samples: Samples | None = None,
    bits: tuple[float, float, int] | None = None,
) -> Report:
    """Return the report of the rows (N, F + K + 2) of each seed, and of held-out images."""
    reference = reference_features(extractor, data)
    held_out = all_rows(extractor, data.splits["train"], real_images(data, "val", counts.floor))
    each = [metrics_of(extractor, part, reference) for part in seen]
    values = {name: [one[name] for one in each] for name in each[0]}
    floor = metrics_of(extractor, held_out, reference)
    name, features = type(data).__name__, extractor.source
    return Report(words, name, features, counts, values, floor, samples, bits)


def notes(judged: str, data: str, features: str, counts: Counts) -> str:
    """Return lines that describe the images behind the metrics."""
    few = f", fewer than the {counts.judged:,} evaluated" if counts.floor < counts.judged else ""
    return "\n".join(
        [
            f"Evaluated:  {judged}",
            f"Reference:  {counts.reference:,} training images of {data}; precision and recall use "
            "as many as are evaluated",
            f"Held out:   {counts.floor:,} images of its validation split{few}",
            f"Features:   {features}",
        ]
    )


def markdown(table: Table) -> str:
    """Return a table as Markdown text of any width."""
    text = StringIO()
    Console(file=text, width=10_000).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip())


def save_report(report: Report, file: Path) -> None:
    """Write a report to `file` as JSON, atomically."""
    with atomic_write(file) as partial:
        content = asdict(report)
        if report.samples:
            content["samples"]["cost"] = report.samples.cost.named()
        partial.write_text(json.dumps(content, indent=2) + "\n")


def is_report(file: Path) -> bool:
    """Return True if a file holds a report of this or an earlier version."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"figures", "counts"} <= content.keys()
