"""The score: what does the network mean?

The score of a noise level is the gradient of its log-density, score(x, sigma) = grad_x log p_sigma(x). It is a
function, and any function of that kind will do: objectives and samplers ask for nothing else.

A network learns it as a denoiser D(x, sigma) = E[clean | x], and Tweedie's formula reads the score off it,

    score(x, sigma) = (D(x, sigma) - x) / sigma^2.

D is a network F between four scalings that keep its input and output of order one at every noise level,

    D(x, sigma) = c_skip x + c_out F(c_in x, c_noise).

Shapes: x (B, ...), sigma () or (B, 1, ..., 1), label (B,) whole numbers or None. Only F runs under autocast: the
scalings and Tweedie's difference keep the dtype of `x`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = [
    "Denoiser",
    "EDMDenoiser",
    "EnergyScore",
    "NCSNDenoiser",
    "Score",
    "ScoreModel",
    "basis",
    "curvature",
    "tweedie",
]

Score = Callable[[Tensor, Tensor], Tensor]
"""(x, sigma) -> grad_x log p_sigma(x), of the shape of x."""

Scalings = tuple[Tensor, Tensor, Tensor, Tensor]
"""c_skip, c_out, c_in, c_noise, each of the shape of sigma."""


def tweedie(score: Score, x: Tensor, sigma: Tensor) -> Tensor:
    """The posterior mean E[clean | x] = x + sigma^2 score(x, sigma) (Efron, 2011, equation 1.4)."""
    return x + sigma**2 * score(x, sigma)


def curvature(score: Score, x: Tensor, sigma: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """The score at `x` (B, ...), and v . (d score / d x) v along each v of `directions` (K, B, ...), shape (K, B).

    Over the unit vectors of `basis` it adds up to the divergence of the score, and over random v with E v v^T = I that
    is its mean (Hutchinson, 1989). An example's score must not depend on the others of its batch.
    """
    psi, pull_back = torch.func.vjp(lambda x: score(x, sigma), x)[:2]
    # One after the other: torch.vmap gets wrong what goes through torch.cdist, as Parzen windows do.
    along = [(v * pull_back(v)[0]).reshape(len(x), -1).sum(1) for v in directions]
    return psi, torch.stack(along)


def basis(x: Tensor) -> Tensor:
    """The d unit vectors of an example's space, each for every example of `x` (B, ...): (d, B, ...)."""
    dimension = x[0].numel()
    return torch.eye(dimension).to(x).view(dimension, 1, *x.shape[1:]).expand(-1, *x.shape)


class ScoreModel(nn.Module, ABC):
    """A module that knows a score: what a `ScoreModule` trains and draws from."""

    @abstractmethod
    def score(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """grad_x log p_sigma(x), of the shape of `x`, for the classes `label` (B,) where they are given."""


class Denoiser(ScoreModel):
    """D(x, sigma), and the score that Tweedie's formula reads off it. A subclass gives the four scalings.

    Args:
        network: F, a module (x, c_noise, label) -> tensor of the shape of x.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @abstractmethod
    def scalings(self, sigma: Tensor) -> Scalings:
        """c_skip, c_out, c_in and c_noise at noise level `sigma`, each of its shape."""

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """The denoised picture D(x, sigma), of the shape and dtype of `x`."""
        sigma = torch.as_tensor(sigma).to(x)
        c_skip, c_out, c_in, c_noise = self.scalings(sigma)
        denoised: Tensor = c_skip * x + c_out * self.network(c_in * x, c_noise, label).to(x.dtype)
        return denoised

    def score(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """grad_x log p_sigma(x), by Tweedie's formula."""
        sigma = torch.as_tensor(sigma).to(x)
        score: Tensor = (self(x, sigma, label) - x) / sigma**2
        return score


class NCSNDenoiser(Denoiser):
    """score = F / sigma (Song & Ermon, 2020, Technique 3): D = x + sigma F(x, log sigma)."""

    def scalings(self, sigma: Tensor) -> Scalings:
        one = torch.ones_like(sigma)
        return one, sigma, one, sigma.log()


class EDMDenoiser(Denoiser):
    """EDM's preconditioning (Karras et al., 2022, Table 1), round the mean of the data.

    F's input and its target have unit variance at every noise level where the data has the stated moments.

    Args:
        network: F, a module (x, c_noise, label) -> tensor of the shape of x.
        data_mean: the mean of a pixel; 0.5 is the middle of the range [0, 1].
        data_std: the standard deviation of a pixel round it; EDM's 0.5 for [-1, 1] is 0.25 here.

    Raises:
        ValueError: where `data_std` is not positive or `data_mean` is not finite.
    """

    def __init__(self, network: nn.Module, data_mean: float = 0.5, data_std: float = 0.25) -> None:
        super().__init__(network)
        if not math.isfinite(data_mean):
            raise ValueError(f"EDMDenoiser: data_mean is {data_mean}, and must be finite")
        if not 0 < data_std < math.inf:
            raise ValueError(f"EDMDenoiser: data_std is {data_std}, and must be a positive number")
        self.data_mean = data_mean
        self.data_std = data_std

    def scalings(self, sigma: Tensor) -> Scalings:
        total = (sigma**2 + self.data_std**2).sqrt()
        return (self.data_std / total) ** 2, sigma * self.data_std / total, 1 / total, sigma.log() / 4

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        return super().forward(x - self.data_mean, sigma, label) + self.data_mean


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
