"""What was measured, as one table in Markdown and as JSON: each figure with its spread, its floor and its reference."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich import box
from rich.table import Table

from ncsn.copies import plainly_more
from ncsn.drawing import Cost
from ncsn.files import whole

__all__ = ["Counts", "Report", "notes", "save_report"]


@dataclass(frozen=True)
class Counts:
    """How many pictures a figure is of: judged, of the training split that they are judged by, and held out."""

    judged: int
    reference: int
    floor: int


@dataclass(frozen=True)
class Report:
    """An evaluation.

    Args:
        judged: what was judged, in words.
        data: the name of the data set.
        features: the network and its file.
        counts: of pictures.
        figures: by their names, one of each seed.
        floor: the same of held-out pictures.
        cost: of drawing all of them, where they were drawn.
        bits_per_dim: of held-out pictures, with its standard error and their number.
    """

    judged: str
    data: str
    features: str
    counts: Counts
    figures: dict[str, list[float]]
    floor: dict[str, float]
    cost: Cost | None = None
    bits_per_dim: tuple[float, float, int] | None = None

    def table(self) -> Table:
        """A row for each figure: its value, with its spread over the seeds, and the floor."""
        lines = Table("figure", "value", "held-out pictures", box=box.MARKDOWN)
        for name, values in self.figures.items():
            lines.add_row(name, spread(values) + self.verdict(name), f"{self.floor[name]:.4g}")
        if self.bits_per_dim:
            mean, error, count = self.bits_per_dim
            lines.add_row(f"bits/dim of {count:,} held-out pictures", f"{mean:.3f} +- {error:.3f}", "")
        if self.cost:
            for name, cost in self.cost.named().items():
                lines.add_row(name, f"{cost:.4g}", "")
        return lines

    def verdict(self, name: str) -> str:
        """Words for a share of copies that is plainly above that of held-out pictures."""
        if name != "share of copies":
            return ""
        values, floor = self.figures[name], self.floor[name]
        share = sum(values) / len(values)
        more = plainly_more(share, len(values) * self.counts.judged, floor, self.counts.floor)
        return " (copies of training pictures)" if more else ""


def notes(judged: str, data: str, features: str, counts: Counts) -> str:
    """What figures are of, a line for each, as `Report` has it."""
    few = f", fewer than the {counts.judged:,} that are judged" if counts.floor < counts.judged else ""
    return "\n".join(
        [
            f"Judged:     {judged}",
            f"Reference:  {counts.reference:,} pictures, the training split of {data}",
            f"Held out:   {counts.floor:,} pictures of its validation split{few}",
            f"Features:   {features}",
        ]
    )


def spread(values: list[float]) -> str:
    """The mean of the values, with their standard deviation where there are several."""
    mean = torch.tensor(values, dtype=torch.float64).mean().item()
    if len(values) == 1:
        return f"{mean:.4g}"
    return f"{mean:.4g} +- {torch.tensor(values, dtype=torch.float64).std().item():.2g}"


def save_report(report: Report, file: Path) -> None:
    """Write a report to `file` as JSON: whole, or not at all."""
    with whole(file) as partial:
        content = asdict(report) | {"cost": report.cost and report.cost.named()}
        partial.write_text(json.dumps(content, indent=2) + "\n")
