"""Classifier-free guidance: away from the score of everything, towards and beyond that of a class."""

import math

import torch
from torch import Tensor

from ncsn.score import Score

__all__ = ["classifier_free"]


def classifier_free(
    conditional: Score,
    unconditional: Score,
    weight: float,
    interval: tuple[float, float] = (0.0, math.inf),
) -> Score:
    """Classifier-free guidance (Ho & Salimans, 2022, equation 6) between two noise levels.

        score = unconditional + w (conditional - unconditional)

    where sigma is inside the interval, both ends belonging to it, and the conditional score elsewhere (Kynkaanniemi et
    al., 2024): high levels lose variety by guidance, low ones gain nothing.

    Args:
        conditional: the score given a class.
        unconditional: the score of all classes. It is not asked where no example needs it.
        weight: w; 0 is the unconditional score, 1 the conditional one, more than 1 exaggerates the class. The paper's
            own w is this one less 1.
        interval: the lowest and the highest sigma with guidance.

    Raises:
        ValueError: where `weight` is not finite, or `interval` is not 0 <= low < high.
    """
    low, high = interval
    if not math.isfinite(weight):
        raise ValueError(
            f"classifier_free: weight is {weight}, and must be finite; 1 is the conditional score"
        )
    if not 0 <= low < high:
        raise ValueError(
            f"classifier_free: interval is ({low}, {high}), and must be (low, high) with 0 <= low < high"
        )

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        sigma = torch.as_tensor(sigma).to(x)
        inside = (low <= sigma) & (sigma <= high)
        wanted = conditional(x, sigma)
        if weight == 1 or not inside.any():
            return wanted
        # The same sum, written so that what is added to the conditional score vanishes at w = 1.
        steered = wanted + (weight - 1) * (wanted - unconditional(x, sigma))
        return torch.where(inside, steered, wanted)

    return guided
