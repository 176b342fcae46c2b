"""Classifier-free guidance: from the score of all classes towards, and beyond, that of one."""

import math

import torch
from torch import Tensor

from ncsn.noise.checks import expect
from ncsn.score import Score

__all__ = ["classifier_free"]


def classifier_free(
    conditional: Score,
    unconditional: Score,
    weight: float,
    interval: tuple[float, float] = (0.0, math.inf),
) -> Score:
    """Return the guided score (Ho & Salimans, 2022, equation 6),

        score = unconditional + w (conditional - unconditional),

    for sigma inside the interval, and the conditional score elsewhere (Kynkaanniemi et al.,
    2024): guidance at high levels loses variety, and at low levels it gains nothing.

    Args:
        conditional: the score given a class.
        unconditional: the score of all classes; it is evaluated only inside the
            interval, and if w is not 1.
        weight: w; 0 is the unconditional score, 1 the conditional one, and more exaggerates the
            class. The paper's own w is this one less 1.
        interval: the lowest and the highest sigma with guidance, inclusive.

    Raises:
        ValueError: if `weight` is not finite, or not 0 <= low < high.
    """
    low, high = interval
    expect("a finite weight", math.isfinite(weight), "classifier_free", weight=weight)
    expect("0 <= low < high", 0 <= low < high, "classifier_free", interval=interval)

    limited = (low, high) != (0, math.inf)

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        sigma = torch.as_tensor(sigma).to(x)
        inside = (low <= sigma) & (sigma <= high)
        wanted = conditional(x, sigma)
        # Reading `inside` makes a GPU wait, and saves an evaluation.
        if weight == 1 or (limited and not inside.any()):
            return wanted
        # The same sum, exact at w = 1.
        steered = wanted + (weight - 1) * (wanted - unconditional(x, sigma))
        return torch.where(inside, steered, wanted)

    return guided
