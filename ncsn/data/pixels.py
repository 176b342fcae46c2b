"""Conversion between pixels and the data range [0, 1], and image grids."""

import math
from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor

__all__ = ["enlarged", "is_visible", "pixel_grid", "scale_of", "tiled", "to_pixels", "to_unit"]


def to_unit(pixels: Tensor) -> Tensor:
    """Return uint8 pixels from 0 to 255 as float32 in [0, 1]."""
    return pixels.to(torch.float32) / 255


def to_pixels(x: Tensor) -> Tensor:
    """Return `x`, clamped to [0, 1], as uint8 pixels from 0 to 255."""
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def enlarged(pixels: Tensor, scale: int | None = None) -> Tensor:
    """Return visible pixels (..., C, H, W), each repeated `scale` times per side.

    By default a side has about 32 in the end. Channels that are neither grey nor RGB are
    shown side by side.
    """
    scale = scale or scale_of(pixels.shape)
    if not is_visible(pixels.shape):
        pixels = torch.cat(pixels.unbind(-3), -1).unsqueeze(-3)
    return pixels.repeat_interleave(scale, -2).repeat_interleave(scale, -1)


def is_visible(shape: Sequence[int]) -> bool:
    """Return True if images (..., C, H, W) are grey or RGB."""
    return shape[-3] in (1, 3)


def scale_of(shape: Sequence[int]) -> int:
    """Return the default factor by which images (..., H, W) are enlarged."""
    return max(1, 32 // min(shape[-2:]))


def tiled(pixels: Tensor, columns: int | None = None) -> Tensor:
    """Return images (B, C, H, W) as one grid (3, H', W') with borders of 2 pixels.

    The default is a square grid. A single image has no border.
    """
    grid: Tensor = torchvision.utils.make_grid(
        pixels, nrow=columns or math.isqrt(len(pixels) - 1) + 1
    )
    return grid


def pixel_grid(x: Tensor, columns: int | None = None, scale: int | None = None) -> Tensor:
    """Return images `x` (B, C, H, W) enlarged, as one uint8 grid (3, H', W')."""
    return tiled(enlarged(to_pixels(x.cpu()), scale), columns)
