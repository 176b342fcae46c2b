"""The data range [0, 1] and the way back to pixels: here, and only here."""

import math

import torch
import torchvision
from torch import Tensor

__all__ = ["enlarged", "pixel_grid", "tiled", "to_pixels", "to_unit"]


def to_unit(pixels: Tensor) -> Tensor:
    """Pixels, uint8 from 0 to 255, as float32 in [0, 1]."""
    return pixels.to(torch.float32) / 255


def to_pixels(x: Tensor) -> Tensor:
    """A state, of which [0, 1] is the visible range, as uint8 from 0 to 255: clamped, scaled and rounded."""
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def enlarged(pixels: Tensor, scale: int | None = None) -> Tensor:
    """Pixels (..., H, W), each one repeated `scale` times on a side: where not given, to about 32 in all."""
    scale = scale or max(1, 32 // min(pixels.shape[-2:]))
    return pixels.repeat_interleave(scale, -2).repeat_interleave(scale, -1)


def tiled(pixels: Tensor, columns: int | None = None) -> Tensor:
    """Pixels (B, C, H, W) of pictures side by side, with a dark edge of 2 between them: (3, H', W').

    There are so many columns, or as many as rows. A single one is as it is, without an edge.
    """
    grid: Tensor = torchvision.utils.make_grid(
        pixels, nrow=columns or math.isqrt(len(pixels) - 1) + 1
    )
    return grid


def pixel_grid(x: Tensor, columns: int | None = None, scale: int | None = None) -> Tensor:
    """States (B, C, H, W) side by side, as uint8 (3, H', W'): `enlarged`, and `tiled`."""
    return tiled(enlarged(to_pixels(x.cpu()), scale), columns)
