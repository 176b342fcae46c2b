"""Between two pictures: up to noise along the probability flow, across, and down again.

The flow dx/dsigma = -sigma score(x, sigma) (Song et al., 2021, equation 13; Karras et al., 2022, equation 1) carries
p_sigma along without adding noise, so it goes both ways: a picture has one latent, and a latent one picture.
"""

from itertools import pairwise

import torch
from torch import Tensor

from ncsn.score import Score
from ncsn.score.flow import heun_step

__all__ = ["encode", "slerp"]


@torch.no_grad()
def encode(score: Score, x: Tensor, sigmas: Tensor) -> Tensor:
    """The latent of `x`: the flow from the lowest level up to the highest, by Heun's method, in the shape of `x`.

    It costs two scores a level. A sampler of the flow on the same ladder takes the latent back to `x`.

    Args:
        score: the score of the data.
        x: (B, ...) data, taken for a draw at the lowest level.
        sigmas: the ladder (L,), large to small, as samplers take it.

    Raises:
        ValueError: where the ladder does not fall strictly, from at least two levels, to a positive number.
    """
    sigmas = sigmas.to(x)
    if sigmas.ndim != 1 or len(sigmas) < 2 or not (sigmas.diff() < 0).all() or not sigmas[-1] > 0:
        raise ValueError(
            f"encode: sigmas is {sigmas.tolist()}, and must fall strictly, over two or more levels, to a positive one"
        )
    for sigma, above in pairwise(sigmas.flip(0)):
        x = heun_step(score, x, sigma, above)
    return x


def slerp(a: Tensor, b: Tensor, t: float | Tensor) -> Tensor:
    """From `a` (B, ...) to `b` on the arc between them (Shoemake, 1985), in the shape of `a`.

    Its direction turns evenly, and its length goes straight from that of `a` to that of `b`: noise in many dimensions
    lies near a sphere, and the straight line between two draws leaves it. Where `a` and `b` point the same way, or
    opposite ways, there is no one arc, and the straight line is taken.

    Args:
        a: at t = 0.
        b: at t = 1, of the shape of `a`.
        t: () or (B, 1, ..., 1), in [0, 1].

    Raises:
        ValueError: where the shapes of `a` and `b` differ, or `t` is outside [0, 1].
    """
    if a.shape != b.shape:
        raise ValueError(
            f"slerp: a is of shape {tuple(a.shape)} and b of {tuple(b.shape)}, and they must be the same"
        )
    t = torch.as_tensor(t, dtype=a.dtype, device=a.device)
    if not ((t >= 0) & (t <= 1)).all():
        raise ValueError(
            f"slerp: t is from {t.min().item():g} to {t.max().item():g}, and must be in [0, 1]"
        )
    length_a, length_b = length(a), length(b)
    to_a, to_b = a / length_a, b / length_b
    # Well conditioned at every angle, where the arc cosine is not.
    angle = 2 * torch.atan2(length(to_a - to_b), length(to_a + to_b))
    radius = (1 - t) * length_a + t * length_b
    share_a, share_b = ((1 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()
    # In this order the ends come out exactly as they were given.
    arc = radius / length_a * share_a * a + radius / length_b * share_b * b
    return torch.where(angle.sin() > 1e-4, arc, (1 - t) * a + t * b)


def length(x: Tensor) -> Tensor:
    """The norm of each example, shape (B, 1, ..., 1)."""
    return x.square().flatten(1).sum(1).sqrt().view(-1, *[1] * (x.ndim - 1))
