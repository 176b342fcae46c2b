"""Guidance: how is the score steered, without training it again?

Guidance is a function from a score to a score, so what it gives goes wherever a score goes, into every sampler:

    classifier_free    unconditional + w (conditional - unconditional)          more of a class
    posterior          score + grad_x log p(y | x)                              what a measurement y = A x + noise saw
    inpaint            (known - x) / sigma^2 where x is known                   fill in the rest

`posterior` is given A as any linear function of pictures, such as `Mask`, `AveragePooling`, `GaussianBlur` or `grey`;
its transpose is found by differentiation. `inpaint` is the replacement of the papers, and `restore_known` its last
step. Between two pictures there are others: `encode` carries them up to noise, and `slerp` goes from one noise to the
other.

Shapes: x (B, ...), sigma () or (B, 1, ..., 1); pictures are (B, channels, height, width). A guided score asks the
score that it steers for the same x and sigma, so nothing is assumed of it but its type.
"""

from ncsn.score.guidance.classifier import classifier_free
from ncsn.score.guidance.inpainting import inpaint, restore_known
from ncsn.score.guidance.interpolation import encode, slerp
from ncsn.score.guidance.measurements import adjoint, posterior
from ncsn.score.guidance.operators import AveragePooling, GaussianBlur, LinearOperator, Mask, grey

__all__ = [
    "AveragePooling",
    "GaussianBlur",
    "LinearOperator",
    "Mask",
    "adjoint",
    "classifier_free",
    "encode",
    "grey",
    "inpaint",
    "posterior",
    "restore_known",
    "slerp",
]
