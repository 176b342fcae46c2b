"""How the noise levels are chosen for a data set (Song & Ermon, 2020): what a recommended ladder follows from.

The largest level is the largest distance between two examples, so that noise leads from any of them to any other
(Technique 1). The levels fall by a ratio gamma so small that neighbouring ones overlap (Technique 2). The Langevin step
keeps the variance of the walk as near to that of each level as it can be kept (Technique 4).

Distances and levels are in the unit of the data.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Distance",
    "distance_bounds",
    "langevin_step_size",
    "max_pairwise_distance",
    "num_levels",
    "variance_ratio",
]

PUBLISHED_OVERLAP = 0.5669
"""C of Technique 2 at which 232 levels of CIFAR-10, 500 of CelebA and 2311 of FFHQ were published."""
WIDEST_RATIO = 100 ** (1 / 9)
"""From one level to the next, of the 10 levels from 1 to 0.01 of Song & Ermon (2019)."""
CHUNK = 2**24
"""Values that are worked on at once: 64 MiB in float32."""


@dataclass(frozen=True)
class Distance:
    """What is known of the largest distance between two examples: it is reached by a pair, or lies above up to a bound.

    Args:
        lower: the distance of two examples.
        upper: no two examples are farther apart than this.
    """

    lower: float
    upper: float

    @property
    def exact(self) -> bool:
        """Whether no pair is left that could be farther apart, to the rounding of float32 (five digits)."""
        return self.upper <= self.lower


def max_pairwise_distance(data: Tensor, operations: float = 6e12) -> Distance:
    """The largest Euclidean distance between two examples of `data` (N, ...), in its own unit (Technique 1).

    It is exact where that takes at most so many multiplications: two minutes of two cores for the default, which is
    enough for every pair of 60,000 pictures of 32x32 in colour. Beyond, it is bounded from both sides. Real pictures
    take far less, since of most pairs it is known that they are not the farthest (see `distance_bounds`).

    Args:
        data: floating-point, or whole numbers such as uint8, which are converted a chunk at a time.
        operations: multiplications to spend.

    Raises:
        ValueError: where `data` is empty, or has a value that is not finite.
    """
    *_, distance = distance_bounds(data, operations)
    return distance


@torch.no_grad()
def distance_bounds(data: Tensor, operations: float = math.inf) -> Iterator[Distance]:
    """Ever narrower bounds of the largest distance between two examples of `data` (N, ...), until they meet.

    With r_i the distance of example i from the mean, no pair is farther apart than

        |x_i - x_j| <= r_i + r_j.

    So pairs are gone through from the outermost examples inwards, until r_i + r_j falls below a distance that was
    found. A good one to begin with is found by walking from an outermost example to the one farthest from it, and on.

    Args:
        data: as for `max_pairwise_distance`.
        operations: it ends after so many multiplications, if not before.

    Raises:
        ValueError: as `max_pairwise_distance` does.
    """
    if not len(data):
        raise ValueError("data is empty, and there is no distance in it")
    data = data.flatten(1) if data.ndim > 1 else data.unsqueeze(1)
    count, dimension = data.shape
    block = min(max(1, CHUNK // dimension), 2048)
    dtype = torch.promote_types(data.dtype, torch.float32)
    chunks = torch.split(data, block)
    total = torch.stack([rows.sum(0, dtype=torch.float64) for rows in chunks]).sum(0)
    centre = (total / count).to(dtype)

    def radii(point: Tensor) -> Tensor:
        return torch.cat([(rows.to(dtype) - point.to(dtype)).norm(dim=1) for rows in chunks])

    radius, order = radii(centre).sort(descending=True)
    if not radius.isfinite().all():
        raise ValueError("data has values that are not finite, or too large to be squared")
    r, inwards = [*radius.tolist(), 0.0, 0.0], order.tolist()

    def apart(i: int, j: int) -> float:
        return float((data[i].double() - data[j].double()).norm())

    lower, at = 0.0, inwards[0]
    for _ in range(10):
        farthest = int(radii(data[at]).argmax())
        if apart(at, farthest) <= lower:
            break
        lower, at = apart(at, farthest), farthest
    yield Distance(lower, max(lower, r[0] + r[1]))

    spent = 0
    for i in range(0, count, block):
        if r[i] + r[i + 1] <= lower or spent >= operations:
            return
        # Centred, so that nothing cancels in |a - b|^2 = |a|^2 - 2 a.b + |b|^2 that is not small beside the largest.
        a = (data[order[i : i + block]].to(dtype) - centre).float()
        for j in range(i, count, block):
            if r[i] + r[j] <= lower:
                break
            b = (data[order[j : j + block]].to(dtype) - centre).float()
            squares, columns = torch.addmm(b.square().sum(1), a, b.T, alpha=-2).max(1)
            row = int((squares + a.square().sum(1)).argmax())
            lower = max(lower, apart(inwards[i + row], inwards[j + int(columns[row])]))
            spent += len(a) * len(b) * dimension
        yield Distance(lower, max(lower, r[i + len(a)] + r[i + len(a) + 1]))


def num_levels(
    sigma_max: float, sigma_min: float, dimension: int, overlap: float = PUBLISHED_OVERLAP
) -> int:
    """How many levels a geometric ladder needs for neighbouring ones to overlap (Technique 2).

    In `dimension` = d dimensions, noise of level sigma lies in a shell of radius N(sqrt(d) sigma, sigma^2 / 2). The
    share of one level's shell within three deviations of the next larger one's is, where their ratio is gamma,

        C = Phi(sqrt(2d) (gamma - 1) + 3 gamma) - Phi(sqrt(2d) (gamma - 1) - 3 gamma).

    The ladder is the one with C nearest to `overlap`. In few dimensions levels overlap in any ratio: below 27 it is
    the 100^(1/9) of the first ladder published.

    Args:
        sigma_max: the largest level.
        sigma_min: the smallest level.
        dimension: numbers in an example.
        overlap: C. The paper asks for about 0.5; all of its ladders have the default.

    Raises:
        ValueError: where not 0 < sigma_min <= sigma_max < inf, `dimension` is not positive, or `overlap` is not between
            0 and 0.99.
    """
    if not 0 < sigma_min <= sigma_max < math.inf:
        raise ValueError(
            f"sigma_max is {sigma_max} and sigma_min {sigma_min}, and must be positive, the first larger"
        )
    if dimension < 1:
        raise ValueError(f"dimension is {dimension}, and must be at least 1")
    if not 0 < overlap < 0.99:
        raise ValueError(f"overlap is {overlap}, and must be between 0 and 0.99")
    low, high = 1.0, WIDEST_RATIO
    for _ in range(100):
        gamma = (low + high) / 2
        shift = math.sqrt(2 * dimension) * (gamma - 1)
        if normal_cdf(shift + 3 * gamma) - normal_cdf(shift - 3 * gamma) > overlap:
            low = gamma
        else:
            high = gamma
    levels = 1 + math.log(sigma_max / sigma_min) / math.log(high)
    return max(round(levels), 1 + (sigma_max > sigma_min))


def normal_cdf(x: float) -> float:
    """Phi(x), the probability that a standard normal variable is below x."""
    return math.erfc(-x / math.sqrt(2)) / 2


def variance_ratio(sigmas: Tensor, steps: int, epsilon: float | Tensor) -> Tensor:
    """The variance of the walk after each level, over that of the level: its mean over the ladder (Proposition 3).

    With eta = epsilon / sigma_L^2, q = 1 - eta and K = 2 eta / (1 - q^2) = 2 / (2 - eta),

        r = q^(2T) (gamma^2 - K) + K.

    It is a mean of gamma^2, where the walk comes from, and K, where it would settle: never below 1, and 1 for no
    `epsilon`. Being linear in gamma^2, its mean over the levels is r at the mean of gamma^2.

    Args:
        sigmas: the ladder (L,), from large to small.
        steps: Langevin steps at each level, T.
        epsilon: the step size at the lowest level, of any shape; the result has the same, in float64.

    Raises:
        ValueError: where the ladder has fewer than two levels, one that is not positive, or does not fall, or `steps`
            is not positive.
    """
    sigmas = sigmas.detach().cpu().double()
    if sigmas.ndim != 1 or len(sigmas) < 2 or not (sigmas > 0).all() or not sigmas[0] > sigmas[-1]:
        raise ValueError(
            "sigmas must be two levels or more, positive, and fall: there is no ratio between levels else"
        )
    if steps < 1:
        raise ValueError(f"steps is {steps}, and must be at least 1")
    gamma_squared = (sigmas[:-1] / sigmas[1:]).square().mean()
    eta = torch.as_tensor(epsilon, dtype=torch.float64) / sigmas[-1] ** 2
    settled = 2 / (2 - eta)
    return (1 - eta) ** (2 * steps) * (gamma_squared - settled) + settled


def langevin_step_size(sigmas: Tensor, steps: int) -> float:
    """The `epsilon` of `AnnealedLangevin` that keeps the variance of the walk nearest to its levels' (Technique 4).

    That is the `epsilon` at which `variance_ratio`, which 1 is a lower bound of, is least. Of a ladder that is not
    geometric, it is the mean over its levels that is.

    Args:
        sigmas: the ladder (L,), from large to small.
        steps: Langevin steps at each level.

    Raises:
        ValueError: as `variance_ratio` does.
    """
    unit = float(sigmas[-1]) ** 2 if len(sigmas) else 0.0
    low, high = -12.0, 0.0
    for _ in range(4):  # each time between the neighbours of the best: it is found to 1e-8
        grid = torch.logspace(low, high, 1001, dtype=torch.float64)
        best = int(variance_ratio(sigmas, steps, unit * grid).argmin())
        low, high = (grid[max(0, min(best + side, 1000))].log10().item() for side in (-1, 1))
    return unit * grid[best].item()
