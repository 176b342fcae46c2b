"""Langevin dynamics on a ladder, and what its settings may be."""

import math

import numpy as np
import pytest
import torch
from ncsn.noise import NoNoise
from ncsn.samplers import AnnealedLangevin, ConsistentAnnealed, Langevin, MetropolisAdjustedLangevin, PredictorCorrector

from conftest import gaussian_score, named


def log_normal(x, sigma):
    """log N(x; 0, 0.8^2 + sigma^2) up to a constant."""
    return -x.square().flatten(1).sum(1) / (2 * (0.8**2 + sigma**2))


class Counted:
    """The exact score of N(0, 0.8^2), which notes the levels that it is asked at."""

    def __init__(self):
        self.levels = []

    def __call__(self, x, sigma):
        self.levels.append(sigma.item())
        return gaussian_score(0.0, 0.8)(x, sigma)


@pytest.mark.parametrize("sampler", [Langevin(0.1, 40), MetropolisAdjustedLangevin(0.1, 40, log_normal)], ids=named)
def test_each_level_of_a_ladder_is_walked_and_yields_a_frame(sampler):
    score, ladder = Counted(), [3.0, 1.0, 0.0]
    frames = list(sampler(score, 3 * torch.randn(20_000, 1), torch.tensor(ladder)))
    calls = len(score.levels) // 3
    assert score.levels == [sigma for sigma in ladder for _ in range(calls)]
    assert calls == 40 if type(sampler) is Langevin else 40 < calls <= 80
    assert len(frames) == 3
    # From each level the walk comes a good way towards the rest of the next, and rests at the last.
    variances = [frame.var().item() for frame in frames]
    assert variances == sorted(variances, reverse=True)
    bias = 1 / (1 - 0.1 / (2 * 0.64)) if type(sampler) is Langevin else 1
    assert variances[-1] == pytest.approx(0.64 * bias, rel=4 * math.sqrt(2 / 20_000))


def test_a_proposal_takes_two_scores_at_the_most():
    score = Counted()
    list(MetropolisAdjustedLangevin(0.1, 7, log_normal)(score, torch.zeros(5, 2), torch.zeros(1)))
    assert 7 < len(score.levels) <= 14


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Langevin(1.0, math.inf), r"expected an integer steps from 1 to 1,000,000, got steps=inf \(Langevin\)"),
        (lambda: Langevin(1.0, 1.5), r"expected an integer steps from 1 to 1,000,000, got steps=1.5 \(Langevin\)"),
        (lambda: Langevin(1.0, 10**9), r"expected an integer steps from 1 to 1,000,000, got steps=1000000000 .*"),
        (
            lambda: PredictorCorrector(corrector_steps=10**9),
            r"expected an integer corrector_steps from 0 to 1,000,000, got corrector_steps=1000000000 .*",
        ),
        (lambda: Langevin(-1.0, 1), r"expected epsilon > 0, got epsilon=-1.0 \(Langevin\)"),
        (lambda: Langevin("auto", 1), r"expected epsilon > 0, got epsilon='auto' \(Langevin\)"),
        (
            lambda: AnnealedLangevin(1.0, math.inf),
            r"expected an integer steps from 1 to 1,000,000, got steps=inf .AnnealedLangevin.",
        ),
        (
            lambda: MetropolisAdjustedLangevin(1.0, 0, log_normal),
            r"expected an integer steps from 1 to 1,000,000, got steps=0 \(MetropolisAdjustedLangevin\)",
        ),
        (
            lambda: AnnealedLangevin(1e-3, 1).check(NoNoise().sigmas()),
            r"expected a lowest noise level above 0 \(Langevin works at 0\), got sigma=0.0 \(AnnealedLangevin\)",
        ),
        (
            lambda: AnnealedLangevin("auto", 1).check(torch.tensor([1.0, 0.0])),
            r"expected a lowest noise level above 0 \(Langevin works at 0\), got sigma=0.0 \(AnnealedLangevin\)",
        ),
    ],
)
def test_impossible_walks_are_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()


def test_a_level_of_0_is_no_obstacle_to_langevin():
    Langevin(0.1, 3).check(NoNoise().sigmas())
    *_, x = Langevin(0.1, 3)(gaussian_score(0.0, 0.8), torch.zeros(4, 2), NoNoise().sigmas())
    assert x.isfinite().all()


def test_consistent_annealing_takes_a_step_at_the_last_level_and_denoises_it():
    def score(x, sigma):
        return (0.3 - x) / (0.7**2 + sigma**2)

    x, sigma = torch.linspace(-2, 2, 9).unsqueeze(1), torch.tensor(0.5)
    (end,) = ConsistentAnnealed(epsilon=0.2)(score, x, sigma[None])
    stepped = x + 0.2 * score(x, sigma)
    torch.testing.assert_close(end, stepped + sigma**2 * score(stepped, sigma))


def test_numbers_of_steps_may_be_integers_of_numpy():
    steps = np.int64(2)
    kinds = Langevin(1.0, steps), MetropolisAdjustedLangevin(1.0, steps), AnnealedLangevin(steps=steps)
    assert [kind.steps for kind in kinds] == [2, 2, 2]
