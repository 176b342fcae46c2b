"""Plots of points in the plane with their scores, and of hidden units."""

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ncsn.data import DataModule, Points, pixel_grid
from ncsn.model.files import atomic_write
from ncsn.model.model import Model
from ncsn.networks import TiedUnits
from ncsn.score import EnergyScore, Score
from ncsn.score.densities import Density

__all__ = ["plot", "plot_points", "plot_units", "save_figure"]

LEARNED, EXACT, POINT = "#d95f02", "#b8b8b8", "#1f4e79"


def plot(samples: Tensor, module: Model, data: DataModule | None) -> Figure | None:
    """Return a plot of samples (N, ...), or None if a grid of images shows them best.

    Points in the plane are shown next to the data, with the learned score over the exact one at
    the middle and at the lowest noise level. Images of a model with hidden units are shown next
    to its filters.

    Args:
        samples: the samples.
        module: the model.
        data: the data that it was trained on, set up, if it is known.
    """
    hidden = module.denoiser.energy if isinstance(module.denoiser, EnergyScore) else None
    if len(module.shape) == 3 and isinstance(hidden, TiedUnits):
        return plot_units(hidden.weight, samples)
    if module.shape == (2,):
        x = exact = None
        if isinstance(data, Points):
            x = torch.cat([x for x, _ in data.val_dataloader()])[: len(samples)]
            exact = data.density if module.gaussian_noise else None
        sigmas = module.schedule.sigmas()
        shown = sigmas[[len(sigmas) // 2, -1]] if len(sigmas) > 1 else sigmas

        def score(x: Tensor, sigma: Tensor) -> Tensor:
            return module.denoiser.score(x.to(module.device), sigma.to(module.device)).cpu()

        return plot_points(x, samples, score, exact, shown)
    return None


def plot_points(
    data: Tensor | None, samples: Tensor, score: Score, exact: Density | None, sigmas: Tensor
) -> Figure:
    """Plot data and samples (N, 2), and the learned score over the exact one, at `sigmas` (L,).

    The data is None if it is not known, and the exact score if the noise is not Gaussian.
    """
    shown = {"samples": samples} if data is None else {"data": data, "samples": samples}
    reach = 1.1 * next(iter(shown.values())).abs().max().item()
    figure = Figure(figsize=(3.6 * (len(shown) + len(sigmas)), 3.8), layout="constrained")
    axes = figure.subplots(1, len(shown) + len(sigmas), squeeze=False)[0]
    for ax, (title, points) in zip(axes, shown.items(), strict=False):
        ax.plot(*points.cpu().T, ".", color=POINT, markersize=2, alpha=0.5, markeredgewidth=0)
        ax.set_title(f"{len(points):,} {title}", fontsize=9)
    for ax, sigma in zip(axes[len(shown) :], sigmas, strict=True):
        if exact is not None:
            plot_field(ax, exact.score, sigma, reach, EXACT, width=0.01)
        plot_field(ax, score, sigma, reach, LEARNED, width=0.003)
        over = " over the exact one" if exact is not None else ""
        ax.set_title(f"learned score{over}, sigma = {sigma:.2g}", fontsize=9)
    for ax in axes:
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
    return figure


def plot_field(
    ax: Axes, score: Score, sigma: Tensor, reach: float, colour: str, width: float
) -> None:
    """Draw arrows of sigma * score on a lattice over [-reach, reach]^2.

    sigma * score is of order one wherever p_sigma has mass. Longer arrows are shortened, so that
    they do not overlap.
    """
    axis = torch.linspace(-reach, reach, 24)
    x = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        arrows = sigma.to(x) * score(x, sigma.to(x))
    arrows = (axis[1] - axis[0]) * 1.5 * arrows / (1 + arrows.norm(dim=1, keepdim=True))
    ax.quiver(
        *x.T,
        *arrows.T,
        color=colour,
        width=width,
        angles="xy",
        scale_units="xy",
        scale=1,
        headwidth=3.5,
    )


def plot_units(weight: Tensor, samples: Tensor) -> Figure:
    """Plot the filters of hidden units, weight (hidden, features), and samples (B, C, H, W)."""
    filters = weight.detach().cpu().view(-1, *samples.shape[1:])
    largest = filters.abs().flatten(1).amax(1).view(-1, 1, 1, 1).clamp(min=1e-12)
    figure = Figure(figsize=(12, 6.3), layout="constrained")
    for ax, title, images in zip(
        figure.subplots(1, 2),
        (f"filters of {len(filters)} hidden units: grey is 0", f"{len(samples)} samples"),
        ((filters / largest + 1) / 2, samples),
        strict=True,
    ):
        ax.imshow(pixel_grid(images).permute(1, 2, 0).numpy())
        ax.set_title(title)
        ax.axis("off")
    return figure


def save_figure(figure: Figure, file: Path) -> None:
    """Write a plot to `file` as PNG, atomically."""
    with atomic_write(file) as partial:
        figure.savefig(partial, format="png", dpi=100)
