"""Densities with a known score: the truth that a learned score is compared with.

Blurred by Gaussian noise of width sigma, a Gaussian N(mean, std^2) becomes
N(mean, std^2 + sigma^2), a mixture of Gaussians a mixture of such, and a set of points the Parzen
density (1/N) sum_i N(x; x_i, sigma^2 I). So each is known at every noise level, with its score

    score(x, sigma) = sum_i w_i(x) (mean_i - x) / (std_i^2 + sigma^2),

where w(x) is the softmax of the log-likelihoods.

Shapes: x (B, ...), sigma () or (B, 1, ..., 1) and at least 0; `log_prob` is (B,), `score` has
the shape of x, and `sample(n, sigma)` is (n, ...). Results have the dtype and device of x;
samples have those of the tensors that the density was made from.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from ncsn.noise.checks import expect
from ncsn.noise.shapes import rows, sum_per_example
from ncsn.score.precision import without_autocast

__all__ = ["Density", "Gaussian", "GaussianMixture", "HyperCubeWindow", "ParzenWindow"]


class Density(ABC):
    """A density that is known at every noise level."""

    @abstractmethod
    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return log p_sigma(x), shape (B,)."""

    @abstractmethod
    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return grad_x log p_sigma(x), of the shape of `x`."""

    @abstractmethod
    def clean(self, n: int) -> Tensor:
        """Return `n` samples (n, ...) without noise."""

    def sample(self, n: int, sigma: float = 0.0) -> Tensor:
        """Return `n` samples (n, ...) of p_sigma."""
        x = self.clean(n)
        return x + sigma * torch.randn_like(x)


class GaussianMixture(Density):
    """A mixture of K Gaussians, each with independent dimensions.

    Args:
        weights: (K,), positive; they are normalised.
        means: (K, ...), of the shape of an example.
        stds: what broadcasts to (K, ...), at least 0: () for one width, (K, 1, ...) for one
            for each component.

    Raises:
        ValueError: if there are not as many weights as means.
    """

    def __init__(self, weights: Tensor, means: Tensor, stds: Tensor) -> None:
        rule = "as many weights as means"
        expect(rule, weights.shape == means.shape[:1], self, weights=tuple(weights.shape))
        self.log_weights = (weights / weights.sum()).log()
        self.means = means
        self.stds = stds.expand_as(means)

    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self._log_joint(*self._offsets(x, sigma)).logsumexp(dim=1)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        difference, variance = self._offsets(x, sigma)
        responsibility = self._log_joint(difference, variance).softmax(dim=1)
        share = responsibility.reshape(*responsibility.shape, *[1] * (x.ndim - 1))
        return (share * difference / variance).sum(1)

    def clean(self, n: int) -> Tensor:
        component = torch.multinomial(self.log_weights.exp(), n, replacement=True)
        return self.means[component] + self.stds[component] * torch.randn_like(
            self.means[component]
        )

    def _offsets(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean_k - x (B, K, ...), and the variances std_k^2 + sigma^2."""
        sigma = torch.as_tensor(sigma).to(x)
        _check_shapes(x, self.means)
        sigma = sigma.unsqueeze(1) if sigma.ndim else sigma
        variance = self.stds.to(x) ** 2 + sigma**2
        return self.means.to(x) - x.unsqueeze(1), variance

    def _log_joint(self, difference: Tensor, variance: Tensor) -> Tensor:
        """Return log w_k N(x; mean_k, std_k^2 + sigma^2), shape (B, K)."""
        log_normal = -(difference**2 / variance + (2 * math.pi * variance).log()) / 2
        each = sum_per_example(log_normal.flatten(0, 1)).view(log_normal.shape[:2])
        return self.log_weights.to(difference) + each


