"""Noise levels: which corruptions of the data does the score have to know?

A clean example `x` is seen at a noise level `sigma` as

    x + sigma * z,    z ~ N(0, I),

whose density p_sigma is the data's, blurred by a Gaussian of that width. A schedule says which levels there are:
`sigmas()` is the ladder that a sampler walks down, large to small, and `sample(x)` draws the level that each
training example gets. `ncsn.noise.techniques` chooses the ladder for a data set.

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

__all__ = [
    "MAX_LEVELS",
    "GeometricSchedule",
    "KarrasSchedule",
    "Ladder",
    "LogNormalSchedule",
    "NoNoise",
    "NoiseSchedule",
    "checked",
    "per_example",
    "positive",
]
