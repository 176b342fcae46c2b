"""The energy of a denoising autoencoder."""

import torch
from torch import Tensor
from torch.nn import functional

from ncsn.networks.layers import TiedUnits

__all__ = ["AutoencoderEnergy"]


class AutoencoderEnergy(TiedUnits):
    """The energy of an autoencoder with tied weights (Vincent, 2011, sec. 5):

        energy(x, sigma) = -(c . x - ||x||^2 / 2 + sum_j softplus(W_j . x + b_j)) / sigma^2
        score(x, sigma)  = (reconstruct(x) - x) / sigma^2

    Its denoising score matching loss is the autoencoder's squared error in predicting
    the clean x from the noisy one, over 2 sigma^4.

    Args:
        features: dimension of an example.
        hidden: number of hidden units.
    """

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the energy (B,) of `x` (B, ...) at `sigma` () or (B, 1, ..., 1)."""
        flat = x.flatten(1)
        quadratic = flat @ self.visible_bias - flat.square().sum(1) / 2
        inside = quadratic + functional.softplus(self.inputs(x)).sum(1)
        return -inside / torch.as_tensor(sigma).to(x).reshape(-1) ** 2

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return grad_x log p_sigma(x), of the shape of `x` (B, ...)."""
        sigma = torch.as_tensor(sigma).to(x)
        return (self.reconstruct(x) - x) / sigma**2

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return W^T sigmoid(W x + b) + c, of the shape of `x` (B, ...)."""
        return (self.inputs(x).sigmoid() @ self.weight + self.visible_bias).view_as(x)