class Gaussian(GaussianMixture):
    """One Gaussian with independent dimensions: `mean` (...), and `std` that broadcasts to it."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__(torch.ones(1).to(mean), mean.unsqueeze(0), std)


class ParzenWindow(Density):
    """The Parzen density of a data set, p_sigma(x) = 1/N sum_i N(x; x_i, sigma^2 I), sigma > 0.

    Its score is the one that a model of unlimited capacity learns (Vincent, 2011, section 4):
    following it reproduces the data set. The data is read in chunks, so that N may be that of a
    whole data set of images.

    Args:
        data: (N, ...).
        chunk: the number of examples of the data that are compared with a batch at once.

    Raises:
        ValueError: if `chunk` is not positive.
    """

    def __init__(self, data: Tensor, chunk: int = 4096) -> None:
        expect("chunk >= 1", chunk >= 1, self, chunk=chunk)
        self.data = data
        self.chunk = chunk

    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        sigma = torch.as_tensor(sigma).to(x)
        width = sigma.reshape(-1)
        logs = [exponents.logsumexp(1) for _, exponents in self._exponents(x, width)]
        dimension = x[0].numel()
        return (
            torch.stack(logs).logsumexp(0)
            - math.log(len(self.data))
            - dimension * (width.log() + math.log(2 * math.pi) / 2)
        )

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        sigma = torch.as_tensor(sigma).to(x)
        # A softmax over all of the data, chunk by chunk: the sums are kept relative to the
        # largest exponent so far.
        largest = torch.full((len(x),), -math.inf).to(x)
        total = torch.zeros_like(largest)
        pulled = torch.zeros_like(rows(x))
        for data, exponents in self._exponents(x, sigma.reshape(-1)):
            above = torch.maximum(largest, exponents.max(1).values)
            shrink, weights = (largest - above).exp(), (exponents - above.unsqueeze(1)).exp()
            total = shrink * total + weights.sum(1)
            with without_autocast(x.device):
                pulled = shrink.unsqueeze(1) * pulled + weights @ data
            largest = above
        return ((pulled / total.unsqueeze(1)).view_as(x) - x) / sigma**2

    def clean(self, n: int) -> Tensor:
        return self.data[torch.randint(len(self.data), (n,), device=self.data.device)]

    def _exponents(self, x: Tensor, width: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each chunk of the data, flat, and -||x - x_i||^2 / (2 sigma^2), (B, chunk)."""
        _check_shapes(x, self.data)
        for part in torch.split(rows(self.data), self.chunk):
            data = part.to(x)
            # Matrix products would be faster, and wrong in float32 if sigma is small.
            distance = torch.cdist(rows(x), data, compute_mode="donot_use_mm_for_euclid_dist")
            yield data, -(distance**2) / (2 * width.unsqueeze(1) ** 2)


class HyperCubeWindow:
    """The Parzen density of a data set with a cube as its window, of a width above 0.

    It estimates a density by the share of the data within width/2, and has no score.

    Args:
        data: (N, ...).
    """

    def __init__(self, data: Tensor) -> None:
        self.data = data

    def log_prob(self, x: Tensor, width: Tensor) -> Tensor:
        """Return the log-density at x (B, ...), shape (B,); -inf if no data is near."""
        width = torch.as_tensor(width).to(x).reshape(-1)
        _check_shapes(x, self.data)
        reach = torch.cdist(rows(x), rows(self.data).to(x), p=math.inf)
        share = (reach <= width.unsqueeze(1) / 2).to(x).mean(1)
        return share.log() - x[0].numel() * width.log()

    def score(self, x: Tensor, width: Tensor) -> Tensor:
        """Raise an error, because the density is piecewise constant.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "a hyper-cube window has no score: its density is piecewise constant; use ParzenWindow"
        )


def _check_shapes(x: Tensor, points: Tensor) -> None:
    """Refuse `x` (B, ...) of another example shape than `points` (N, ...): it might broadcast."""
    if x.shape[1:] != points.shape[1:]:
        raise ValueError(f"expected x of shape (B, {points.shape[1:]}), got {tuple(x.shape)}")
