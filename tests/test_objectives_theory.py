"""Explicit, implicit and sliced score matching, against each other and against brute force."""

import math

import pytest
import torch
from ncsn.objectives import (
    ExplicitScoreMatching,
    FiniteDifferenceSlicedScoreMatching,
    ImplicitScoreMatching,
    SlicedScoreMatching,
    Weighted,
)
from ncsn.objectives.directions import PROJECTIONS, rademacher
from ncsn.score import EnergyScore
from ncsn.score.densities import GaussianMixture, ParzenWindow
from torch import nn

from conftest import named

TARGET = GaussianMixture(
    torch.tensor([0.3, 0.7], dtype=torch.float64),
    torch.tensor([[-1.0, 0.5], [1.0, 0.0]], dtype=torch.float64),
    torch.tensor(0.6, dtype=torch.float64),
)
NONE = torch.zeros((), dtype=torch.float64)
SLICED = [
    kind(slices, projection, reduced)
    for kind in (SlicedScoreMatching, FiniteDifferenceSlicedScoreMatching)
    for slices, projection, reduced in [(1, "rademacher", True), (1, "gaussian", False), (2, "sphere", True)]
]
ESTIMATES = [*SLICED, ImplicitScoreMatching(probes=1), ImplicitScoreMatching(probes=3)]
X = torch.randn(4, 2)


class Wrong(nn.Module):
    """A smooth score that is not the target's, of one noise level or many."""

    def __init__(self, features=2, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, features)).to(dtype)

    def forward(self, x, sigma):
        return self.layers(x.flatten(1)).view_as(x) / (1 + sigma**2)


def within_error(losses, expected, sigmas=4):
    return abs(losses.mean() - expected) < sigmas * losses.std() / math.sqrt(len(losses))


def test_the_annealed_weight_is_a_power_of_sigma():
    sigma = torch.rand(4, 1) + 0.1
    plain = ExplicitScoreMatching(lambda x, sigma: 0 * x)
    torch.manual_seed(0)
    losses = plain(lambda x, sigma: -x, X, sigma)
    torch.manual_seed(0)
    weighted = Weighted(plain, power=3)(lambda x, sigma: -x, X, sigma)
    torch.testing.assert_close(weighted, sigma.flatten() ** 3 * losses)


def test_implicit_is_recomputed_by_brute_force():
    score, x = Wrong(), torch.randn(7, 2, dtype=torch.float64)
    losses = ImplicitScoreMatching()(score, x, NONE)
    for i in range(7):
        jacobian = torch.autograd.functional.jacobian(lambda y: score(y[None], NONE)[0], x[i])
        expected = score(x[i : i + 1], NONE).square().sum() / 2 + jacobian.trace()
        torch.testing.assert_close(losses[i], expected)


POINTS = torch.tensor([[-1.2, 0.3, 0.5], [0.4, -0.9, 1.1], [0.1, 0.2, -0.6], [1.5, 0.8, 0.0]], dtype=torch.float64)
POINTS_MIXTURE = GaussianMixture(torch.ones(4, dtype=torch.float64), POINTS, NONE)


def minus_log_parzen(x, sigma):
    return -ParzenWindow(POINTS, chunk=3).log_prob(x, sigma)


@pytest.mark.parametrize(
    ("objective", "directions"),
    [(ImplicitScoreMatching(), 0), (ImplicitScoreMatching(probes=2), 2), (SlicedScoreMatching(slices=2), 2)],
    ids=named,
)
@pytest.mark.parametrize(
    "sigma", [torch.tensor(0.6), torch.tensor([[0.3], [0.5], [0.8], [1.2], [2.0]])], ids=["one", "each"]
)
def test_a_parzen_window_and_its_energy_are_matched_as_the_mixture_of_their_points(objective, directions, sigma):
    x, sigma = torch.randn(5, 3, dtype=torch.float64), sigma.double()
    torch.manual_seed(0)
    noisy = x + sigma * torch.randn_like(x)
    drawn = [rademacher(noisy) for _ in range(directions)]
    expected = []
    for i, level in enumerate(sigma.expand(5, 1)):
        psi = POINTS_MIXTURE.score(noisy[i : i + 1], level[0])
        jacobian = torch.autograd.functional.jacobian(
            lambda y, level=level: POINTS_MIXTURE.score(y[None], level[0])[0], noisy[i]
        )
        traces = [v[i] @ jacobian @ v[i] for v in drawn] or [jacobian.trace()]
        expected.append(psi.square().sum() / 2 + torch.stack(traces).mean())
    for score in (POINTS_MIXTURE.score, ParzenWindow(POINTS, chunk=3).score, EnergyScore(minus_log_parzen)):
        torch.manual_seed(0)
        torch.testing.assert_close(objective(score, x, sigma), torch.stack(expected))


