"""The score given a measurement y = A x + noise.

By Bayes' rule the score of p_sigma(x | y) is score(x, sigma) + grad_x log p_sigma(y | x). To second
order, the clean image given the noisy x is a Gaussian whose moments the score knows (Efron, 2011),

    D = x + sigma^2 score(x, sigma),    V = sigma^2 dD/dx.

So p_sigma(y | x) is about N(A D, noise^2 I + A V A^T), and with V constant in x its gradient is

    J^T A^T (noise^2 I + A V A^T)^-1 (y - A D),    J = dD/dx.

It is exact for Gaussian data. For other data it follows the measurement, and the weights of
distant modes are rough. J^T A^T v takes two vector-Jacobian products, so that no matrix is formed,
and the system is solved in the Krylov space of a few of them, as by conjugate gradients.

The J of a network is neither symmetric nor positive, and an exact solution of its system may be
arbitrarily large. So A V A^T gets, in the Krylov space, what it has for the J of a log-concave
density, symmetric and between 0 and I: only its symmetric part counts, and along no direction v is
v . A V A^T v below |V A^T v|^2 / sigma^2.
"""

import math
from numbers import Integral

import torch
from torch import Tensor

from ncsn.noise.checks import expect
from ncsn.score import Score
from ncsn.score.guidance.operators import LinearOperator
from ncsn.score.precision import without_autocast

__all__ = ["adjoint", "posterior"]


def posterior(
    score: Score, operator: LinearOperator, measurement: Tensor, noise: float, iterations: int = 3
) -> Score:
    """Return the score given that `operator(x) + noise * z` was measured.

    The method is that of Boys et al. (2023) and Rozet et al. (2024, section 4). An evaluation
    takes one of the score and `iterations` of its vector-Jacobian products.

    Args:
        score: the score of the data, differentiable in x.
        operator: A, linear.
        measurement: y, which broadcasts to A x; both may be complex.
        noise: the standard deviation of the noise of the measurement, and of both parts of complex
            numbers.
        iterations: the dimension of the Krylov space. As many as there are measured numbers solve
            the system exactly; far fewer do, because the next noise level corrects the rest.

    Raises:
        ValueError: if `noise` is not positive, `iterations` is not an integer from 1, or the
            measurement, on a CPU, is not finite.
    """
    expect("noise > 0", 0 < noise < math.inf, "posterior", noise=noise)
    holds = isinstance(iterations, Integral) and iterations >= 1
    expect("an integer iterations >= 1", holds, "posterior", iterations=iterations)
    # Reading a value makes a GPU wait.
    if measurement.device.type == "cpu" and not measurement.isfinite().all():
        raise ValueError(
            "expected a finite measurement, got NaN or infinity; leave out what is missing with Mask "
            "(posterior)"
        )

    def measured(x: Tensor) -> Tensor:
        return real(operator(x))

    def given_measurement(x: Tensor, sigma: Tensor) -> Tensor:
        sigma = torch.as_tensor(sigma).to(x)
        prior, pull_back = torch.func.vjp(lambda x: score(x, sigma), x)[:2]
        with without_autocast(x.device):  # only the network runs in 16 bits
            predicted, transpose = torch.func.vjp(measured, x + sigma**2 * prior)[:2]
            residual = real(measurement).to(x) - predicted

            def gradient(v: Tensor) -> Tensor:
                """Return J^T A^T v."""
                u = transpose(v)[0]
                product: Tensor = u + sigma**2 * pull_back(u)[0]
                return product

            # Arnoldi's method: (B, M, k) and (B, D, k), a column for each dimension of the space.
            basis = unit(column(residual))
            gradients, images = [], []
            for _ in range(min(iterations, basis.shape[1])):
                gradients.append(gradient(basis[..., -1].reshape(residual.shape)))
                image = column(measured(sigma**2 * gradients[-1]))
                images.append(image)
                new = image - basis @ (basis.mT @ image)
                new = new - basis @ (basis.mT @ new)  # once leaves rounding errors
                basis = torch.cat([basis, unit(new, image)], dim=2)
            basis, along = basis[..., :-1], torch.stack(gradients, dim=-1).flatten(1, -2)
            projected = basis.mT @ torch.cat(images, dim=2)
            # A dimension that `unit` left out is 0. Numbers of its own on the diagonal, which have
            # no effect, keep the eigenvectors differentiable.
            absent = (basis == 0).all(1) * torch.arange(1, basis.shape[2] + 1, device=x.device)
            symmetric = (projected + projected.mT) / 2 - torch.diag_embed(absent.to(x))
            variance, axes = torch.linalg.eigh(symmetric)
            along = along @ axes
            least = (sigma**2).reshape(-1, 1) * along.square().sum(1)
            weight = (basis @ axes).mT @ column(residual)
            weight = weight / (torch.maximum(variance, least) + noise**2).unsqueeze(2)
            guided: Tensor = prior + (along @ weight).view_as(prior)
            return guided

    return given_measurement


def adjoint(operator: LinearOperator, y: Tensor, x: Tensor) -> Tensor:
    """Return A^T y, of the shape of `x`, for a linear operator A from `x` to the shape of `y`."""
    transpose = torch.func.vjp(operator, x)[1]
    pulled: Tensor = transpose(y)[0]
    return pulled


def real(y: Tensor) -> Tensor:
    """Return `y`, with the parts of complex numbers in a further dimension."""
    return torch.view_as_real(y) if y.is_complex() else y


def column(y: Tensor) -> Tensor:
    """Return all numbers of each example of `y` (B, ...) as a column, (B, M, 1)."""
    return y.reshape(len(y), math.prod(y.shape[1:]), 1)


def unit(v: Tensor, of: Tensor | None = None) -> Tensor:
    """Return `v` (B, M, 1) at length 1, or 0 if it is only the rounding error of `of`."""
    length = v.norm(dim=1, keepdim=True)
    floor = 0 if of is None else 100 * torch.finfo(v.dtype).eps * of.norm(dim=1, keepdim=True)
    keep = length > floor
    return torch.where(keep, v, 0) / torch.where(keep, length, 1)
