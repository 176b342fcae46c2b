"""The score of an energy."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ncsn.score.score import ScoreModel

__all__ = ["EnergyScore"]


class EnergyScore(ScoreModel):
    """The score -grad_x energy(x, sigma) of p_sigma(x) ~ exp(-energy(x, sigma)).

    It can be differentiated once more, in x and in the energy's parameters, so that every
    objective trains it. A model takes it in place of a denoiser.

    Args:
        energy: (x, sigma) -> (B,); a module, if it has parameters to train, or a function.
    """

    def __init__(self, energy: nn.Module | Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.energy = energy

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the score at `x` (B, ...), of its shape."""
        gradient: Tensor = torch.func.grad(lambda x: self.energy(x, sigma).sum())(x)
        return -gradient

    def score(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the score at `x` (B, ...), of its shape.

        Raises:
            ValueError: if there is a label, which an energy does not take.
        """
        if label is not None:
            raise ValueError("an energy takes no label")
        score: Tensor = self(x, sigma)
        return score

    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return log p_sigma(x) up to a constant, shape (B,), of `x` (B, ...)."""
        return -self.energy(x, sigma)
