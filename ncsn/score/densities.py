"""Densities whose score is known: the truth that a learned score is compared with.

Blurred by Gaussian noise of width sigma, a Gaussian N(mean, std^2) becomes N(mean, std^2 + sigma^2), a mixture of
Gaussians a mixture of such, and a set of points the Parzen density (1/N) sum_i N(x; x_i, sigma^2 I). So each is known
at every noise level, with its score

    score(x, sigma) = sum_i w_i(x) (mean_i - x) / (std_i^2 + sigma^2),    w(x) = softmax of the log-likelihoods.

Shapes: x (B, ...), sigma () or (B, 1, ..., 1) and at least 0; `log_prob` is (B,), `score` has the shape of x, and
`sample(n, sigma)` is (n, ...). What is given a point has its dtype and device, a sample those of what the density was
made from.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from ncsn.noise import checked, positive

__all__ = ["Density", "Gaussian", "GaussianMixture", "HyperCubeWindow", "ParzenWindow"]


class Density(ABC):
    """A density that is known at every noise level."""

    @abstractmethod
    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log p_sigma(x), shape (B,)."""

    @abstractmethod
    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """grad_x log p_sigma(x), of the shape of `x`."""

    @abstractmethod
    def clean(self, n: int) -> Tensor:
        """`n` draws (n, ...) without noise."""

    def sample(self, n: int, sigma: float = 0.0) -> Tensor:
        """`n` draws (n, ...) from p_sigma.

        Raises:
            ValueError: where `sigma` is negative or not finite.
        """
        if not 0 <= sigma < math.inf:
            raise ValueError(f"sigma is {sigma}, and must be at least 0 and finite")
        x = self.clean(n)
        return x + sigma * torch.randn_like(x)


