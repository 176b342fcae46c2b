"""Every objective learns the score."""

import pytest
import torch

from ncsn.compare import LEVELS, OBJECTIVES, TARGET, divergence, learn


def test_the_divergence_is_zero_for_the_truth_and_one_for_nothing():
    for sigma in LEVELS:
        assert divergence(TARGET.score, TARGET, sigma) == 0
        assert divergence(lambda x, sigma: 0 * x, TARGET, sigma) == pytest.approx(1)
        assert divergence(lambda x, sigma: 1.1 * TARGET.score(x, sigma), TARGET, sigma) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("sigma", LEVELS)
def test_the_lattice_weighs_as_the_density_does(sigma):
    # Against a mean over draws: of the error of a score that is wrong in one place.
    def wrong(x, level):
        return TARGET.score(x, level) + x[:, :1].tanh()

    torch.manual_seed(0)
    x, level = TARGET.sample(400_000, sigma), torch.tensor(sigma)
    exact = TARGET.score(x, level)
    drawn = (wrong(x, level) - exact).square().sum(1).mean() / exact.square().sum(1).mean()
    assert divergence(wrong, TARGET, sigma) == pytest.approx(drawn.item(), rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_comes_near_the_exact_score(name):
    score = learn(OBJECTIVES[name], steps=1000)
    for sigma in LEVELS:
        assert divergence(score, TARGET, sigma) < 0.05
