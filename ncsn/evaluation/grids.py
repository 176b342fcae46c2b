"""Pictures made of pictures: grids with captions, walks, neighbours, and pictures that move.

All are pixels, uint8, of shape (C, H, W) or (3, H, W), light on dark; a sheet is one such picture, (3, H, W).
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

LINE = 15
"""Pixels of a line of text."""
CAPTION, NAME = 56, 44
"""Pixels on a side that pictures have at least, for the text under each of them, or over a column, to fit."""
LIGHT = (208, 208, 208)
SECONDS, LAST_SECONDS = 4.0, 2.0
"""That a GIF takes, and that its last frame stays."""


@cache
def font() -> ImageFont.FreeTypeFont:
    """The font of captions: that of matplotlib's figures, which knows Greek."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), 11)


def text_line(text: str, width: int | None = None) -> Tensor:
    """A line of text, centred: (3, LINE, width), or as wide as it takes. Of one that is too long the end is shown."""
    width = width or round(font().getlength(text)) + 4
    while text and font().getlength(text) > width:
        text = f"\N{HORIZONTAL ELLIPSIS}{text.lstrip(chr(0x2026))[1:]}" if len(text) > 2 else ""
    line = Image.new("RGB", (width, LINE))
    left = (width - font().getlength(text)) / 2
    ImageDraw.Draw(line).text((left, LINE - 4), text, LIGHT, font(), anchor="ls")
    pixels: Tensor = pil_to_tensor(line)
    return pixels


def with_room(pixels: Tensor, scale: int | None, least: int) -> Tensor:
    """Pixels (..., H, W), enlarged by `scale`: where not given, to at least so many on a side."""
    return enlarged(pixels, scale or -(-least // min(pixels.shape[-2:])))


def under(pixels: Tensor, captions: Sequence[str]) -> Tensor:
    """Pixels (B, C, H, W) with a line of text under each: (B, 3, H + LINE, W)."""
    lines = torch.stack([text_line(text, pixels.shape[-1]) for text in captions])
    return torch.cat([pixels.expand(-1, 3, -1, -1), lines], dim=-2)


def titled(sheet: Tensor, title: str) -> Tensor:
    """A sheet under a line of text, which makes it wider where it has to."""
    missing = text_line(title).shape[-1] - sheet.shape[-1]
    sheet = pad(sheet, (0, max(0, missing)))
    return torch.cat([text_line(title, sheet.shape[-1]), sheet], dim=-2)


def abreast(sheets: Sequence[Tensor]) -> Tensor:
    """Sheets side by side; a single one as it is."""
    if len(sheets) == 1:
        return sheets[0]
    height = max(sheet.shape[-2] for sheet in sheets)
    return torch.cat([pad(sheet, (4, 4, 0, height - sheet.shape[-2])) for sheet in sheets], dim=-1)


def captioned_grid(
    pixels: Tensor, captions: Sequence[str], columns: int | None = None, scale: int | None = None
) -> Tensor:
    """Pixels (B, C, H, W) as a grid, with a line of text under each."""
    return tiled(under(with_room(pixels, scale, CAPTION), captions), columns)


def shown_levels(levels: int, states: int) -> list[int]:
    """After which of the levels of a ladder, counted from 1, so many states are shown; 0 is the start.

    They are evenly spaced, from the start to the end: as many as there are, where there are fewer.
    """
    places = torch.linspace(0, levels, min(states, levels + 1)).round().int().tolist()
    return sorted(set(places))


def state_names(sigmas: Tensor, shown: Sequence[int]) -> list[str]:
    """What states are called: the start, and each of the others by the level of the ladder (L,) that it was left at."""
    return ["start" if level == 0 else level_name(sigmas[level - 1].item()) for level in shown]


def level_name(sigma: float) -> str:
    """What is written over pictures of a noise level."""
    return f"\N{GREEK SMALL LETTER SIGMA} {sigma:.2g}"


def trajectory_grid(pixels: Tensor, names: Sequence[str], scale: int | None = None) -> Tensor:
    """States (B, S, C, H, W) as a row for each walk, with their names over the columns."""
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
    """Pixels (B, C, H, W), each beside `others` (B, K, C, H, W), with a line of text under each of the K + 1."""
    strips = []
    for one, neighbours, words in zip(pixels, others, captions, strict=True):
        strip = captioned_grid(torch.cat([one[None], neighbours]), words, len(words), scale)
        strips.append(pad(strip, (4, 4, 2, 2)))
    height, width = strips[0].shape[-2:]
    square = max(1, round((len(strips) * height / width) ** 0.5))
    return tiled(torch.stack(strips), columns or square)


def save_gif(frames: Sequence[Tensor], file: Path) -> None:
    """Write sheets of one size as the frames of a GIF that goes round for ever: whole, or not at all."""
    pictures = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames]
    if all((frame == frame[:1]).all() for frame in frames):
        pictures = [picture.convert("L") for picture in pictures]  # of which a GIF has every shade
    each = max(40, 10 * round(100 * SECONDS / len(frames)))
    times = [*[each] * (len(frames) - 1), round(1000 * LAST_SECONDS)]
    with atomic_write(file) as partial:
        first, *others = pictures
        first.save(
            partial, format="GIF", save_all=True, append_images=others, duration=times, loop=0
        )


def save_pixels(pixels: Tensor, file: Path) -> None:
    """Write pixels (3, H, W), uint8, to `file` as PNG: whole, or not at all."""
    with atomic_write(file) as partial:
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(partial, format="PNG")


def save_grid(x: Tensor, file: Path, columns: int | None = None, scale: int | None = None) -> None:
    """Write `pixel_grid` of states (B, C, H, W) to `file` as PNG: whole, or not at all."""
    save_pixels(pixel_grid(x, columns, scale), file)
