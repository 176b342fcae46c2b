"""A noise-conditional perceptron for vectors."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from ncsn.networks.layers import Conditioning

__all__ = ["MLP"]


class MLP(nn.Module):
    """F(x, c_noise, label) for vectors x (B, features): a multilayer perceptron on x and the noise embedding.

    It sees x through random Fourier features beside x itself: a perceptron learns what varies fast, as a score does at
    little noise, only slowly (Tancik et al., 2020). x is expected to be of order one.

    Args:
        features: the length of a vector.
        width: hidden units in a layer, even.
        depth: hidden layers.
        classes: how many classes there are; 0 makes a network that takes no label.

    Raises:
        ValueError: where a number is out of its range.
    """

    frequencies: Tensor

    def __init__(self, features: int, width: int = 128, depth: int = 3, classes: int = 0) -> None:
        super().__init__()
        least = {
            "features": (features, 1),
            "width": (width, 2),
            "depth": (depth, 1),
            "classes": (classes, 0),
        }
        for name, (value, lowest) in least.items():
            if value < lowest:
                raise ValueError(f"MLP: {name} is {value}, and must be at least {lowest}")
        if width % 2:
            raise ValueError(f"MLP: width is {width}, and must be even")
        self.classes = classes
        self.conditioning = Conditioning(width, classes)
        # A buffer, so that a checkpoint keeps them. The angles then have a standard deviation of 3.
        self.register_buffer(
            "frequencies", 3 / math.sqrt(features) * torch.randn(features, width // 2)
        )
        sizes = [features + 2 * width, *[width] * depth]
        hidden = [
            layer
            for size, next_size in pairwise(sizes)
            for layer in (nn.Linear(size, next_size), nn.SiLU())
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, features))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """F, of the shape of `x` (B, features), at `c_noise` () or (B, 1), for `label` (B,) or None.

        Raises:
            ValueError: where `x` is of another shape.
        """
        features = len(self.frequencies)
        if x.shape[1:] != (features,):
            raise ValueError(
                f"MLP: x is of shape {tuple(x.shape)}, and must be (B, {features}): a batch of vectors"
            )
        angle = x @ self.frequencies
        seen = [x, angle.cos(), angle.sin(), self.conditioning(len(x), c_noise, label)]
        out: Tensor = self.layers(torch.cat(seen, dim=1))
        return out
