"""Steps along the probability flow dx / dsigma = -sigma score(x, sigma).

It carries p_sigma from level to level without noise, up or down (Song et al., 2021, eq. 13;
Karras et al., 2022, eq. 1). In terms of the denoiser it is (x - D(x, sigma)) / sigma.
"""

from torch import Tensor

from ncsn.score.score import Score

__all__ = ["euler_step", "heun_step"]


def euler_step(score: Score, x: Tensor, sigma: Tensor, to: Tensor) -> Tensor:
    """Return the state at noise level `to` from `x` at `sigma`, by Euler's method."""
    return x + (sigma - to) * sigma * score(x, sigma)


def heun_step(score: Score, x: Tensor, sigma: Tensor, to: Tensor) -> Tensor:
    """Return the state at noise level `to` > 0 from `x` at `sigma`, by Heun's method."""
    slope = sigma * score(x, sigma)
    ahead = x + (sigma - to) * slope
    return x + (sigma - to) * (slope + to * score(ahead, to)) / 2
