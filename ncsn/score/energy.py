"""The score of an energy."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ncsn.score.score import ScoreModel

__all__ = ["EnergyScore"]


class EnergyScore(ScoreModel):
    """The score -grad_x energy(x, sigma) of p_sigma(x) ~ exp(-energy(x, sigma)), a `Score` by its call.

    It is differentiable once more, in x and in the energy's parameters, so that every objective trains it. In a
    `ScoreModule` it takes the place of a denoiser.

    Args:
        energy: (x, sigma) -> (B,), a module, where its parameters are to be trained with this one, or any function.
    """

    def __init__(self, energy: nn.Module | Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.energy = energy

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The score at `x` (B, ...), of its shape."""
        gradient: Tensor = torch.func.grad(lambda x: self.energy(x, sigma).sum())(x)
        return -gradient

    def score(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """The same, where a denoiser may be asked for the score given a label.

        Raises:
            ValueError: where there is a label, of which an energy knows nothing.
        """
        if label is not None:
            raise ValueError("an energy takes no label")
        score: Tensor = self(x, sigma)
        return score

    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log p_sigma(x) up to a constant, shape (B,), of `x` (B, ...)."""
        return -self.energy(x, sigma)
