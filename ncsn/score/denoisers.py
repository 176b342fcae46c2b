"""Denoisers: a network between four scalings, and the score that Tweedie's formula gives."""

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from ncsn.noise.checks import expect
from ncsn.score.score import ScoreModel

__all__ = ["Denoiser", "EDMDenoiser", "NCSNDenoiser"]

Scalings = tuple[Tensor, Tensor, Tensor, Tensor]
"""c_skip, c_out, c_in, c_noise, each of the shape of sigma."""


class Denoiser(ScoreModel):
    """The denoiser D(x, sigma), and its score. A subclass gives the four scalings.

    Args:
        network: F, a module (x, c_noise, label) -> tensor of the shape of x.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @abstractmethod
    def scalings(self, sigma: Tensor) -> Scalings:
        """Return c_skip, c_out, c_in and c_noise at noise level `sigma`, each of its shape."""

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the denoised example D(x, sigma), of the shape and dtype of `x`.

        Raises:
            ValueError: if the network does not keep the shape of `x`.
        """
        sigma = torch.as_tensor(sigma).to(x)
        c_skip, c_out, c_in, c_noise = self.scalings(sigma)
        weight = next(self.network.parameters(), x)  # of a lower precision after `half()`
        f = self.network((c_in * x).to(weight.dtype), c_noise.to(weight.dtype), label)
        if f.shape != x.shape:  # it might broadcast
            shapes = f"{tuple(x.shape)}, got {tuple(f.shape)} ({type(self.network).__name__})"
            raise ValueError(f"expected a network that keeps the shape {shapes}")
        denoised: Tensor = c_skip * x + c_out * f.to(x.dtype)
        return denoised

    def score(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return grad_x log p_sigma(x) by Tweedie's formula, of the shape of `x`."""
        sigma = torch.as_tensor(sigma).to(x)
        score: Tensor = (self(x, sigma, label) - x) / sigma**2
        return score


class NCSNDenoiser(Denoiser):
    """The parametrisation score = F / sigma (Song & Ermon, 2020, Technique 3).

    So D = x + sigma F(c_in x, log sigma). In the paper F takes neither sigma nor a scaled x.

    Args:
        network: F, a module (x, c_noise, label) -> tensor of the shape of x.
        data_std: the standard deviation of the data, to which F's input is scaled at every
            noise level: c_in^-2 = 1 + (sigma / data_std)^2. Infinity, the default, scales
            nothing.

    Raises:
        ValueError: if `data_std` is not positive.
    """

    def __init__(self, network: nn.Module, data_std: float = math.inf) -> None:
        super().__init__(network)
        expect("data_std > 0", data_std > 0, self, data_std=data_std)
        self.data_std = data_std

    def scalings(self, sigma: Tensor) -> Scalings:
        c_in = (1 + (sigma / self.data_std) ** 2).rsqrt()
        return torch.ones_like(sigma), sigma, c_in, sigma.log()


class EDMDenoiser(Denoiser):
    """EDM's preconditioning (Karras et al., 2022, Table 1), centred on the mean of the data.

    If the data has the stated moments, F's input and its target have unit variance at every
    noise level.

    Args:
        network: F, a module (x, c_noise, label) -> tensor of the shape of x.
        data_mean: the mean of the data; 0.5 is the centre of the range [0, 1] of images.
        data_std: the standard deviation; EDM's 0.5 for [-1, 1] is 0.25 for [0, 1].

    Raises:
        ValueError: if `data_std` is not positive, or `data_mean` is not finite.
    """

    def __init__(self, network: nn.Module, data_mean: float = 0.5, data_std: float = 0.25) -> None:
        super().__init__(network)
        expect("a finite data_mean", math.isfinite(data_mean), self, data_mean=data_mean)
        expect("data_std > 0", 0 < data_std < math.inf, self, data_std=data_std)
        self.data_mean = data_mean
        self.data_std = data_std

    def scalings(self, sigma: Tensor) -> Scalings:
        total = (sigma**2 + self.data_std**2).sqrt()
        c_skip = (self.data_std / total) ** 2
        return c_skip, sigma * self.data_std / total, 1 / total, sigma.log() / 4

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        return super().forward(x - self.data_mean, sigma, label) + self.data_mean
