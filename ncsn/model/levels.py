"""Noise levels as they are given to a model."""

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ncsn.noise import GeometricSchedule, KarrasSchedule
from ncsn.samplers import Sampler

__all__ = ["as_levels", "checked_level", "levels_for"]


def as_levels(sigmas: Tensor | Sequence[float]) -> Tensor:
    """Return noise levels (L,), from high to low, as a tensor.

    Raises:
        TypeError: if they are no numbers.
        ValueError: if they are not of this shape and order.
    """
    try:
        levels = torch.as_tensor(sigmas)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"sigmas: expected noise levels (L,), got {sigmas!r}") from error
    if levels.ndim != 1 or not len(levels) or (levels[1:] > levels[:-1]).any():
        raise ValueError(f"sigmas: expected noise levels (L,) from high to low, got {sigmas}")
    return levels if levels.is_floating_point() else levels.float()


def levels_for(
    sampler: Sampler, own: Tensor, count: int | None, high: float | None, low: float | None
) -> Tensor:
    """Return `count` levels from `high` to `low`, with the spacing that suits a sampler.

    What is None is as in `own` (L,), the levels of the model.

    Raises:
        ValueError: if `KarrasSchedule` refuses the numbers, or the model has one level.
    """
    if count is high is low is None:
        return own
    least, most = own.min().item(), own.max().item()
    if least == most:
        asked = "--sigma-max, --sigma-min" if count is None else f"--steps {count}"
        raise ValueError(f"{asked}: the model has the single noise level {most:g}; give no others")
    high = most if high is None else high
    low = least if low is None else low
    if high > 1.001 * most or low < 0.999 * least:
        warnings.warn(
            f"sampling from sigma {high:g} to {low:g}, but the model's own noise levels are "
            f"{most:g} to {least:g}: outside them its score is a guess",
            stacklevel=3,
        )
    count = len(own) if count is None else count
    if sampler.rho == math.inf:
        return GeometricSchedule(high, low, count).sigmas()
    return KarrasSchedule(high, low, count, sampler.rho).sigmas()


def checked_level(
    sigma: float | Tensor, x: Tensor, shape: tuple[int, ...], least: float | Tensor
) -> Tensor:
    """Return `sigma` as a tensor like `x` (B, *shape); it may be `least`, which may be 0.

    Raises:
        TypeError: if `x` is no tensor.
        ValueError: if `x` or `sigma` is of another shape, or out of range.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"expected x, a tensor (B, ...), got {type(x).__name__}")
    if x.ndim != len(shape) + 1 or x.shape[1:2] != shape[:1]:
        expected = ", ".join(map(str, shape))
        raise ValueError(f"expected x of shape (B, {expected}), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"expected x of floats, got {x.dtype}; images of 8 bits are x / 255")
    level = torch.as_tensor(sigma)
    # Reading a value synchronises a GPU. NaN fails, too.
    unusable = level.device.type == "cpu" and not ((level > 0) & (level < math.inf)).all()
    if unusable and not (level == least).all():
        raise ValueError(f"expected 0 < sigma < inf, got {level.tolist()}")
    level = level.to(x)
    each = (len(x), *[1] * len(shape))
    if level.ndim and level.shape != each:
        raise ValueError(f"expected sigma () or {each}, got shape {tuple(level.shape)}")
    return level
