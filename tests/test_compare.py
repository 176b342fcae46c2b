"""Every objective learns the score."""

from dataclasses import dataclass, field

import pytest
import torch
from benchmarks.compare import LEVELS, OBJECTIVES, TARGET, divergence, learn, main
from ncsn.objectives import ExplicitScoreMatching, Objective, Weighted
from ncsn.score.densities import GaussianMixture

from test_cli import refusal


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


@dataclass(frozen=True)
class Counted(Objective):
    """Another objective, which notes what it is given."""

    objective: Objective
    seen: list = field(default_factory=list)

    def __call__(self, score, x, sigma):
        self.seen.append((x, sigma))
        return self.objective(score, x, sigma)


@pytest.mark.parametrize("name", ["explicit", "denoising"])
def test_a_few_steps_of_the_objective_that_is_given_go_most_of_the_way(name):
    objective = Counted(OBJECTIVES[name])
    score = learn(objective, steps=100)
    for sigma in LEVELS:
        assert divergence(score, TARGET, sigma) < 0.25
    assert len(objective.seen) == 100
    assert {x.shape for x, _ in objective.seen} == {(512, 2)}
    levels = torch.cat([sigma for _, sigma in objective.seen])
    assert levels.min().item() == pytest.approx(0.1)
    assert levels.max().item() == pytest.approx(4)


def test_another_objective_learns_another_score():
    # Told to go to the wrong places, it does.
    elsewhere = GaussianMixture(TARGET.log_weights.exp(), -TARGET.means, TARGET.stds)
    score = learn(Weighted(ExplicitScoreMatching(elsewhere)), steps=100)
    for sigma in (0.3, 1.0):
        assert divergence(score, TARGET, sigma) > 2 * divergence(score, elsewhere, sigma)


def test_the_seed_and_the_objective_decide_what_is_learned():
    x, sigma = TARGET.sample(5), torch.tensor(0.5)
    one, same, other_seed, other = (
        learn(OBJECTIVES[name], 2, seed)(x, sigma)
        for name, seed in [("denoising", 0), ("denoising", 0), ("denoising", 1), ("explicit", 0)]
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other_seed)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("steps", ["0", "-3"])
def test_a_wrong_number_of_steps_is_answered_in_one_line(steps, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["compare", "--steps", steps])
    assert refusal(capsys, main) == (2, f"error: expected --steps >= 1, got {steps}")


def test_the_table_has_a_row_for_each_objective(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["compare", "--steps", "1"])
    main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows] == ["objective", *OBJECTIVES]
    assert all(row.count("%") == len(LEVELS) for row in rows[1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_comes_near_the_exact_score(name):
    score = learn(OBJECTIVES[name], steps=1000)
    for sigma in LEVELS:
        assert divergence(score, TARGET, sigma) < 0.05
