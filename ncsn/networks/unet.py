"""A noise-conditional U-Net for images of any height, width and number of channels."""

from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ncsn.networks.layers import (
    NORMS,
    PER_PIXEL,
    Conditioning,
    ResidualBlock,
    layout_of,
    zeroed,
)
from ncsn.noise.checks import expect

__all__ = ["UNet"]


class UNet(nn.Module):
    """A U-Net F(x, c_noise, label) for images (Ho et al., 2020, appendix B).

    Its output starts at zero, so that the score of an untrained `NCSNDenoiser` is zero.

    Args:
        channels: C, the channels of the images.
        width: channels of the first resolution, at least 4.
        multipliers: channels of each resolution, in units of `width`; each resolution
            is half the previous one.
        blocks: residual blocks per resolution, in the encoder and in the decoder.
        attention: resolutions with self-attention; 0 is the full one.
        dropout: probability of dropping an activation inside a block.
        classes: number of classes; 0 for a network that takes no label.
        patch: side of the pixel squares that are folded into channels first.
        norm: "group" (Wu & He, 2018), of at least 4 channels a group; "group8", of at least
            8; "layer" or "rms", over the channels of each pixel. Compiled on GPUs, "rms" is
            the fastest, and groups of 4 channels have had wrong gradients in bf16. On CPUs
            "layer" has a fused kernel.
        augmentations: the numbers that tell the network how an image was augmented, 9 for
            `ScoreModule(augment=)`; 0 for a network that is not told.

    It computes in `torch.channels_last` if its weights are in it, or `norm` is "layer" or "rms".
    """

    def __init__(
        self,
        channels: int,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (),
        dropout: float = 0.0,
        classes: int = 0,
        patch: int = 1,
        norm: Literal["group", "group8", "layer", "rms"] = "group",
        augmentations: int = 0,
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "width": width, "blocks": blocks, "patch": patch}
        positive = min(sizes.values()) >= 1 and width >= 4
        expect("positive sizes, and width >= 4", positive, self, **sizes)
        expect("classes >= 0", classes >= 0, self, classes=classes)
        expect("augmentations >= 0", augmentations >= 0, self, augmentations=augmentations)
        count = len(multipliers)
        expect("at most 16 multipliers", count <= 16, self, given=count)
        positive = min(multipliers, default=0) >= 1
        expect("multipliers >= 1", positive, self, multipliers=list(multipliers))
        known = set(attention) <= set(range(len(multipliers)))
        expect(
            f"attention from 0 to {len(multipliers) - 1}", known, self, attention=list(attention)
        )
        expect("0 <= dropout < 1", 0 <= dropout < 1, self, dropout=dropout)
        expect("group, group8, layer or rms", norm in NORMS, self, norm=norm)
        widths = [width * multiplier for multiplier in multipliers]
        embedding = 4 * width
        self.channels, self.width, self.multipliers = channels, width, multipliers
        self.blocks, self.attention, self.dropout = blocks, attention, dropout
        self.classes, self.patch, self.norm = classes, patch, norm
        self.augmentations = augmentations
        self.conditioning = Conditioning(embedding, classes, augmentations)
        self.stem = nn.Conv2d(channels * patch**2, width * multipliers[0], 3, padding=1)
        self.resolutions = Resolution(
            widths, blocks, [i in attention for i in range(len(widths))], embedding, dropout, norm
        )
        self.head = nn.Sequential(
            NORMS[norm](widths[0]),
            nn.SiLU(),
            zeroed(nn.Conv2d(widths[0], channels * patch**2, 3, padding=1)),
        )
        self.to(memory_format=self.layout())

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Return F, shaped as `x` (B, C, H, W), at `c_noise` () or (B, 1, 1, 1)."""
        height, width = x.shape[-2:]
        embedding = self.conditioning(len(x), c_noise, label)
        h = functional.pad(x, (0, -width % self.patch, 0, -height % self.patch))
        h = rearrange(h, "b c (h p) (w q) -> b (c p q) h w", p=self.patch, q=self.patch)
        h = h.contiguous(memory_format=self.layout())
        h = self.head(self.resolutions(self.stem(h), embedding))
        h = rearrange(h, "b (c p q) h w -> b c (h p) (w q)", p=self.patch, q=self.patch)
        out: Tensor = h[..., :height, :width]
        return out

    def layout(self) -> torch.memory_format:
        """Return the layout of the activations."""
        # Norms over the channels of each pixel are fastest, and fused, where these are neighbours.
        if self.norm in PER_PIXEL:
            return torch.channels_last
        last = self.head[-1]  # the stem of grey images is in both layouts
        assert isinstance(last, nn.Conv2d)
        return layout_of(last.weight)

    def compiled_parts(self) -> list[nn.Module]:
        """Return the parts to compile one by one; blocks of equal shapes share their code."""
        return [*(m for m in self.modules() if isinstance(m, ResidualBlock)), self.head]


class Resolution(nn.Module):
    """One resolution of the U-Net, with all lower ones inside."""

    def __init__(
        self,
        widths: Sequence[int],
        blocks: int,
        attention: Sequence[bool],
        embedding: int,
        dropout: float,
        norm: str,
    ) -> None:
        super().__init__()
        width, *inner = widths
        settings = width, embedding, dropout, attention[0], norm
        self.encoder = nn.ModuleList(ResidualBlock(width, *settings) for _ in range(blocks))
        self.decoder = nn.ModuleList(ResidualBlock(2 * width, *settings) for _ in range(blocks))
        self.inner = None
        if inner:
            self.down = nn.Conv2d(width, inner[0], 3, stride=2, padding=1)
            self.inner = Resolution(inner, blocks, attention[1:], embedding, dropout, norm)
            self.up = nn.Conv2d(inner[0], width, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        skips = []
        for block in self.encoder:
            x = block(x, embedding)
            skips.append(x)
        if self.inner is not None:
            low = self.up(self.inner(self.down(x), embedding))
            x = x + functional.interpolate(low, size=x.shape[-2:], mode="nearest-exact")
        for block in self.decoder:
            x = block(torch.cat([x, skips.pop()], dim=1), embedding)
        return x
