"""The data range [0, 1] and the way back to pixels: here, and only here."""

import math
from pathlib import Path

import torch
import torchvision
from PIL import Image
from torch import Tensor

__all__ = ["pixel_grid", "save_grid", "to_pixels", "to_unit"]


def to_unit(pixels: Tensor) -> Tensor:
    """Pixels, uint8 from 0 to 255, as float32 in [0, 1]."""
    return pixels.to(torch.float32) / 255


def to_pixels(x: Tensor) -> Tensor:
    """A state, of which [0, 1] is the visible range, as uint8 from 0 to 255: clamped, scaled and rounded."""
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def pixel_grid(x: Tensor) -> Tensor:
    """States (B, C, H, W) side by side in a square, as uint8 (3, H', W'); small ones enlarged to about 32 pixels."""
    pixels = to_pixels(x.cpu())
    scale = max(1, 32 // min(x.shape[-2:]))
    pixels = pixels.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
    grid: Tensor = torchvision.utils.make_grid(pixels, nrow=math.isqrt(len(x) - 1) + 1)
    return grid


def save_grid(x: Tensor, file: Path) -> None:
    """Write `pixel_grid(x)` to `file` as PNG: whole, or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    try:
        Image.fromarray(pixel_grid(x).permute(1, 2, 0).numpy()).save(partial, format="PNG")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
