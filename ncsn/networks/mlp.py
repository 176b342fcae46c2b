"""A noise-conditional multilayer perceptron for vectors."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from ncsn.networks.layers import Conditioning
from ncsn.noise.checks import expect

__all__ = ["MLP"]


class MLP(nn.Module):
    """A multilayer perceptron F(x, c_noise, label) for vectors x (B, features).

    Its input is x of order one, random Fourier features of x, and the noise embedding.
    The Fourier features help it learn high frequencies (Tancik et al., 2020).

    Args:
        features: dimension of a vector.
        width: hidden units per layer, even.
        depth: number of hidden layers.
        classes: number of classes; 0 for a network that takes no label.
    """

    frequencies: Tensor

    def __init__(self, features: int, width: int = 128, depth: int = 3, classes: int = 0) -> None:
        super().__init__()
        expect("features >= 1", features >= 1, self, features=features)
        expect("depth >= 1", depth >= 1, self, depth=depth)
        expect("an even width >= 2", width >= 2 and width % 2 == 0, self, width=width)
        expect("classes >= 0", classes >= 0, self, classes=classes)
        self.features, self.width, self.depth, self.classes = features, width, depth, classes
        self.conditioning = Conditioning(width, classes)
        # Checkpoints hold buffers. The angles have a standard deviation of 3.
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
        """Return F, of the shape of `x` (B, features), at `c_noise` () or (B, 1).

        Raises:
            ValueError: if `x` has another shape.
        """
        features = len(self.frequencies)
        fits = x.shape[1:] == (features,)
        expect(f"x of shape (B, {features})", fits, self, shape=tuple(x.shape))
        angle = x @ self.frequencies
        inputs = [x, angle.cos(), angle.sin(), self.conditioning(len(x), c_noise, label)]
        out: Tensor = self.layers(torch.cat(inputs, dim=1))
        return out
