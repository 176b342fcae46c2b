"""The score: what does the network mean?

The score of a noise level is the gradient of its log-density,

    score(x, sigma) = grad_x log p_sigma(x).

It is a function, and any function of that kind will do: objectives and samplers ask for nothing
else. A score is learned (`denoisers`, `energy`), known (`densities`, `toys`), steered
(`guidance`) or borrowed (`diffusers`), and gives a `likelihood`.

A network learns it as a denoiser D(x, sigma) = E[clean | x], and Tweedie's formula reads the
score off it,

    score(x, sigma) = (D(x, sigma) - x) / sigma^2.

D is a network F between four scalings that keep its input and output of order one at every
noise level,

    D(x, sigma) = c_skip x + c_out F(c_in x, c_noise).

Shapes: x (B, ...), sigma () or (B, 1, ..., 1), label (B,) integers or None. Only F runs under
autocast, or in the dtype of its weights: the scalings and Tweedie's difference keep the dtype
of `x`.
"""

from ncsn.score.denoisers import Denoiser, EDMDenoiser, NCSNDenoiser
from ncsn.score.energy import EnergyScore
from ncsn.score.flow import euler_step, heun_step
from ncsn.score.jacobian import jacobian_quadratic_forms, unit_vectors
from ncsn.score.score import Score, ScoreModel, log_prob_of, tweedie

__all__ = [
    "Denoiser",
    "EDMDenoiser",
    "EnergyScore",
    "NCSNDenoiser",
    "Score",
    "ScoreModel",
    "euler_step",
    "heun_step",
    "jacobian_quadratic_forms",
    "log_prob_of",
    "tweedie",
    "unit_vectors",
]
