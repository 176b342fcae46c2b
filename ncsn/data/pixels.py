"""The data range [0, 1] and the way back to pixels: here, and only here."""

import math
from pathlib import Path

import torch
import torchvision
from PIL import Image
from torch import Tensor

from ncsn.files import whole

__all__ = ["pixel_grid", "save_grid", "to_pixels", "to_unit"]


def to_unit(pixels: Tensor) -> Tensor:
    """Pixels, uint8 from 0 to 255, as float32 in [0, 1]."""
    return pixels.to(torch.float32) / 255


def to_pixels(x: Tensor) -> Tensor:
    """A state, of which [0, 1] is the visible range, as uint8 from 0 to 255: clamped, scaled and rounded."""
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def pixel_grid(x: Tensor, columns: int | None = None) -> Tensor:
    """States (B, C, H, W) side by side, as uint8 (3, H', W'); small ones enlarged to about 32 pixels.

    There are so many columns, or as many as rows.
    """
    pixels = to_pixels(x.cpu())
    scale = max(1, 32 // min(x.shape[-2:]))
    pixels = pixels.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
    grid: Tensor = torchvision.utils.make_grid(pixels, nrow=columns or math.isqrt(len(x) - 1) + 1)
    return grid


def save_grid(x: Tensor, file: Path, columns: int | None = None) -> None:
    """Write `pixel_grid(x, columns)` to `file` as PNG: whole, or not at all."""
    with whole(file) as partial:
        Image.fromarray(pixel_grid(x, columns).permute(1, 2, 0).numpy()).save(partial, format="PNG")
