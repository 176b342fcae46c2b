"""Pictures of what is not a picture itself: points in the plane with their scores, and hidden units."""

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ncsn.data import pixel_grid
from ncsn.densities import Density
from ncsn.files import whole
from ncsn.score import Score

__all__ = ["plot_field", "plot_points", "plot_units", "save_figure"]

LEARNED, EXACT, POINT = "#d95f02", "#b8b8b8", "#1f4e79"


def plot_points(data: Tensor, samples: Tensor, score: Score, exact: Density, sigmas: Tensor) -> Figure:
    """Data and samples (N, 2) beside the learned score over the exact one, at each of the levels `sigmas` (L,)."""
    reach = 1.1 * data.abs().max().item()
    figure = Figure(figsize=(3.6 * (2 + len(sigmas)), 4), layout="constrained")
    axes = figure.subplots(1, 2 + len(sigmas), squeeze=False)[0]
    for ax, title, points in zip(axes, ("data", "samples"), (data, samples), strict=False):
        ax.plot(*points.cpu().T, ".", color=POINT, markersize=2, alpha=0.5, markeredgewidth=0)
        ax.set_title(f"{len(points):,} {title}", fontsize=9)
    for ax, sigma in zip(axes[2:], sigmas, strict=True):
        plot_field(ax, exact.score, sigma, reach, EXACT, width=0.01)
        plot_field(ax, score, sigma, reach, LEARNED, width=0.003)
        ax.set_title(f"learned score over the exact one, sigma = {sigma:.2g}", fontsize=9)
    for ax in axes:
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
    return figure


def plot_field(ax: Axes, score: Score, sigma: Tensor, reach: float, colour: str, width: float) -> None:
    """Arrows of the score on a lattice over [-reach, reach]^2, their lengths that of sigma * score but for long ones.

    sigma * score is of order one where p_sigma has mass; arrows of much more are drawn shorter, to end before the next.
    """
    axis = torch.linspace(-reach, reach, 24)
    x = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        arrows = sigma.to(x) * score(x, sigma.to(x))
    arrows = (axis[1] - axis[0]) * 1.5 * arrows / (1 + arrows.norm(dim=1, keepdim=True))
    ax.quiver(*x.T, *arrows.T, color=colour, width=width, angles="xy", scale_units="xy", scale=1, headwidth=3.5)


def plot_units(weight: Tensor, samples: Tensor) -> Figure:
    """The filters of hidden units, weight (hidden, features), beside samples (B, C, H, W)."""
    filters = weight.detach().cpu().view(-1, *samples.shape[1:])
    largest = filters.abs().flatten(1).amax(1).view(-1, 1, 1, 1).clamp(min=1e-12)
    figure = Figure(figsize=(12, 6.3), layout="constrained")
    for ax, title, pictures in zip(
        figure.subplots(1, 2),
        (f"filters of {len(filters)} hidden units: grey is 0", f"{len(samples)} samples"),
        ((filters / largest + 1) / 2, samples),
        strict=True,
    ):
        ax.imshow(pixel_grid(pictures).permute(1, 2, 0).numpy())
        ax.set_title(title)
        ax.axis("off")
    return figure


def save_figure(figure: Figure, file: Path) -> None:
    """Write a figure to `file` as PNG: whole, or not at all."""
    with whole(file) as partial:
        figure.savefig(partial, format="png", dpi=100)
