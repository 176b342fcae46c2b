"""A restricted Boltzmann machine: a density of binary data, known up to a constant."""

from torch import Tensor
from torch.nn import functional

from ncsn.networks.layers import TiedUnits

__all__ = ["RBM"]


class RBM(TiedUnits):
    """The free energy of a restricted Boltzmann machine (Smolensky, 1986):

        energy(x) = -log p(x) + constant = -a . x - sum_j softplus(W_j . x + b_j)

    Args:
        features: number of visible units.
        hidden: number of hidden units.
    """

    def forward(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """Return the energy (B,) of binary `x` (B, ...), the same at every `sigma`."""
        return -(x.flatten(1) @ self.visible_bias + functional.softplus(self.inputs(x)).sum(1))
