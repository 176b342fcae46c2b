"""Guidance: how is the score steered, without training it again?

Guidance is a function from a score to a score, so that every sampler takes its result:

    classifier_free    unconditional + w (conditional - unconditional)   more of a class
    posterior          score + grad_x log p(y | x)                       given y = A x + noise
    inpaint            (known - x) / sigma^2 for the known pixels        fill in the rest

`posterior` takes A as any linear function of images, such as `Mask`, `AveragePooling`,
`GaussianBlur` or `grey`, and finds its transpose by differentiation. `inpaint` is the replacement
method of the papers, and `restore_known` its last step. To interpolate between two images,
`encode` takes them to noise, and `slerp` goes from one noise to the other.

Shapes: x (B, ...), sigma () or (B, 1, ..., 1); images are (B, channels, height, width). A guided
score evaluates the score that it steers at the same x and sigma.
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
