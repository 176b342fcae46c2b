"""Augmentation that the network is told of (Karras et al., 2022, appendix F.2).

Training images are mirrored, scaled, turned, stretched and moved. Nine numbers describe what was
done to an image, and the network takes them as part of its label. So it learns the density of each
kind of image apart, and samples are of nine zeros, which stand for images as they are.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from ncsn.noise.streams import normal, uniform

__all__ = ["NUMBERS", "augmented"]

NUMBERS = 9
SIZE = 0.2  # standard deviation of log2 of the scale, and of the stretch
MOVE = 0.125  # standard deviation of a translation, in sides of the image


def augmented(x: Tensor, label: Tensor | None, probability: float) -> tuple[Tensor, Tensor]:
    """Return augmented images, and labels that say how.

    Half of the images are mirrored left to right. Each of the others is applied with the given
    probability: a coin for top to bottom, a scale, an angle, a stretch along any axis, and a
    translation. Places outside of an image show its reflection.

    Args:
        x: images (B, C, H, W).
        label: classes (B,), or None.
        probability: of each.

    Returns:
        images (B, C, H, W), and labels (B, 1 + 9): the class, -1 for none, and the nine numbers.
    """
    chosen = (uniform(x.new_empty(len(x), 5)) < probability).to(x).unbind(1)
    u, z = uniform(x.new_empty(len(x), 4)).unbind(1), normal(x.new_empty(len(x), 4)).unbind(1)
    mirrored, upside_down = (u[0] < 0.5).to(x), chosen[0] * (u[1] < 0.5)
    angle, axis = chosen[1] * math.pi * (2 * u[2] - 1), math.pi * (2 * u[3] - 1)
    scale, stretch = chosen[2] * z[0], chosen[3] * z[1]
    move = chosen[4].unsqueeze(1) * torch.stack(z[2:], 1)
    # From a place in the result to the place in the image.
    flip = torch.stack([1 - 2 * mirrored, 1 - 2 * upside_down], 1)
    shrink = torch.stack([-scale - stretch, -scale + stretch], 1).mul(SIZE).exp2()
    across = times(rotation(axis) * shrink.unsqueeze(1), rotation(-axis))
    matrix = flip.unsqueeze(2) * times(rotation(angle), across)
    moved = sampled(x, matrix, 2 * MOVE * move)
    numbers = [mirrored, upside_down, scale, angle.cos() - 1, angle.sin()]
    numbers += [stretch * axis.cos(), stretch * axis.sin(), *move.unbind(1)]
    kind = torch.full_like(mirrored, -1) if label is None else label.to(x)
    return moved, torch.stack([kind, *numbers], 1)


def rotation(angle: Tensor) -> Tensor:
    """Return the matrices (B, 2, 2) of rotations by angles (B,)."""
    rows = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1)
    return rows.view(-1, 2, 2)


def times(a: Tensor, b: Tensor) -> Tensor:
    """Return the products of matrices (B, I, J) and (B, J, K).

    A matrix product of torch may round to bf16 or TF32, in which a place is off by pixels.
    """
    return (a.unsqueeze(3) * b.unsqueeze(1)).sum(2)


def sampled(x: Tensor, matrix: Tensor, move: Tensor) -> Tensor:
    """Return images whose pixel at r is the pixel of `x` at matrix (r - move).

    Places are measured from the centre of an image.

    Args:
        x: images (B, C, H, W).
        matrix: (B, 2, 2), for places in pixels, right and down.
        move: (B, 2), in half sides.
    """
    width_height = x.shape[:1:-1]
    # `new_tensor` would make a GPU wait.
    sides = torch.stack([x.new_full((), n) for n in width_height])
    right, down = ((2 * torch.arange(n, device=x.device) + 1) / n - 1 for n in width_height)
    places = (
        torch.stack(torch.meshgrid(right, down, indexing="xy"), -1).view(1, -1, 2) - move[:, None]
    )
    grid = times(places * sides, matrix.transpose(1, 2)) / sides
    grid = grid.view(len(x), *x.shape[2:], 2)
    return functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
