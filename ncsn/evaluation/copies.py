"""Detection of copied training images.

Distances are Euclidean, over pixels in [0, 1]. A nearly empty image is close to a training image
whatever produced it, so a distance alone does not show a copy. An image is a copy if the distance
to its nearest training image is less than half of the mean distance to the 50 nearest (Carlini
et al., 2023, "Extracting training data from diffusion models", section 5.1: the adaptive distance
is below 1 at alpha = 1/2).
"""

import torch
from torch import Tensor

from ncsn.data import Examples, to_pixels, to_unit

__all__ = ["COPIES", "are_copies", "nearest", "neighbours", "significantly_more"]

COPIES = "copies"  # the name of the metric
NEIGHBOURS = 50  # of Carlini et al.
CHUNK = 4096  # training images compared at a time


def nearest(x: Tensor, training: Examples) -> Tensor:
    """Return the distance to the nearest example, and the mean distance to the 50 nearest.

    Args:
        x: states (B, ...).
        training: the examples.

    Returns:
        (B, 2). The first column is exact, and 0 for a copy.
    """
    distances, _ = neighbours(x, training)
    return torch.stack([distances[:, 0], distances.mean(1)], dim=1)


@torch.no_grad()
def neighbours(x: Tensor, training: Examples, count: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """Return the `count` examples nearest to each of the states `x` (B, ...), or all if fewer.

    States are compared as the pixels of a file. The examples are read once, in chunks, to the
    device of `x`.

    Returns:
        The distances (B, count), nearest first, of which the first is exact; and the indices.
    """
    flat = to_unit(to_pixels(x)).flatten(1)
    distances, indices = (
        flat.new_zeros(len(x), 0),
        torch.zeros(len(x), 0, dtype=torch.long, device=x.device),
    )
    for start in range(0, len(training), CHUNK):
        chunk = range(start, min(start + CHUNK, len(training)))
        others = flattened(training, list(chunk), x.device)
        # A matrix product is fast, and its rounding error is about 0.005 for equal images.
        found = torch.cdist(flat, others, compute_mode="use_mm_for_euclid_dist")
        distances = torch.cat([distances, found], dim=1)
        indices = torch.cat(
            [indices, torch.tensor(chunk, device=x.device).expand(len(x), -1)], dim=1
        )
        distances, order = distances.topk(min(count, distances.shape[1]), largest=False)
        indices = indices.gather(1, order)
    first = (flat - flattened(training, indices[:, 0].tolist(), x.device)).norm(dim=1, keepdim=True)
    return torch.cat([first, distances[:, 1:]], dim=1), indices


def flattened(examples: Examples, indices: list[int], device: torch.device) -> Tensor:
    """Return the examples at `indices` in [0, 1], as vectors (N, D)."""
    return to_unit(examples[indices][0].to(device)).flatten(1)


def are_copies(distances: Tensor) -> Tensor:
    """Return True for each copy (N,), from the distances (N, 2) of `nearest`."""
    return distances[:, 0] < distances[:, 1] / 2


def significantly_more(share: float, count: int, floor: float, floor_count: int) -> bool:
    """Return True if one share exceeds another by more than three standard errors."""
    error = share * (1 - share) / count + floor * (1 - floor) / floor_count
    return bool(share - floor > 3 * error**0.5)
