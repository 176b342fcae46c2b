"""The score given a measurement y = A x + noise.

By Bayes' rule the score of p_sigma(x | y) is score(x, sigma) + grad_x log p_sigma(y | x). To second
order, the clean image given the noisy x is a Gaussian whose moments the score knows (Efron, 2011),

    D = x + sigma^2 score(x, sigma),    V = sigma^2 dD/dx.

So p_sigma(y | x) is about N(A D, noise^2 I + A V A^T), and with V constant in x its gradient is

    J^T A^T (noise^2 I + A V A^T)^-1 (y - A D),    J = dD/dx.

It is exact for Gaussian data. For other data it follows the measurement, and the weights of
distant modes are rough. J^T A^T v takes two vector-Jacobian products, V is symmetric, and
conjugate gradients solve the system, so that no matrix is formed.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ncsn.noise.checks import expect
from ncsn.noise.shapes import per_example, sum_per_example
from ncsn.score import Score
from ncsn.score.guidance.operators import LinearOperator

__all__ = ["adjoint", "conjugate_gradients", "posterior"]


def posterior(
    score: Score, operator: LinearOperator, measurement: Tensor, noise: float, iterations: int = 3
) -> Score:
    """Return the score given that `operator(x) + noise * z` was measured.

    The method is that of Boys et al. (2023) and Rozet et al. (2024, section 4). An evaluation
    takes one of the score and `iterations` + 1 of its vector-Jacobian products.

    Args:
        score: the score of the data, differentiable in x.
        operator: A, linear.
        measurement: y, which broadcasts to A x.
        noise: the standard deviation of the noise of the measurement.
        iterations: steps of conjugate gradients. As many as there are measured numbers solve
            the system exactly; far fewer do, because the next noise level corrects the rest. A
            slight blur with little noise needs about 10.

    Raises:
        ValueError: if `noise` is not positive, or `iterations` is not an integer from 1.
    """
    expect("noise > 0", 0 < noise < math.inf, "posterior", noise=noise)
    holds = iterations == int(iterations) and iterations >= 1
    expect("an integer iterations >= 1", holds, "posterior", iterations=iterations)

    def given_measurement(x: Tensor, sigma: Tensor) -> Tensor:
        sigma = torch.as_tensor(sigma).to(x)
        prior, pull_back = torch.func.vjp(lambda x: score(x, sigma), x)[:2]
        predicted, transpose = torch.func.vjp(operator, x + sigma**2 * prior)[:2]
        residual = measurement.to(x) - predicted

        def gradient(v: Tensor) -> Tensor:
            """Return J^T A^T v."""
            u = transpose(v)[0]
            product: Tensor = u + sigma**2 * pull_back(u)[0]
            return product

        def covariance(v: Tensor) -> Tensor:
            """Return (noise^2 I + A V A^T) v."""
            return noise**2 * v + operator(sigma**2 * gradient(v))

        guided: Tensor = prior + gradient(conjugate_gradients(covariance, residual, iterations))
        return guided

    return given_measurement


def adjoint(operator: LinearOperator, y: Tensor, x: Tensor) -> Tensor:
    """Return A^T y, of the shape of `x`, for a linear operator A from `x` to the shape of `y`."""
    transpose = torch.func.vjp(operator, x)[1]
    pulled: Tensor = transpose(y)[0]
    return pulled


def conjugate_gradients(matrix: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """Solve matrix(v) = b for each example of `b` (B, ...) (Hestenes & Stiefel, 1952).

    An example stops once its residual vanishes, or if the matrix is not positive definite, as
    that of a network may not be.
    """
    solution, residual, direction = torch.zeros_like(b), b, b
    square = inner(b, b)
    going = torch.ones_like(square, dtype=torch.bool)
    for _ in range(iterations):
        image = matrix(direction)
        slope = inner(direction, image)
        going = going & (slope > 0)
        step = torch.where(going, square / torch.where(going, slope, 1), 0)
        solution = solution + step * direction
        residual = residual - step * image
        previous, square = square, inner(residual, residual)
        direction = residual + square / torch.where(previous > 0, previous, 1) * direction
    return solution


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each example, shape (B, 1, ..., 1)."""
    return sum_per_example(a * b).view(per_example(a))
