"""A noise-conditional perceptron for vectors."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from ncsn.networks.layers import Conditioning

__all__ = ["MLP"]


class MLP(nn.Module):
    """F(x, c_noise, label) for vectors x (B, features): a multilayer perceptron on x and the noise embedding.

    Args:
        features: the length of a vector.
        width: hidden units in a layer, even.
        depth: hidden layers.
        classes: how many classes there are; 0 makes a network that takes no label.

    Raises:
        ValueError: where a number is out of its range.
    """

    def __init__(self, features: int, width: int = 128, depth: int = 3, classes: int = 0) -> None:
        super().__init__()
        least = {"features": (features, 1), "width": (width, 2), "depth": (depth, 1), "classes": (classes, 0)}
        for name, (value, lowest) in least.items():
            if value < lowest:
                raise ValueError(f"MLP: {name} is {value}, and must be at least {lowest}")
        if width % 2:
            raise ValueError(f"MLP: width is {width}, and must be even")
        self.conditioning = Conditioning(width, classes)
        sizes = [features + width, *[width] * depth]
        hidden = [layer for size, next_size in pairwise(sizes) for layer in (nn.Linear(size, next_size), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, features))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """F, of the shape of `x` (B, features), at `c_noise` () or (B, 1), for `label` (B,) or None."""
        out: Tensor = self.layers(torch.cat([x, self.conditioning(len(x), c_noise, label)], dim=1))
        return out
