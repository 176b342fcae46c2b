"""A noise-conditional U-Net for pictures of any height, width and number of channels."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ncsn.networks.layers import Conditioning, ResidualBlock, group_norm, zeroed

__all__ = ["UNet"]


class UNet(nn.Module):
    """F(x, c_noise, label) for pictures x (B, C, H, W): a U-Net of residual blocks (Ho et al., 2020, appendix B).

    Its output starts at zero, so that a fresh `NCSNDenoiser` has a score of zero: a loss of d/2.

    Args:
        channels: C, the channels of the pictures.
        width: the channels of the first resolution, at least 4.
        multipliers: the channels of each resolution, in widths, the full one first; each next is half the size.
        blocks: residual blocks at each resolution, on the way down and again on the way up.
        attention: the resolutions with self-attention, counted from 0, the full one.
        dropout: the probability of dropping an activation inside a block.
        classes: how many classes there are; 0 makes a network that takes no label.
        patch: fold patch x patch pixels into channels first, so that the full resolution is H / patch: much cheaper.

    Raises:
        ValueError: where a number is out of its range.
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
    ) -> None:
        super().__init__()
        least = {
            "channels": (channels, 1),
            "width": (width, 4),
            "blocks": (blocks, 1),
            "patch": (patch, 1),
        }
        for name, (value, lowest) in {**least, "classes": (classes, 0)}.items():
            if value < lowest:
                raise ValueError(f"UNet: {name} is {value}, and must be at least {lowest}")
        if not multipliers or min(multipliers) < 1:
            raise ValueError(
                f"UNet: multipliers is {list(multipliers)}, and must be whole numbers from 1"
            )
        if not set(attention) <= set(range(len(multipliers))):
            raise ValueError(
                f"UNet: attention is {list(attention)}, and must be among 0 to {len(multipliers) - 1}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"UNet: dropout is {dropout}, and must be from 0 to below 1")
        widths = [width * multiplier for multiplier in multipliers]
        embedding = 4 * width
        self.patch = patch
        self.classes = classes
        self.conditioning = Conditioning(embedding, classes)
        self.stem = nn.Conv2d(channels * patch**2, width * multipliers[0], 3, padding=1)
        self.resolutions = Resolution(
            widths, blocks, [i in attention for i in range(len(widths))], embedding, dropout
        )
        self.head = nn.Sequential(
            group_norm(widths[0]),
            nn.SiLU(),
            zeroed(nn.Conv2d(widths[0], channels * patch**2, 3, padding=1)),
        )

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """F, of the shape of `x` (B, C, H, W), at `c_noise` () or (B, 1, 1, 1), for `label` (B,) or None."""
        height, width = x.shape[-2:]
        embedding = self.conditioning(len(x), c_noise, label)
        h = functional.pad(x, (0, -width % self.patch, 0, -height % self.patch))
        h = rearrange(h, "b c (h p) (w q) -> b (c p q) h w", p=self.patch, q=self.patch)
        h = self.head(self.resolutions(self.stem(h), embedding))
        h = rearrange(h, "b (c p q) h w -> b c (h p) (w q)", p=self.patch, q=self.patch)
        out: Tensor = h[..., :height, :width]
        return out


class Resolution(nn.Module):
    """One resolution of the U-Net and, inside it, the next lower ones: down through the inner ones, and up again."""

    def __init__(
        self,
        widths: Sequence[int],
        blocks: int,
        attention: Sequence[bool],
        embedding: int,
        dropout: float,
    ) -> None:
        super().__init__()
        width, *inner = widths
        settings = width, embedding, dropout, attention[0]
        self.encoder = nn.ModuleList(ResidualBlock(width, *settings) for _ in range(blocks))
        self.decoder = nn.ModuleList(ResidualBlock(2 * width, *settings) for _ in range(blocks))
        self.inner = None
        if inner:
            self.down = nn.Conv2d(width, inner[0], 3, stride=2, padding=1)
            self.inner = Resolution(inner, blocks, attention[1:], embedding, dropout)
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
