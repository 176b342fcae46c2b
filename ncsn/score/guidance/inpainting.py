"""Inpainting by replacement: the known pixels are put back at every step, as noisy as the rest."""

import torch
from torch import Tensor

from ncsn.noise import positive
from ncsn.noise.streams import normal
from ncsn.score import Score
from ncsn.score.guidance.operators import expanded, known_pixels

__all__ = ["inpaint", "restore_known"]


def inpaint(score: Score, known: Tensor, mask: Tensor) -> Score:
    """The score of x whose pixels under `mask` are known (Song & Ermon, 2019, appendix B.3, Algorithm 2).

    `score` is asked for the unknown pixels at an x whose known ones are known + sigma z, with fresh noise: what it was
    trained on, where clean pixels in a noisy picture are not. The known ones have the score (known - x) / sigma^2 of
    N(known, sigma^2), so that every sampler brings them down to `known`; `restore_known` then makes them exact.

    The unknown ones follow their law given noisy neighbours, which becomes the law given the known ones as sigma
    falls: so it needs a sampler that settles at each level, as Langevin dynamics does. `posterior` with a `Mask` needs
    none.

    Args:
        score: the score of the data.
        known: what broadcasts to x; its values where the mask is 0 do not matter.
        mask: what broadcasts to x: 1 or True where a pixel is known, 0 or False where it is not.

    Raises:
        ValueError: where `mask` has other numbers; when called, where `known` or `mask` does not broadcast to x, or
            sigma is not positive.
    """
    given = known_pixels(mask)

    def inpainted(x: Tensor, sigma: Tensor) -> Tensor:
        sigma = positive(sigma, x)
        clean = expanded("known", known.to(x), x)
        replaced = expanded("mask", given.to(x.device), x)
        noisy = clean + sigma * normal(x)
        return torch.where(
            replaced, (clean - x) / sigma**2, score(torch.where(replaced, noisy, x), sigma)
        )

    return inpainted


def restore_known(x: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    """`x` with the pixels under `mask` exactly as in `known`, of the shape and dtype of `x`.

    Raises:
        ValueError: where `mask` has other numbers than 0 and 1, or `known` or `mask` does not broadcast to x.
    """
    given = expanded("mask", known_pixels(mask).to(x.device), x)
    return torch.where(given, expanded("known", known.to(x), x), x)
