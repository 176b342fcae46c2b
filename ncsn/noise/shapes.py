"""One number for each example of a batch."""

import math

import torch
from torch import Tensor

__all__ = ["norm_per_example", "per_example", "rows", "sum_per_example"]


def per_example(x: Tensor) -> tuple[int, ...]:
    """Return (B, 1, ..., 1), the shape of one number for each example of `x` (B, ...)."""
    return (len(x), *[1] * (x.ndim - 1))


def rows(x: Tensor) -> Tensor:
    """Return the numbers of each example of `x` (B, ...) as a row, (B, D); B may be 0."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


def sum_per_example(x: Tensor) -> Tensor:
    """Return the sum over each example of `x` (B, ...), shape (B,)."""
    return rows(x).sum(1)


def norm_per_example(x: Tensor) -> Tensor:
    """Return the Euclidean norm of each example of `x` (B, ...), shape (B, 1, ..., 1)."""
    length: Tensor = torch.linalg.vector_norm(rows(x), dim=1)
    return length.view(per_example(x))
