"""Interpolation: up to noise along the probability flow, across, and down again.

The flow adds no noise, so it goes both ways: an image has one latent, and a latent one image.
"""

from itertools import pairwise

import torch
from torch import Tensor

from ncsn.noise.shapes import norm_per_example
from ncsn.score import Score, heun_step

__all__ = ["encode", "slerp"]


@torch.no_grad()
def encode(score: Score, x: Tensor, sigmas: Tensor) -> Tensor:
    """Return the latent of `x`: the flow from the lowest to the highest level, in x's shape.

    Heun's method takes two score evaluations a level. A sampler of the flow at the same levels
    takes the latent back to `x`.

    Args:
        score: the score of the data.
        x: data (B, ...), taken as a sample at the lowest level.
        sigmas: noise levels (L,), from high to low, above 0.
    """
    for sigma, above in pairwise(sigmas.to(x).flip(0)):
        x = heun_step(score, x, sigma, above)
    return x


def slerp(a: Tensor, b: Tensor, t: float | Tensor) -> Tensor:
    """Return the point at `t` on the arc from `a` to `b` (Shoemake, 1985), in the shape of `a`.

    The direction turns evenly, and the length goes straight from that of `a` to that of `b`:
    noise in many dimensions lies near a sphere, which the straight line between two samples
    leaves. If `a` and `b` are parallel there is no unique arc, and the line is taken.

    Args:
        a: the start (B, ...), at t = 0.
        b: the end, of the shape of `a`, at t = 1.
        t: () or (B, 1, ..., 1), in [0, 1].
    """
    t = torch.as_tensor(t, dtype=a.dtype, device=a.device)
    length_a, length_b = norm_per_example(a), norm_per_example(b)
    to_a, to_b = a / length_a, b / length_b
    # Accurate at every angle, unlike the arc cosine.
    angle = 2 * torch.atan2(norm_per_example(to_a - to_b), norm_per_example(to_a + to_b))
    radius = (1 - t) * length_a + t * length_b
    share_a, share_b = ((1 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()
    # In this order the ends are exact.
    arc = radius / length_a * share_a * a + radius / length_b * share_b * b
    return torch.where(angle.sin() > 1e-4, arc, (1 - t) * a + t * b)
