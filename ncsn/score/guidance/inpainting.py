"""Inpainting by replacement: at every step the known pixels are put back, as noisy as the rest."""

import torch
from torch import Tensor

from ncsn.noise.streams import normal
from ncsn.score import Score

__all__ = ["inpaint", "restore_known"]


def inpaint(score: Score, known: Tensor, mask: Tensor) -> Score:
    """Return the score of x given its pixels under `mask` (Song & Ermon, 2019, Algorithm 2).

    `score` is evaluated at the unknown pixels and known + sigma z, with fresh noise: clean
    pixels in a noisy image would be unlike its training data. The known pixels have the score
    (known - x) / sigma^2 of N(known, sigma^2), so that every sampler leads them to `known`, and
    `restore_known` makes them exact.

    The unknown pixels follow their distribution given noisy neighbours. It becomes that given
    the known pixels as sigma falls, for a sampler that rests at each level, as Langevin dynamics
    does. `posterior` with a `Mask` works with every sampler.

    Args:
        score: the score of the data.
        known: broadcasts to x; its values outside the mask do not matter.
        mask: broadcasts to x; 1 or True if a pixel is known, 0 or False if it is not.
    """

    def inpainted(x: Tensor, sigma: Tensor) -> Tensor:
        sigma = torch.as_tensor(sigma).to(x)
        clean, is_known = known.to(x).expand_as(x), mask.to(x.device).bool().expand_as(x)
        noisy = clean + sigma * normal(x)
        unknown_score = score(torch.where(is_known, noisy, x), sigma)
        return torch.where(is_known, (clean - x) / sigma**2, unknown_score)

    return inpainted


def restore_known(x: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    """Return `x` with the pixels under `mask` exactly as in `known`."""
    return torch.where(mask.to(x.device).bool(), known.to(x), x)
