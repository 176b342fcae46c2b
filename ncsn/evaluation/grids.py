"""Image grids with captions, trajectories, nearest neighbours, and GIFs.

All images are uint8 pixels with light text on a dark ground. A sheet is one such image, (3, H, W).
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.functional import pil_to_tensor

from ncsn.data import enlarged, pixel_grid, tiled
from ncsn.model.files import atomic_write

__all__ = [
    "abreast",
    "captioned_grid",
    "level_name",
    "nearest_grid",
    "save_gif",
    "save_grid",
    "save_pixels",
    "shown_levels",
    "state_names",
    "titled",
    "trajectory_grid",
]

LINE = 15  # height of a line of text, in pixels
CAPTION, NAME = 56, 44  # least pixels per side of an image with a caption or a name
LIGHT = (208, 208, 208)
SECONDS, LAST_SECONDS = 4.0, 2.0  # durations of a GIF and of its last frame


@cache
def font() -> ImageFont.FreeTypeFont:
    """Return the font of captions, matplotlib's own, which has Greek letters."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), 11)


def text_line(text: str, width: int | None = None) -> Tensor:
    """Return a centred line of text, (3, LINE, width), by default as wide as the text.

    If the text is too long, only its end is shown.
    """
    width = width or round(font().getlength(text)) + 4
    while text and font().getlength(text) > width:
        text = f"\N{HORIZONTAL ELLIPSIS}{text.lstrip(chr(0x2026))[1:]}" if len(text) > 2 else ""
    line = Image.new("RGB", (width, LINE))
    left = (width - font().getlength(text)) / 2
    ImageDraw.Draw(line).text((left, LINE - 4), text, LIGHT, font(), anchor="ls")
    pixels: Tensor = pil_to_tensor(line)
    return pixels


def with_room(pixels: Tensor, scale: int | None, least: int) -> Tensor:
    """Return pixels (..., H, W) enlarged by `scale`, by default to at least `least` per side."""
    return enlarged(pixels, scale or -(-least // min(pixels.shape[-2:])))


def under(pixels: Tensor, captions: Sequence[str]) -> Tensor:
    """Return pixels (B, C, H, W) with a line of text under each: (B, 3, H + LINE, W)."""
    lines = torch.stack([text_line(text, pixels.shape[-1]) for text in captions])
    return torch.cat([pixels.expand(-1, 3, -1, -1), lines], dim=-2)


def titled(sheet: Tensor, title: str) -> Tensor:
    """Return a sheet under a line of text, padded if the text is wider."""
    missing = text_line(title).shape[-1] - sheet.shape[-1]
    sheet = pad(sheet, (0, max(0, missing)))
    return torch.cat([text_line(title, sheet.shape[-1]), sheet], dim=-2)


def abreast(sheets: Sequence[Tensor]) -> Tensor:
    """Return sheets side by side."""
    if len(sheets) == 1:
        return sheets[0]
    height = max(sheet.shape[-2] for sheet in sheets)
    return torch.cat([pad(sheet, (4, 4, 0, height - sheet.shape[-2])) for sheet in sheets], dim=-1)


def captioned_grid(
    pixels: Tensor, captions: Sequence[str], columns: int | None = None, scale: int | None = None
) -> Tensor:
    """Return pixels (B, C, H, W) as a grid, with a line of text under each."""
    return tiled(under(with_room(pixels, scale, CAPTION), captions), columns)


def shown_levels(levels: int, states: int) -> list[int]:
    """Return the levels after which `states` evenly spaced states are shown.

    Level 0 is the start. If there are fewer states, all are shown.
    """
    places = torch.linspace(0, levels, min(states, levels + 1)).round().int().tolist()
    return sorted(set(places))


def state_names(sigmas: Tensor, shown: Sequence[int]) -> list[str]:
    """Return the names of states: "start", and the noise level (L,) that each other one ends."""
    return ["start" if level == 0 else level_name(sigmas[level - 1].item()) for level in shown]


def level_name(sigma: float) -> str:
    """Return the caption of a noise level."""
    return f"\N{GREEK SMALL LETTER SIGMA} {sigma:.2g}"


def trajectory_grid(pixels: Tensor, names: Sequence[str], scale: int | None = None) -> Tensor:
    """Return states (B, S, C, H, W) as one row per trajectory, with their names above."""
    states = with_room(pixels, scale, NAME)
    grid = tiled(states.flatten(0, 1), columns=len(names))
    width = states.shape[-1] + 2
    heads = torch.cat([text_line(name, width) for name in names], dim=-1)
    return torch.cat([pad(heads, (1, grid.shape[-1] - heads.shape[-1] - 1)), grid], dim=-2)


def nearest_grid(
    pixels: Tensor,
    others: Tensor,
    captions: Sequence[Sequence[str]],
    columns: int | None = None,
    scale: int | None = None,
) -> Tensor:
    """Return pixels (B, C, H, W), each next to `others` (B, K, C, H, W), with captions."""
    strips = []
    for one, neighbours, words in zip(pixels, others, captions, strict=True):
        strip = captioned_grid(torch.cat([one[None], neighbours]), words, len(words), scale)
        strips.append(pad(strip, (4, 4, 2, 2)))
    height, width = strips[0].shape[-2:]
    square = max(1, round((len(strips) * height / width) ** 0.5))
    return tiled(torch.stack(strips), columns or square)


def save_gif(frames: Sequence[Tensor], file: Path) -> None:
    """Write sheets of one size to `file` as the frames of an endless GIF, atomically."""
    images = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames]
    if all((frame == frame[:1]).all() for frame in frames):
        images = [image.convert("L") for image in images]  # a GIF has all 256 greys
    each = max(40, 10 * round(100 * SECONDS / len(frames)))
    times = [*[each] * (len(frames) - 1), round(1000 * LAST_SECONDS)]
    with atomic_write(file) as partial:
        first, *others = images
        first.save(
            partial, format="GIF", save_all=True, append_images=others, duration=times, loop=0
        )


def save_pixels(pixels: Tensor, file: Path) -> None:
    """Write pixels (3, H, W), uint8, to `file` as PNG, atomically."""
    with atomic_write(file) as partial:
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(partial, format="PNG")


def save_grid(x: Tensor, file: Path, columns: int | None = None, scale: int | None = None) -> None:
    """Write `pixel_grid` of states (B, C, H, W) to `file` as PNG, atomically."""
    save_pixels(pixel_grid(x, columns, scale), file)