class GaussianMixture(Density):
    """A mixture of K Gaussians, each with independent dimensions.

    Args:
        weights: (K,), positive; scaled to add up to 1.
        means: (K, ...), of the shape of an example.
        stds: what broadcasts to (K, ...): () for one width, (K, 1, ...) for one a component.

    Raises:
        ValueError: where the numbers of weights and means differ, a weight is not positive, or a width is negative or
            infinite.
    """

    def __init__(self, weights: Tensor, means: Tensor, stds: Tensor) -> None:
        name = type(self).__name__
        if weights.shape != means.shape[:1]:
            raise ValueError(
                f"{name}: weights is {tuple(weights.shape)}, and must be {tuple(means.shape[:1])} as means is"
            )
        numbers(name, "means", means)
        if not (weights > 0).all():
            raise ValueError(f"{name}: weights is {weights.tolist()}, and must be positive")
        if not ((stds >= 0) & stds.isfinite()).all():
            raise ValueError(
                f"{name}: stds is {stds.tolist()}, and must be finite and not negative"
            )
        self.log_weights = (weights / weights.sum()).log()
        self.means = means
        self.stds = stds.expand_as(means)

    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self._log_joint(*self._pull(x, sigma)).logsumexp(dim=1)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        difference, variance = self._pull(x, sigma)
        responsibility = self._log_joint(difference, variance).softmax(dim=1)
        return (
            responsibility.reshape(len(x), -1, *[1] * (x.ndim - 1)) * difference / variance
        ).sum(1)

    def clean(self, n: int) -> Tensor:
        component = torch.multinomial(self.log_weights.exp(), n, replacement=True)
        return self.means[component] + self.stds[component] * torch.randn_like(
            self.means[component]
        )

    def _pull(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """mean_k - x as (B, K, ...), and the variances std_k^2 + sigma^2, which broadcast to it."""
        sigma = checked(sigma, x)
        alike(x, self.means)
        sigma = sigma.unsqueeze(1) if sigma.ndim else sigma
        variance = self.stds.to(x) ** 2 + sigma**2
        if not (variance > 0).all():
            raise ValueError(
                "sigma is 0 where a std is 0, too: there is no density without a width"
            )
        return self.means.to(x) - x.unsqueeze(1), variance

    def _log_joint(self, difference: Tensor, variance: Tensor) -> Tensor:
        """log w_k N(x; mean_k, std_k^2 + sigma^2), shape (B, K)."""
        log_normal = -(difference**2 / variance + (2 * math.pi * variance).log()) / 2
        return self.log_weights.to(difference) + log_normal.flatten(2).sum(2)


class Gaussian(GaussianMixture):
    """One Gaussian with independent dimensions: `mean` (...) of the shape of an example, `std` broadcasting to it."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__(torch.ones(1).to(mean), mean.unsqueeze(0), std)


class ParzenWindow(Density):
    """The Parzen density of a data set with a Gaussian window, p_sigma(x) = 1/N sum_i N(x; x_i, sigma^2 I).

    Its score is the one that a model without limits learns from the data (Vincent, 2011, section 4): it draws the data
    set back. The data is gone through in chunks, so that N may be that of a whole data set of pictures.

    Args:
        data: (N, ...).
        chunk: how many examples of the data are compared with a batch at once.

    Raises:
        ValueError: where `data` is empty, not floating-point or not finite, or `chunk` is not positive; when called,
            where sigma is not positive.
    """

    def __init__(self, data: Tensor, chunk: int = 4096) -> None:
        numbers("ParzenWindow", "data", data)
        if chunk < 1:
            raise ValueError(f"ParzenWindow: chunk is {chunk}, and must be at least 1")
        self.data = data
        self.chunk = chunk

    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        sigma = positive(sigma, x)
        width = sigma.reshape(-1)
        logs = [exponents.logsumexp(1) for _, exponents in self._exponents(x, width)]
        dimension = x[0].numel()
        return (
            torch.stack(logs).logsumexp(0)
            - math.log(len(self.data))
            - dimension * (width.log() + math.log(2 * math.pi) / 2)
        )

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        sigma = positive(sigma, x)
        # A softmax over all of the data, gathered chunk by chunk: the sums so far are kept relative to the largest
        # exponent so far.
        largest = torch.full((len(x),), -math.inf).to(x)
        total = torch.zeros_like(largest)
        pulled = torch.zeros_like(x).flatten(1)
        for data, exponents in self._exponents(x, sigma.reshape(-1)):
            above = torch.maximum(largest, exponents.max(1).values)
            shrink, weights = (largest - above).exp(), (exponents - above.unsqueeze(1)).exp()
            total = shrink * total + weights.sum(1)
            pulled = shrink.unsqueeze(1) * pulled + weights @ data
            largest = above
        return ((pulled / total.unsqueeze(1)).view_as(x) - x) / sigma**2

    def clean(self, n: int) -> Tensor:
        return self.data[torch.randint(len(self.data), (n,), device=self.data.device)]

    def _exponents(self, x: Tensor, width: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Each chunk of the data, flat, and -||x - x_i||^2 / (2 sigma^2) for it, (B, chunk)."""
        alike(x, self.data)
        for part in torch.split(self.data.flatten(1), self.chunk):
            data = part.to(x)
            # By products of matrices it would be faster, and in float32 wrong where sigma is small.
            distance = torch.cdist(x.flatten(1), data, compute_mode="donot_use_mm_for_euclid_dist")
            yield data, -(distance**2) / (2 * width.unsqueeze(1) ** 2)


class HyperCubeWindow:
    """The Parzen density of a data set with a cube for its window: the share of the data within width/2 of x.

    It estimates a density and gives no score: its gradient is zero wherever there is one.

    Args:
        data: (N, ...).

    Raises:
        ValueError: where `data` is empty, not floating-point or not finite; when called, where the width is not
            positive.
    """

    def __init__(self, data: Tensor) -> None:
        numbers("HyperCubeWindow", "data", data)
        self.data = data

    def log_prob(self, x: Tensor, width: Tensor) -> Tensor:
        """log of the estimated density at x (B, ...), shape (B,); -inf where no data is near."""
        width = positive(width, x).reshape(-1)
        alike(x, self.data)
        reach = torch.cdist(x.flatten(1), self.data.flatten(1).to(x), p=math.inf)
        share = (reach <= width.unsqueeze(1) / 2).to(x).mean(1)
        return share.log() - x[0].numel() * width.log()

    def score(self, x: Tensor, width: Tensor) -> Tensor:
        """There is none.

        Raises:
            NotImplementedError: always, with the reason.
        """
        raise NotImplementedError(
            "a hyper-cube window has no score: its density is constant in pieces; use ParzenWindow"
        )


def numbers(owner: str, name: str, points: Tensor) -> None:
    """Refuse points (N, ...) that no density can be made of.

    Raises:
        ValueError: where they are empty, not floating-point, or not finite.
    """
    if not len(points):
        raise ValueError(f"{owner}: {name} is empty")
    if not points.is_floating_point():
        raise ValueError(f"{owner}: {name} is of {points.dtype}, and must be floating-point")
    if (
        not torch.stack(torch.aminmax(points)).isfinite().all()
    ):  # which needs no copy of a big data set
        raise ValueError(f"{owner}: {name} has numbers that are NaN or infinite")


def alike(x: Tensor, points: Tensor) -> None:
    """Refuse examples `x` (B, ...) that are not of the shape of the points (N, ...) that a density is made of.

    Raises:
        ValueError: with both shapes.
    """
    if x.shape[1:] != points.shape[1:]:
        raise ValueError(
            f"x is of shape {tuple(x.shape)}, but this density is of examples {tuple(points.shape[1:])}"
        )
