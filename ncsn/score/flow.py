"""Steps along the probability flow dx / dsigma = -sigma score(x, sigma), in either direction.

The flow carries p_sigma from one noise level to the next without adding noise (Song et al.,
2021, eq. 13; Karras et al., 2022, eq. 1).
"""

from torch import Tensor

from ncsn.score.score import Score

__all__ = ["euler_step", "heun_step"]


def euler_step(score: Score, x: Tensor, sigma: Tensor, to: Tensor) -> Tensor:
    """Return the state at level `to` after one Euler step from `x` at level `sigma`."""
    return x + (sigma - to) * sigma * score(x, sigma)


def heun_step(score: Score, x: Tensor, sigma: Tensor, to: Tensor) -> Tensor:
    """Return the state at level `to`, which is not 0, after one Heun step from `x` at `sigma`."""
    slope = sigma * score(x, sigma)
    ahead = x + (sigma - to) * slope
    return x + (sigma - to) * (slope + to * score(ahead, to)) / 2
