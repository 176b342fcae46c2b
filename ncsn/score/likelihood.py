"""The likelihood: how probable does a score make given data?

The probability flow dx/dsigma = -sigma score(x, sigma) carries p_sigma from each noise level to the next (Song et al.,
2021, section 4.3; Karras et al., 2022, equation 1). A density that flows with velocity v changes along a path by
-div v, so that

    d log p_sigma(x) / dsigma = sigma div score(x, sigma)    along the flow,
    log p_sigma_min(x) = log p_sigma_max(x_end) - integral of sigma div score from sigma_min to sigma_max.

What comes out is a density of its own, normalised for any score: that of the flow run backwards from the prior. Three
things make it differ from the data's. It is that of the blurred data, p_sigma_min, of which `x` is taken for a draw.
The prior stands for p_sigma_max: the mean over such draws comes out too low by the Kullback-Leibler divergence between
the two, at most E ||clean - mean||^2 / (2 sigma_max^2) nats for the prior N(mean, sigma_max^2 I), and less where the
prior has the data's std as well; at one x it is of the order of ||mean|| ||z|| / sigma_max for a wrong mean, where
z = x_end / sigma_max. Both vanish as sigma_max grows. And the score may be wrong.

Shapes: x (B, ...) of any trailing shape; a result is (B,). The score of an example must not depend on its batch.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchdiffeq import odeint

from ncsn.score import Score, basis, curvature
from ncsn.score.densities import Gaussian

__all__ = ["bits_per_dim", "log_prob"]

MAX_EVALUATIONS = 10_000


@torch.no_grad()
def log_prob(
    score: Score,
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    prior: tuple[float, float] = (0.0, 0.0),
    probes: int = 0,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Tensor:
    """log p_sigma_min(x) in nats, shape (B,), by the probability flow (Song et al., 2021, equation 39).

    The solver is Dormand and Prince's, of order 5, with steps in sigma for the whole batch: so small that every example
    by itself keeps the tolerances, which makes its result the same, within them, whatever its batch. It asks for the
    score within [sigma_min, sigma_max] alone, some 150 times at the default tolerances. No graph is kept.

    Args:
        score: (x, sigma) -> grad log p_sigma(x), by functions that `torch.func.vjp` can follow.
        x: (B, ...), float32 or float64; the solver works in its dtype.
        sigma_min: the noise level at which the density is asked for.
        sigma_max: the noise level at which the flow meets the prior; well above the spread of the data.
        prior: mean and std of a number of the data, by which the prior is N(mean, (sigma_max^2 + std^2) I). (0, 0) is
            the N(0, sigma_max^2 I) of the literature.
        probes: 0 takes the divergence exactly, by one backward pass for each of the d numbers of an example, all at
            once: for small d. Otherwise it is Hutchinson's estimate by so many directions of random signs, drawn once
            for the whole flow: unbiased for the integral along the exact path.
        rtol: the error of a step that is let through, relative to the state: x, and the log-density per dimension.
        atol: the same, as a number.

    Raises:
        ValueError: where `x` is not float32 or float64 or not finite, not 0 < sigma_min < sigma_max < inf, or another
            argument is out of range.
        RuntimeError: where the score is not finite, or sigma_max is not reached in 10,000 evaluations of it.
    """
    check(x, sigma_min, sigma_max, prior, probes, rtol, atol)
    if not x.numel():
        return x.new_zeros(len(x))
    # Drawn once: were they drawn anew at each evaluation, the right-hand side would be noise, and the steps tiny.
    z = torch.randn_like(x.expand(probes, *x.shape))
    directions = torch.ones_like(z).copysign(z) / math.sqrt(probes) if probes else basis(x)
    flow = along_the_flow(
        score, x, directions, f"raise rtol ({rtol}) and atol ({atol}), or sigma_min ({sigma_min})"
    )
    # The log-density goes along as one more column, per dimension, so that one tolerance suits it and x.
    state = torch.cat([x.reshape(len(x), -1), x.new_zeros(len(x), 1)], dim=1)
    # In float64, as the solver keeps its steps.
    ends = torch.tensor([sigma_min, sigma_max], dtype=torch.float64, device=x.device)
    options = {
        "norm": worst_example,
        "first_step": min(sigma_min, sigma_max - sigma_min),
        # The last step ends at sigma_max, where the solver would go beyond and interpolate.
        "step_t": ends[1:],
    }
    state = odeint(flow, state, ends, rtol=rtol, atol=atol, method="dopri5", options=options)[-1]
    x_end, gained = state[:, :-1], x[0].numel() * state[:, -1]
    mean, std = prior
    end = Gaussian(torch.full_like(x_end[0], mean), x.new_tensor(std))
    log_p: Tensor = end.log_prob(x_end, x.new_tensor(sigma_max)) - gained
    return log_p


def along_the_flow(
    score: Score, x: Tensor, directions: Tensor, remedy: str
) -> Callable[[Tensor, Tensor], Tensor]:
    """How the state (B, d + 1), which is `x` (B, ...) and its log-density per dimension, changes with sigma.

    Args:
        score: as for `log_prob`.
        x: what the state began as.
        directions: (K, B, ...), the curvatures along which add up to the divergence, or to its estimate.
        remedy: what to do where the score has been evaluated too often.

    Returns:
        (sigma, state) -> d state / d sigma, shape (B, d + 1). It raises RuntimeError where the score is not finite, or
        after 10,000 evaluations of it.
    """
    dimension = x[0].numel()
    evaluations = 0

    def flow(sigma: Tensor, state: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        if evaluations > MAX_EVALUATIONS:
            raise RuntimeError(
                f"the flow is at sigma {sigma:.3g} after {MAX_EVALUATIONS:,} evaluations of the score; {remedy}"
            )
        psi, curvatures = curvature(score, state[:, :-1].reshape(x.shape), sigma, directions)
        change = torch.cat(
            [
                -sigma * psi.reshape(len(x), -1),
                (sigma * curvatures.sum(0) / dimension).unsqueeze(1),
            ],
            dim=1,
        )
        if not change.isfinite().all():
            raise RuntimeError(
                f"the score or its divergence is NaN or infinite at sigma {sigma:.3g}; mend the score"
            )
        return change

    return flow


@torch.no_grad()
def bits_per_dim(
    score: Score,
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    prior: tuple[float, float] = (0.0, 0.0),
    probes: int = 1,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Tensor:
    """The bits that pictures take per dimension, one number an example (B,): -log2 p / d + 8 of dequantised data.

    A pixel of 8 bits is spread uniformly over its 1/256 of [0, 1], so that the mean is an upper bound on the bits of
    the discrete pictures (Theis et al., 2016, section 3.1). Over the examples, the standard error of that mean is the
    standard deviation of the result over sqrt(B). The score is best learned from data that was spread alike.

    Args:
        score: as for `log_prob`.
        x: pictures (B, ...) of 8 bits, that is of values k/255, float32 or float64; not dequantised already.
        sigma_min: as for `log_prob`; to tell neighbouring values apart, not above 1/256.
        sigma_max: as for `log_prob`.
        prior: as for `log_prob`.
        probes: as for `log_prob`; one is enough, for the noise of the estimate averages out over pictures.
        rtol: as for `log_prob`.
        atol: as for `log_prob`.

    Raises:
        ValueError: as `log_prob`, and where `x` is empty, beyond [0, 1] or not of values k/255.
        RuntimeError: as `log_prob`.
    """
    check(x, sigma_min, sigma_max, prior, probes, rtol, atol)
    if not x.numel():
        raise ValueError(f"x is of shape {tuple(x.shape)}, and must have pixels")
    if x.min() < 0 or x.max() > 1:
        raise ValueError(
            f"x goes from {x.min():.4g} to {x.max():.4g}, and must be pictures in [0, 1]"
        )
    between = x[(255 * x - (255 * x).round()).abs() > 1e-3]
    if len(between):
        raise ValueError(
            f"x has the value {between[0]:.6g}, and must be of 8-bit values k/255, not yet dequantised"
        )
    dequantised = (255 * x + torch.rand_like(x)) / 256
    nats: Tensor = -log_prob(score, dequantised, sigma_min, sigma_max, prior, probes, rtol, atol)
    return nats / (x[0].numel() * math.log(2)) + 8


def check(
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    prior: tuple[float, float],
    probes: int,
    rtol: float,
    atol: float,
) -> None:
    """Refuse what `log_prob` cannot work on.

    Raises:
        ValueError: with the argument, what it is and what it must be.
    """
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x is of {x.dtype}, and must be of torch.float32 or torch.float64")
    if not x.ndim:
        raise ValueError("x is a single number, and must be a batch (B, ...)")
    if not x.isfinite().all():
        raise ValueError(f"x has {int((~x.isfinite()).sum())} numbers that are NaN or infinite")
    for name, value in (
        ("sigma_min", sigma_min),
        ("sigma_max", sigma_max),
        ("rtol", rtol),
        ("atol", atol),
    ):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}, and must be a positive number")
    if sigma_min >= sigma_max:
        raise ValueError(
            f"sigma_min ({sigma_min}) is not below sigma_max ({sigma_max}); lower it, or swap them"
        )
    if probes != int(probes) or probes < 0:
        raise ValueError(
            f"probes is {probes}, and must be a whole number, at least 0 (the exact trace)"
        )
    mean, std = prior
    if not math.isfinite(mean) or not 0 <= std < math.inf:
        raise ValueError(
            f"prior is {prior}, and must be a finite mean and a std that is finite and at least 0"
        )


def worst_example(error: Tensor) -> Tensor:
    """The largest error of an example, where `error` (B, d + 1) is relative to the tolerances: x's by root mean square.

    A mean over the batch, which is the solver's own choice, would let an example hide among the others.
    """
    return torch.maximum(error[:, :-1].square().mean(1).sqrt(), error[:, -1].abs()).max()
