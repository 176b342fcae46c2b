"""Conversion between pixels and the data range [0, 1], and image grids."""

import math
from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor

__all__ = ["enlarged", "pixel_grid", "scale_of", "tiled", "to_pixels", "to_unit"]


def to_unit(pixels: Tensor) -> Tensor:
    """Return uint8 pixels from 0 to 255 as float32 in [0, 1]."""
    return pixels.to(torch.float32) / 255


def to_pixels(x: Tensor) -> Tensor:
    """Return `x`, clamped to [0, 1], as uint8 pixels from 0 to 255."""
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def enlarged(pixels: Tensor, scale: int | None = None) -> Tensor:
    """Repeat each pixel (..., H, W) `scale` times per side; by default to about 32."""
    scale = scale or scale_of(pixels.shape)
    return pixels.repeat_interleave(scale, -2).repeat_interleave(scale, -1)


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
