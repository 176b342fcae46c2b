"""The likelihood: how probable is given data, by a score?

The probability flow dx/dsigma = -sigma score(x, sigma) carries p_sigma from each noise level to
the next (Song et al., 2021, section 4.3; Karras et al., 2022, equation 1). A density that flows
with velocity v changes along a path by -div v, so that along the flow

    d log p_sigma(x) / dsigma = sigma div score(x, sigma),
    log p_sigma_min(x) = log p_sigma_max(x_end) - integral of sigma div score dsigma,

where the integral is from sigma_min to sigma_max.

The result is a normalised density for any score: that of the flow run backwards from the prior.
It differs from the data's in three ways. First, it is the density of the blurred data,
p_sigma_min, and `x` is taken as a sample of it. Second, the prior replaces p_sigma_max: averaged
over such samples the result is too low by the Kullback-Leibler divergence of the two, at most
E ||clean - mean||^2 / (2 sigma_max^2) nats for the prior N(mean, sigma_max^2 I), and less if the
prior has the data's standard deviation as well. At a single x a wrong mean costs at most about
||mean|| ||z|| / sigma_max, where z = x_end / sigma_max, and usually ||mean|| / sigma_max. Both
vanish as sigma_max grows. Third, the score may be wrong.

Shapes: x (B, ...) of any trailing shape; a result is (B,). The score of an example must not
depend on its batch.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchdiffeq import odeint

from ncsn.noise.checks import expect
from ncsn.noise.streams import finest_dtype
from ncsn.score import Score, jacobian_quadratic_forms, unit_vectors
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
    """Return log p_sigma_min(x) in nats, shape (B,) (Song et al., 2021, equation 39).

    The solver is that of Dormand and Prince, of order 5, with steps in sigma for the whole
    batch, so small that every example keeps the tolerances by itself. It evaluates the score
    within [sigma_min, sigma_max] alone, about 150 times at the default tolerances.

    Args:
        score: (x, sigma) -> grad log p_sigma(x), which `torch.func.vjp` can differentiate.
        x: (B, ...), float32 or float64; the solver works in its dtype.
        sigma_min: the noise level of the density.
        sigma_max: the noise level of the prior; well above the spread of the data.
        prior: mean and standard deviation of the data: the prior is
            N(mean, (sigma_max^2 + std^2) I). (0, 0) is N(0, sigma_max^2 I), as in the papers.
        probes: 0 computes the divergence exactly, by one backward pass for each of the d numbers
            of an example. Otherwise it is Hutchinson's estimate by so many directions of random
            signs, fixed for the whole flow, and unbiased.
        rtol: the relative error of a step, of x and of the log-density per dimension.
        atol: the absolute error of a step.

    Raises:
        ValueError: if not 0 < sigma_min < sigma_max.
        RuntimeError: if the score is not finite, or 10,000 evaluations do not reach sigma_max.
    """
    ends_given = {"sigma_min": sigma_min, "sigma_max": sigma_max}
    holds = 0 < sigma_min < sigma_max < math.inf
    expect("0 < sigma_min < sigma_max", holds, "log_prob", **ends_given)
    if not x.numel():
        return x.new_zeros(len(x))
    # Fixed for the whole flow: new ones per evaluation would add noise to the slope.
    z = torch.randn_like(x.expand(probes, *x.shape))
    directions = torch.ones_like(z).copysign(z) / math.sqrt(probes) if probes else unit_vectors(x)
    flow = along_the_flow(
        score, x, directions, f"raise rtol ({rtol}) and atol ({atol}), or sigma_min ({sigma_min})"
    )
    # The log-density is one more column, per dimension, so that one tolerance fits both.
    state = torch.cat([x.reshape(len(x), -1), x.new_zeros(len(x), 1)], dim=1)
    dtype = finest_dtype(x.device)
    ends = torch.tensor([sigma_min, sigma_max], dtype=dtype, device=x.device)
    options = {
        "dtype": dtype,
        "norm": worst_example,
        "first_step": min(sigma_min, sigma_max - sigma_min),
        # The last step must end at sigma_max: the solver would step beyond it otherwise.
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
    """Return (sigma, state) -> d state / d sigma, of states (B, d + 1): x and the log-density.

    Args:
        score: as for `log_prob`.
        x: the initial x, (B, ...).
        directions: (K, B, ...), along which the quadratic forms add up to the divergence.
        remedy: what to change if the score is evaluated too often.
    """
    dimension = x[0].numel()
    evaluations = 0

    def flow(sigma: Tensor, state: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        if evaluations > MAX_EVALUATIONS:
            spent = f"after {MAX_EVALUATIONS:,} evaluations of the score"
            raise RuntimeError(f"the flow is at sigma {sigma:.3g} {spent}; {remedy}")
        at = state[:, :-1].reshape(x.shape)
        psi, forms = jacobian_quadratic_forms(score, at, sigma, directions)
        gain = (sigma * forms.sum(0) / dimension).unsqueeze(1)
        change = torch.cat([-sigma * psi.reshape(len(x), -1), gain], dim=1)
        if not change.isfinite().all():
            where = f"at sigma {sigma:.3g}; check the score"
            raise RuntimeError(f"the score or its divergence is NaN or infinite {where}")
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
    """Return bits per dimension (B,) of images: -log2 p / d + 8, of dequantised data.

    A pixel of 8 bits is spread uniformly over its 1/256 of [0, 1], so that the mean is an upper
    bound on the bits of the discrete images (Theis et al., 2016, section 3.1). The score is best
    learned from data that was dequantised as well.

    Args:
        score: as for `log_prob`.
        x: images (B, ...) of values k/255, float32 or float64, not dequantised.
        sigma_min: as for `log_prob`; at most 1/256 to tell neighbouring values apart.
        sigma_max, prior, rtol, atol: as for `log_prob`.
        probes: as for `log_prob`; 1 is enough, because the noise averages out over images.

    Raises:
        ValueError: as `log_prob`, and if `x` has other values than k/255.
        RuntimeError: as `log_prob`.
    """
    others = x[((255 * x - (255 * x).round()).abs() > 1e-3) | (x < 0) | (x > 1)]
    if len(others):
        raise ValueError(f"expected 8-bit values k/255, not dequantised, got {others[0]:.6g} (x)")
    dequantised = (255 * x + torch.rand_like(x)) / 256
    nats: Tensor = -log_prob(score, dequantised, sigma_min, sigma_max, prior, probes, rtol, atol)
    return nats / (x[0].numel() * math.log(2)) + 8


def worst_example(error: Tensor) -> Tensor:
    """Return the largest error of an example in `error` (B, d + 1): root mean square over x.

    The solver's own mean over the batch would hide a single bad example.
    """
    return torch.maximum(error[:, :-1].square().mean(1).sqrt(), error[:, -1].abs()).max()
