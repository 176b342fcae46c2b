"""Layers of the networks, for images (B, C, H, W) and embeddings (B, E)."""

import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ncsn.noise.checks import expect

__all__ = [
    "NORMS",
    "PER_PIXEL",
    "Attention",
    "Conditioning",
    "ResidualBlock",
    "TiedUnits",
    "layout_of",
    "zeroed",
]

NO_LABEL = -1
FEW_PIXELS = 100
Module = TypeVar("Module", bound=nn.Module)


class Conditioning(nn.Module):
    """The embedding (B, E) of the noise level, the class label and the augmentation.

    Args:
        width: E, even.
        classes: number of classes; 0 for a network that takes no label.
        augmentations: the numbers that describe an augmentation; 0 for a network without.
    """

    frequencies: Tensor

    def __init__(self, width: int, classes: int = 0, augmentations: int = 0) -> None:
        super().__init__()
        # Periods from 60 down to 0.6, for a c_noise of ln sigma or a quarter of it.
        # They are a buffer, so that checkpoints hold them.
        self.register_buffer("frequencies", torch.logspace(-1, 1, width // 2))
        self.classes = classes
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.augmentation = nn.Linear(augmentations, width, bias=False) if augmentations else None
        self.mlp = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )

    def forward(self, batch: int, c_noise: Tensor, label: Tensor | None) -> Tensor:
        """Return the embedding of `c_noise` () or (B, 1, ..., 1) and `label` (B,).

        A label of -1, or None for the whole batch, stands for no label. A label (B, 1 + A) has
        the numbers of the augmentation after the class; without them they are 0.

        Raises:
            ValueError: if a label is given to a network without classes.
        """
        angle = c_noise.reshape(-1, 1).expand(batch, 1) * self.frequencies
        features = torch.cat([angle.cos(), angle.sin()], dim=1) * math.sqrt(2)
        if self.augmentation is not None:
            numbers = features.new_zeros(batch, self.augmentation.in_features)
            if label is not None and label.ndim == 2:
                numbers = label[:, 1:].to(features.dtype)
                label = label[:, 0].long() if self.label is not None else None
            # Zeros too, because training on several devices needs a gradient of each weight.
            features = features + self.augmentation(numbers)
        if self.label is not None:
            label = (
                torch.full((batch,), NO_LABEL, device=c_noise.device) if label is None else label
            )
            features = features + self.label(label - NO_LABEL)
        elif label is not None:
            raise ValueError("expected no label: this network takes no labels (classes=0)")
        embedding: Tensor = self.mlp(features)
        return embedding


class ResidualBlock(nn.Module):
    """Two convolutions with a skip; the embedding scales and shifts the second norm."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        embedding: int,
        dropout: float,
        attention: bool,
        norm: str = "group",
    ) -> None:
        super().__init__()
        self.norm1 = NORMS[norm](channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * channels)
        self.norm2 = NORMS[norm](channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(channels, channels, 3, padding=1))
        self.skip = (
            nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()
        )
        self.attention = Attention(channels, norm=norm) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        scale, shift = rearrange(self.modulation(embedding), "b (two c) -> two b c 1 1", two=2)
        h = functional.silu(self.norm2(h) * (1 + scale) + shift)
        out: Tensor = self.attention(self.skip(x) + self.conv2(self.dropout(h)))
        return out


class Attention(nn.Module):
    """Self-attention over pixels, with a skip and at most `head` channels per head."""

    def __init__(self, channels: int, head: int = 64, norm: str = "group") -> None:
        super().__init__()
        self.heads = max(
            heads for heads in range(1, math.ceil(channels / head) + 1) if channels % heads == 0
        )
        self.norm = NORMS[norm](channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        # Fast attention kernels take channels that are next to each other in memory.
        qkv = rearrange(self.qkv(self.norm(x)), "b c h w -> b (h w) c").contiguous()
        q, k, v = rearrange(
            qkv, "b n (three heads c) -> three b heads n c", three=3, heads=self.heads
        )
        h = attended(q, k, v)
        out: Tensor = x + self.project(
            rearrange(h, "b heads (h w) c -> b (heads c) h w", h=x.shape[-2])
        )
        return out


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(C)) v of queries, keys and values (B, heads, N, C).

    In training on a CPU the products of few pixels are rounded to the dtype of autocast; torch's
    fused kernel rounds less, but in bf16 its gradient takes two to three times as long.
    """
    if q.is_cpu and q.requires_grad and q.shape[-2] <= FEW_PIXELS:
        weights = (q * q.shape[-1] ** -0.5) @ k.mT
        out: Tensor = weights.softmax(-1).to(v.dtype) @ v
        return out
    return functional.scaled_dot_product_attention(q, k, v)


class TiedUnits(nn.Module):
    """Hidden and visible units that share the weights W.

    Args:
        features: number of visible units, the dimension of a vector.
        hidden: number of hidden units.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        expect("features >= 1", features >= 1, self, features=features)
        expect("hidden >= 1", hidden >= 1, self, hidden=hidden)
        self.features, self.hidden = features, hidden
        self.weight = nn.Parameter(0.1 * torch.randn(hidden, features) / math.sqrt(features))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.visible_bias = nn.Parameter(torch.zeros(features))

    def inputs(self, x: Tensor) -> Tensor:
        """Return the input W x + b (B, hidden) of the hidden units for `x` (B, ...)."""
        return functional.linear(x.flatten(1), self.weight, self.hidden_bias)


def group_norm(channels: int, least: int = 4) -> nn.GroupNorm:
    """Return a norm of at most 32 groups, of at least so many channels each."""
    most = max(1, min(32, channels // least))
    groups = max(groups for groups in range(1, most + 1) if channels % groups == 0)
    return nn.GroupNorm(groups, channels)


class RMSNorm(nn.Module):
    """RMS norm over the channels of each pixel (Zhang & Sennrich, 2019), times a gain.

    It needs no sum over pixels, so that compilers fuse it with its neighbours.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        # The gradient of a mean would be expanded in another layout.
        norm = torch.linalg.vector_norm(x.float(), dim=1, keepdim=True)
        scale = torch.rsqrt(norm.square() / x.shape[1] + 1e-6)
        return x * scale.to(x.dtype) * self.gain.to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel (Ba et al., 2016).

    torch has a fused kernel for it, on CPUs too, which takes `torch.channels_last` as it is.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "group": group_norm,
    "group8": partial(group_norm, least=8),
    "layer": LayerNorm,
    "rms": RMSNorm,
}
PER_PIXEL = "layer", "rms"


def layout_of(x: Tensor) -> torch.memory_format:
    """Return `torch.channels_last` if `x` is in that layout alone, or the contiguous one."""
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not x.is_contiguous() else torch.contiguous_format


def zeroed(module: Module) -> Module:
    """Set the parameters of a module to 0, so that its branch starts as 0."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