def test_implicit_is_explicit_but_for_a_constant():
    # By quadrature over the plane, at sigma = 0: ESM - ISM is 1/2 E ||target||^2, whatever the score.
    axis = torch.linspace(-7, 7, 400, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    density = TARGET.log_prob(x, NONE).exp() * (axis[1] - axis[0]) ** 2
    constant = (density * TARGET.score(x, NONE).square().sum(1) / 2).sum()
    for seed in range(3):
        score = Wrong()
        torch.manual_seed(seed)
        nn.init.normal_(score.layers[2].weight)
        explicit = (density * ExplicitScoreMatching(TARGET.score)(score, x, NONE)).sum()
        implicit = (density * ImplicitScoreMatching()(score, x, NONE)).sum()
        assert (explicit - implicit).item() == pytest.approx(constant.item(), abs=1e-6)


@pytest.mark.parametrize("objective", ESTIMATES, ids=named)
@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_slices_and_probes_are_unbiased_for_the_exact_trace(objective, sigma):
    score, x = Wrong(), TARGET.sample(1).expand(40_000, 2)
    sigma = torch.tensor(sigma, dtype=torch.float64)
    torch.manual_seed(3)
    sliced = objective(score, x, sigma)
    torch.manual_seed(3)
    exact = ImplicitScoreMatching()(score, x, sigma)  # at the same noise, which is drawn first
    assert within_error(sliced - exact, 0)


def test_the_reduced_form_varies_less():
    score, x = Wrong(), TARGET.sample(1).expand(20_000, 2)
    reduced, plain = (SlicedScoreMatching(1, "gaussian", reduced)(score, x, NONE) for reduced in (True, False))
    assert reduced.var() < plain.var()


def test_one_probe_is_the_reduced_form_with_signs():
    score, x = Wrong(), torch.randn(7, 2, dtype=torch.float64)
    torch.manual_seed(0)
    probed = ImplicitScoreMatching(probes=1)(score, x, NONE)
    torch.manual_seed(0)
    torch.testing.assert_close(probed, SlicedScoreMatching(1, "rademacher")(score, x, NONE))


def test_more_probes_vary_less():
    score, x = Wrong(), TARGET.sample(1).expand(20_000, 2)
    one, four = (ImplicitScoreMatching(probes)(score, x, NONE).var() for probes in (1, 4))
    assert (four / one).item() == pytest.approx(1 / 4, rel=0.1)


def test_more_slices_vary_less():
    score, x = Wrong(), TARGET.sample(1).expand(20_000, 2)
    one, four = (SlicedScoreMatching(slices, "gaussian")(score, x, NONE).var() for slices in (1, 4))
    assert (four / one).item() == pytest.approx(1 / 4, rel=0.1)


def test_the_finite_difference_converges_at_second_order():
    score, x = Wrong(), TARGET.sample(200)
    errors = []
    for epsilon in (0.2, 0.1, 0.05):
        torch.manual_seed(0)
        approximate = FiniteDifferenceSlicedScoreMatching(epsilon=epsilon)(score, x, NONE)
        torch.manual_seed(0)
        errors.append((approximate - SlicedScoreMatching()(score, x, NONE)).abs().mean().item())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("sigma", [1e-3, 0.01, 1.0])
def test_the_step_of_the_finite_difference_is_in_units_of_the_noise_level(sigma):
    sigma = torch.tensor(sigma, dtype=torch.float64)
    score = GaussianMixture(
        torch.ones(2, dtype=torch.float64) / 2, sigma * TARGET.means, torch.zeros((), dtype=torch.float64)
    ).score
    losses = []
    for objective in (FiniteDifferenceSlicedScoreMatching(), SlicedScoreMatching()):
        torch.manual_seed(0)
        losses.append(objective(score, torch.zeros(1000, 2, dtype=torch.float64), sigma))
    torch.testing.assert_close(*losses, rtol=0, atol=1e-3 * losses[1].abs().max().item())


@pytest.mark.parametrize("projection", ["rademacher", "gaussian", "sphere"])
def test_directions_have_the_identity_for_their_second_moment(projection):
    v = PROJECTIONS[projection](torch.zeros(100_000, 3))
    torch.testing.assert_close(v.T @ v / len(v), torch.eye(3), atol=0.02, rtol=0)


@pytest.mark.parametrize("shape", [(5,), (3, 2, 2)])
def test_signs_are_of_length_one_each_and_the_sphere_is_of_radius_sqrt_d(shape, monkeypatch):
    x = torch.zeros(1000, *shape, dtype=torch.float64)
    signs = PROJECTIONS["rademacher"](x)
    assert torch.equal(signs.abs(), torch.ones_like(x))
    assert abs(signs.mean()) < 4 / math.sqrt(x.numel())
    squares = PROJECTIONS["sphere"](x).square().flatten(1).sum(1)
    torch.testing.assert_close(squares, torch.full_like(squares, math.prod(shape)), rtol=1e-12, atol=0)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # which float32 draws now and then
    assert torch.equal(PROJECTIONS["rademacher"](x).abs(), torch.ones_like(x))


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: ImplicitScoreMatching(probes=-1), r"expected probes >= 0 .* got probes=-1 \(ImplicitScoreMatching\)"),
        (lambda: Weighted(ImplicitScoreMatching(), power=math.inf), r"got power=inf \(Weighted\)"),
        (lambda: SlicedScoreMatching(slices=0), r"got slices=0 \(SlicedScoreMatching\)"),
        (
            lambda: SlicedScoreMatching(projection="cube"),
            "expected rademacher, gaussian, sphere, got projection='cube'",
        ),
        (lambda: FiniteDifferenceSlicedScoreMatching(epsilon=0), "got epsilon=0"),
    ],
)
def test_impossible_settings_are_refused(make, field):
    with pytest.raises(ValueError, match=field):
        make()
