"""The choice of the noise levels for a data set (Song & Ermon, 2020).

The highest level is the largest distance between two examples, so that noise leads from any of
them to any other (Technique 1). Neighbouring levels have a ratio gamma so small that they overlap
(Technique 2). The Langevin step keeps the variance as near as possible to that of each level
(Technique 4), or at it, with noise of another size. Distances and levels are in the unit of the
data.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ncsn.noise.checks import expect

__all__ = [
    "Distance",
    "distance_bounds",
    "exact_steps",
    "langevin_step_size",
    "max_pairwise_distance",
    "num_levels",
    "variance_ratio",
]

PUBLISHED_OVERLAP = 0.5669  # Technique 2's C for CIFAR-10 (232 levels), CelebA (500), FFHQ (2311)
WIDEST_RATIO = 100 ** (1 / 9)  # 10 levels from 1 to 0.01 (Song & Ermon, 2019)
CHUNK = 2**24  # numbers at once: 64 MiB in float32


@dataclass(frozen=True)
class Distance:
    """Bounds of the largest distance between two examples.

    Args:
        lower: the distance of two examples.
        upper: no two examples are farther apart.
    """

    lower: float
    upper: float

    @property
    def exact(self) -> bool:
        """True if the bounds meet, to the rounding of float32 (five digits)."""
        return self.upper <= self.lower


def max_pairwise_distance(data: Tensor, operations: float = 6e12) -> Distance:
    """Return the largest Euclidean distance between two examples of `data` (Technique 1).

    Args:
        data: (N, ...), floating-point, or integers such as uint8.
        operations: multiplications to spend. The default takes two minutes on two cores, which
            is enough for all pairs of 60,000 colour images of 32x32; it takes far fewer for real
            images (see `distance_bounds`). If it is not enough, the result is a pair of bounds.

    Raises:
        ValueError: if `data` is empty, or has a value that is not finite.
    """
    *_, distance = distance_bounds(data, operations)
    return distance


@torch.no_grad()
def distance_bounds(data: Tensor, operations: float = math.inf) -> Iterator[Distance]:
    """Yield ever narrower bounds of the largest distance between two examples, until they meet.

    If r_i is the distance of example i from the mean, no pair is farther apart than

        |x_i - x_j| <= r_i + r_j.

    So the pairs are visited from the outermost examples inwards, until r_i + r_j falls below a
    distance that was found. The first is found from an outermost example, by going to the
    example farthest from it, and on.

    Args:
        data: as for `max_pairwise_distance`.
        operations: the end, after so many multiplications.

    Raises:
        ValueError: as `max_pairwise_distance`.
    """
    if not len(data):
        raise ValueError("expected at least one example, got none (data)")
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
        raise ValueError("expected finite data, got NaN, infinity, or too large values")
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
        # Centred, because |a|^2 - 2 a.b + |b|^2 loses digits if the norms are large.
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
    """Return how many geometric levels are needed for neighbours to overlap (Technique 2).

    In d dimensions, noise of level sigma lies in a shell of radius N(sqrt(d) sigma, sigma^2 / 2).
    The share of one level's shell within three deviations of the next larger one's is

        C = Phi(sqrt(2d) (gamma - 1) + 3 gamma) - Phi(sqrt(2d) (gamma - 1) - 3 gamma),

    where gamma is their ratio. The result is the number of levels with C nearest to `overlap`.
    In few dimensions levels overlap in any ratio: below 27 it is the 100^(1/9) of the first
    published levels.

    Args:
        sigma_max: the highest level.
        sigma_min: the lowest level.
        dimension: d, the numbers in an example.
        overlap: C. The paper asks for about 0.5; all of its levels have the default.

    Raises:
        ValueError: if not 0 < sigma_min <= sigma_max, or not 0 < overlap < 0.99.
    """
    ends = {"sigma_min": sigma_min, "sigma_max": sigma_max}
    holds = 0 < sigma_min <= sigma_max < math.inf
    expect("0 < sigma_min <= sigma_max", holds, "num_levels", **ends)
    expect("0 < overlap < 0.99", 0 < overlap < 0.99, "num_levels", overlap=overlap)
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
    """Return Phi(x), the probability that a standard normal variable is below x."""
    return math.erfc(-x / math.sqrt(2)) / 2


def variance_ratio(sigmas: Tensor, steps: int, epsilon: float | Tensor) -> Tensor:
    """Return the variance after each level over that of the level, averaged (Proposition 3).

    With eta = epsilon / sigma_L^2 and K = 2 eta / (1 - (1 - eta)^2) = 2 / (2 - eta),

        r = (1 - eta)^(2T) (gamma^2 - K) + K.

    It is a mean of gamma^2, the variance at the start of a level, and K, the stationary one: it
    is above 1 for every `epsilon`. Because it is linear in gamma^2, its mean over the levels is
    r at the mean of gamma^2.

    Args:
        sigmas: at least two noise levels (L,), from high to low, above 0.
        steps: Langevin steps at each level, T.
        epsilon: the step size at the lowest level, of any shape; the result has the same, in
            float64.
    """
    sigmas = sigmas.detach().cpu().double()
    gamma_squared = (sigmas[:-1] / sigmas[1:]).square().mean()
    eta = torch.as_tensor(epsilon, dtype=torch.float64) / sigmas[-1] ** 2
    settled = 2 / (2 - eta)
    return (1 - eta) ** (2 * steps) * (gamma_squared - settled) + settled


def langevin_step_size(sigmas: Tensor, steps: int) -> float:
    """Return the `epsilon` of `AnnealedLangevin` whose `variance_ratio` is least (Technique 4).

    Args:
        sigmas: at least two noise levels (L,), from high to low, above 0.
        steps: Langevin steps at each level.
    """
    unit = float(sigmas[-1]) ** 2
    low, high = -12.0, 0.0
    for _ in range(4):  # each grid lies between the neighbours of the best, down to 1e-8
        grid = torch.logspace(low, high, 1001, dtype=torch.float64)
        best = int(variance_ratio(sigmas, steps, unit * grid).argmin())
        low, high = (grid[max(0, min(best + side, 1000))].log10().item() for side in (-1, 1))
    return unit * grid[best].item()


def exact_steps(sigmas: Tensor, steps: int) -> tuple[float, Tensor]:
    """Return the step and the noise with which annealed Langevin dynamics keeps variances.

    A step at the level sigma moves x by eta sigma^2 times the score, and adds noise of variance
    q sigma^2. Along a direction in which the data have the variance s^2, the score is -x / w with
    w = s^2 + sigma^2, and the step changes the variance v of the state to

        a v + q sigma^2,    a = (1 - eta sigma^2 / w)^2.

    q = 2 eta, of Euler and Maruyama, makes v too large (Proposition 3), and Technique 4 chooses
    the eta for which the excess at s = 0 is least. Here there is none:

    - q makes v = sigma^2 at s = 0 after the steps of each level, which begin at the variance of
      the level before;
    - eta makes v = w after the last level for s^2 = sigma_max sigma_min. For other s, far enough
      from both, v is then within some percent of w on geometric levels; on others, such as those
      of `KarrasSchedule`, within some 15 %. With too few levels and steps for any eta up to 1,
      eta is 1 and v stays too large.

    Args:
        sigmas: at least two noise levels (L,), from high to low, above 0.
        steps: Langevin steps at each level.

    Returns:
        eta, and q at each level (L,), in float64.

    Raises:
        ValueError: if there are not two levels at least, from high to low and above 0.
    """
    sigmas = sigmas.detach().cpu().double()
    falling = len(sigmas) > 1 and bool(sigmas[0] > sigmas[-1] > 0)
    expect("two noise levels or more, from high to low", falling, "exact_steps", levels=len(sigmas))
    widest = (sigmas[:-1] / sigmas[1:]).max().item()
    low, high = 1 - widest ** (-1 / steps), 1.0  # with less, q would have to be negative
    for _ in range(4):  # each grid lies between the neighbours of the best, down to 1e-8
        etas = torch.linspace(low, high, 201, dtype=torch.float64)
        best = int((last_variance(sigmas, steps, etas) - 1).abs().argmin())
        low, high = (etas[max(0, min(best + side, 200))].item() for side in (-1, 1))
    return etas[best].item(), matched_noise(sigmas, steps, etas[best : best + 1])[:, 0]


def matched_noise(sigmas: Tensor, steps: int, etas: Tensor) -> Tensor:
    """Return q for each of the levels (L,) and each of some eta (E,): (L, E)."""
    gamma_squared = (torch.cat([sigmas[:1], sigmas[:-1]]) / sigmas).square().unsqueeze(1)
    a = (1 - etas) ** 2
    return ((1 - a**steps * gamma_squared) * (1 - a) / (1 - a**steps)).clamp(min=0)


def last_variance(sigmas: Tensor, steps: int, etas: Tensor) -> Tensor:
    """Return v / w after the last level for s^2 = sigma_max sigma_min and each of some eta (E,)."""
    extent, squared = sigmas[0] * sigmas[-1], sigmas.square().unsqueeze(1)
    a = (1 - etas * squared / (extent + squared)) ** 2
    added = matched_noise(sigmas, steps, etas) * squared * (1 - a**steps) / (1 - a)  # by a level
    kept = (a**steps).flip(0).cumprod(0).flip(0)  # from before a level to the end
    after = torch.cat([kept[1:], torch.ones_like(kept[:1])])
    v = kept[0] * (extent + squared[0]) + (after * added).sum(0)
    return v / (extent + squared[-1])
