"""Noise levels: which corruptions of the data does the score have to know?

A clean example `x` is seen at a noise level `sigma` as

    x + sigma * z,    z ~ N(0, I),

whose density p_sigma is the data's, blurred by a Gaussian of that width. A schedule says which levels there are:
`sigmas()` is the ladder that a sampler walks down, large to small, and `sample(x)` draws the level that each
training example gets. The functions of `ncsn.noise.techniques` choose the ladder for a data set.

`sigma` has shape `()` or `(B, 1, ..., 1)` in all of `ncsn`, so that formulas broadcast as they are written. It is
the one coordinate: there is no time and no index. Images live in [0, 1], and sigma is measured in that unit.
Nothing is assumed about the data but that its first dimension is the batch.
"""

from ncsn.noise.schedules import (
    MAX_LEVELS,
    GeometricSchedule,
    KarrasSchedule,
    Ladder,
    LogNormalSchedule,
    NoiseSchedule,
    NoNoise,
    checked,
    per_example,
    positive,
)
from ncsn.noise.techniques import (
    Distance,
    distance_bounds,
    langevin_step_size,
    max_pairwise_distance,
    num_levels,
    variance_ratio,
)

__all__ = [
    "MAX_LEVELS",
    "Distance",
    "GeometricSchedule",
    "KarrasSchedule",
    "Ladder",
    "LogNormalSchedule",
    "NoNoise",
    "NoiseSchedule",
    "checked",
    "distance_bounds",
    "langevin_step_size",
    "max_pairwise_distance",
    "num_levels",
    "per_example",
    "positive",
    "variance_ratio",
]
