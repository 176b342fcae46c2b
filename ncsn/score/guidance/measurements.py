"""The score given a measurement y = A x + noise: what the picture was, to all that is known of it.

By Bayes' rule the score of p_sigma(x | y) is score(x, sigma) + grad_x log p_sigma(y | x). What the noisy x says of the
clean picture is, to second order, a Gaussian whose moments the score knows (Efron, 2011): Tweedie's mean and variance

    D = x + sigma^2 score(x, sigma),    V = sigma^2 dD/dx.

So p_sigma(y | x) is about N(A D, noise^2 I + A V A^T), and with V taken as constant in x its gradient is

    J^T A^T (noise^2 I + A V A^T)^-1 (y - A D),    J = dD/dx.

It is exact where the data is Gaussian; elsewhere it follows the measurement, and weighs far modes of the data roughly.
Nothing is larger than a picture: J^T A^T v is two vector-Jacobian products, V is symmetric, and the system is solved by
conjugate gradients.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ncsn.score import Score
from ncsn.score.guidance.operators import LinearOperator, expanded

__all__ = ["adjoint", "conjugate_gradients", "posterior"]


def posterior(
    score: Score, operator: LinearOperator, measurement: Tensor, noise: float, iterations: int = 3
) -> Score:
    """The score given that `operator(x) + noise * z` was measured (Boys et al., 2023; Rozet et al., 2024, section 4).

    A call costs one score and `iterations` + 1 of its vector-Jacobian products.

    Args:
        score: the score of the data, differentiable in x.
        operator: A, linear.
        measurement: y, of the shape of A x or what broadcasts to it.
        noise: the standard deviation of the measurement's noise.
        iterations: steps of conjugate gradients. As many as numbers were measured solve the system. Far fewer do,
            since what one level leaves the next one mends; a slight blur with little noise gains from more, about 10.

    Raises:
        ValueError: where `noise` is not positive or `iterations` is not a whole number from 1; when called, where
            `measurement` does not broadcast to A x.
    """
    if not 0 < noise < math.inf:
        raise ValueError(
            f"posterior: noise is {noise}, and must be a positive number; pixels are exact to about 0.002"
        )
    if iterations != int(iterations) or iterations < 1:
        raise ValueError(
            f"posterior: iterations is {iterations}, and must be a whole number from 1"
        )

    def given_measurement(x: Tensor, sigma: Tensor) -> Tensor:
        sigma = torch.as_tensor(sigma).to(x)
        prior, pull_back = torch.func.vjp(lambda x: score(x, sigma), x)[:2]
        predicted, transpose = torch.func.vjp(operator, x + sigma**2 * prior)[:2]
        residual = expanded("measurement", measurement.to(x), predicted) - predicted

        def gradient(v: Tensor) -> Tensor:
            """J^T A^T v."""
            u = transpose(v)[0]
            product: Tensor = u + sigma**2 * pull_back(u)[0]
            return product

        def covariance(v: Tensor) -> Tensor:
            """(noise^2 I + A V A^T) v."""
            return noise**2 * v + operator(sigma**2 * gradient(v))

        guided: Tensor = prior + gradient(conjugate_gradients(covariance, residual, iterations))
        return guided

    return given_measurement


def adjoint(operator: LinearOperator, y: Tensor, x: Tensor) -> Tensor:
    """A^T y, of the shape of `x`, for a linear `operator` A that takes `x` to the shape of `y`."""
    transpose = torch.func.vjp(operator, x)[1]
    pulled: Tensor = transpose(y)[0]
    return pulled


def conjugate_gradients(matrix: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """What solves matrix(v) = b for each example of `b` (B, ...) by itself (Hestenes & Stiefel, 1952).

    An example is left where it is once its residual vanishes, or where the matrix turns out not to be positive
    definite, as that of a network's Jacobian may.
    """
    solution, residual, direction = torch.zeros_like(b), b, b
    square = inner(b, b)
    going = torch.ones_like(square, dtype=torch.bool)
    for _ in range(iterations):
        image = matrix(direction)
        curvature = inner(direction, image)
        going = going & (curvature > 0)
        step = torch.where(going, square / torch.where(going, curvature, 1), 0)
        solution = solution + step * direction
        residual = residual - step * image
        previous, square = square, inner(residual, residual)
        direction = residual + square / torch.where(previous > 0, previous, 1) * direction
    return solution


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each example, shape (B, 1, ..., 1)."""
    return (a * b).reshape(len(a), -1).sum(1).view(-1, *[1] * (a.ndim - 1))
