"""Noise levels: which corruptions of the data does the score have to know?

A clean example `x` is seen at a noise level `sigma` as

    x + sigma * z,    z ~ N(0, I),

whose density p_sigma is the data's, blurred by a Gaussian of that width. A schedule says which
levels there are: `sigmas()` are those that a sampler goes through, from high to low, and
`sample(x)` returns the level of each training example. `ncsn.noise.techniques` chooses the levels
for a data set, and `ncsn.noise.streams` generates the noise of samples.

`sigma` has shape `()` or `(B, 1, ..., 1)` in all of `ncsn`, so that formulas broadcast as they
are written. It is the one coordinate: there is no time and no index. Images lie in [0, 1], and
sigma is measured in that unit. The first dimension of data is the batch; nothing else is assumed.
"""

from ncsn.noise.schedules import (
    DiscreteSchedule,
    GeometricSchedule,
    KarrasSchedule,
    LogNormalSchedule,
    NoiseSchedule,
    NoNoise,
)
from ncsn.noise.techniques import (
    Distance,
    distance_bounds,
    exact_steps,
    langevin_step_size,
    max_pairwise_distance,
    num_levels,
    variance_ratio,
)

__all__ = [
    "DiscreteSchedule",
    "Distance",
    "GeometricSchedule",
    "KarrasSchedule",
    "LogNormalSchedule",
    "NoNoise",
    "NoiseSchedule",
    "distance_bounds",
    "exact_steps",
    "langevin_step_size",
    "max_pairwise_distance",
    "num_levels",
    "variance_ratio",
]
