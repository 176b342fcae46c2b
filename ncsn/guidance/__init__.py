"""Guidance: how is the score steered, without training it again?

Guidance is a function from a score to a score, so what it gives goes wherever a score goes, into every sampler:

    posterior          score + grad_x log p(y | x)                              what a measurement y = A x + noise saw

`posterior` is given A as any linear function of pictures, such as `Mask`, `AveragePooling`, `GaussianBlur` or `grey`;
its transpose is found by differentiation.

Shapes: x (B, ...), sigma () or (B, 1, ..., 1); pictures are (B, channels, height, width). A guided score asks the
score that it steers for the same x and sigma, so nothing is assumed of it but its type.
"""

from ncsn.guidance.measurements import adjoint, posterior
from ncsn.guidance.operators import AveragePooling, GaussianBlur, LinearOperator, Mask, grey

__all__ = [
    "AveragePooling",
    "GaussianBlur",
    "LinearOperator",
    "Mask",
    "adjoint",
    "grey",
    "posterior",
]
