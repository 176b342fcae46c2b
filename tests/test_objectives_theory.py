"""Explicit, implicit and sliced score matching, against each other and against brute force."""

import gc
import math
import weakref

import pytest
import torch
from torch import nn

from ncsn.densities import GaussianMixture
from ncsn.objectives import (
    Annealed,
    DenoisingScoreMatching,
    EDMScoreMatching,
    ExplicitScoreMatching,
    FiniteDifferenceSlicedScoreMatching,
    ImplicitScoreMatching,
    LaplaceNoise,
    SlicedScoreMatching,
)
from ncsn.objectives.directions import PROJECTIONS

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
OBJECTIVES = [
    ExplicitScoreMatching(TARGET),
    ImplicitScoreMatching(),
    ImplicitScoreMatching(probes=2),
    DenoisingScoreMatching(),
    DenoisingScoreMatching(corruption=LaplaceNoise()),
    EDMScoreMatching(),
    Annealed(ImplicitScoreMatching()),
    *SLICED,
]
ESTIMATES = [*SLICED, ImplicitScoreMatching(probes=1), ImplicitScoreMatching(probes=3)]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


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


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2,), (1, 2), (2, 1, 1)])
@pytest.mark.parametrize("device", DEVICES)
def test_contract(objective, dtype, shape, device):
    score, x = Wrong(dtype=dtype).to(device), torch.randn(6, *shape, dtype=dtype, device=device)
    if isinstance(objective, ExplicitScoreMatching):
        objective = ExplicitScoreMatching(lambda x, sigma: -x / (1 + sigma**2))
    for sigma in (torch.tensor(0.5, dtype=dtype), torch.rand(6, *[1] * len(shape), dtype=dtype) + 0.1):
        losses = objective(score, x, sigma.to(device))
        assert (losses.shape, losses.dtype, losses.device.type) == ((6,), dtype, device)
        losses.sum().backward()
        assert all(parameter.grad is not None for parameter in score.layers[0].parameters())


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_an_example_is_the_same_alone_and_among_others(objective, monkeypatch):
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    monkeypatch.setitem(PROJECTIONS, "gaussian", torch.ones_like)
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda x: x.fill_(0.7))
    score, x, sigma = Wrong(), torch.randn(5, 2, dtype=torch.float64), torch.rand(5, 1, dtype=torch.float64) + 0.1
    alone = torch.cat([objective(score, x[i : i + 1], sigma[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(objective(score, x, sigma), alone)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_no_objective_leaves_a_graph_alive(objective):
    score, x = Wrong(), torch.randn(6, 2, dtype=torch.float64)
    watched = []

    def watching(x, sigma):
        out = score(x, sigma)
        watched.append(weakref.ref(out))
        return out

    losses = objective(watching, x, torch.tensor(0.5))
    losses.sum().backward()
    of_losses = weakref.ref(losses)
    del losses
    gc.collect()
    assert watched
    assert of_losses() is None
    assert all(out() is None for out in watched)
    with torch.no_grad():
        assert not objective(score, x, torch.tensor(0.5)).requires_grad


X = torch.randn(4, 2)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize(
    ("x", "sigma", "message"),
    [
        (torch.ones(4, 2, dtype=torch.long), torch.tensor(0.5), "x is of torch.int64, and must be floating-point"),
        (torch.tensor([[0.0, math.nan]]), torch.tensor(0.5), "x has 1 numbers that are NaN or infinite"),
        (torch.tensor([[math.inf, 0.0]]), torch.tensor(0.5), "x has 1 numbers that are NaN or infinite"),
        (X, torch.tensor(-0.5), "sigma is -0.5, and must be at least 0"),
        (X, torch.tensor(math.nan), "sigma is nan, and must be"),
        (X, torch.tensor(math.inf), "sigma is inf, and must be"),
        (X, torch.ones(4), r"sigma is of shape \(4,\), and must be \(\) or \(4, 1\)"),
        (X, torch.ones(3, 1), r"sigma is of shape \(3, 1\)"),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(objective, x, sigma, message):
    with pytest.raises(ValueError, match=message) as refused:
        objective(lambda x, sigma: -x, x, sigma)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("objective", [DenoisingScoreMatching(), EDMScoreMatching()])
def test_without_noise_there_is_nothing_to_denoise(objective):
    with pytest.raises(ValueError, match="sigma is 0, and must be positive"):
        objective(lambda x, sigma: -x, X, torch.tensor(0.0))


def test_the_annealed_weight_is_a_power_of_sigma():
    sigma = torch.rand(4, 1) + 0.1
    plain = ExplicitScoreMatching(lambda x, sigma: 0 * x)
    torch.manual_seed(0)
    losses = plain(lambda x, sigma: -x, X, sigma)
    torch.manual_seed(0)
    weighted = Annealed(plain, power=3)(lambda x, sigma: -x, X, sigma)
    torch.testing.assert_close(weighted, sigma.flatten() ** 3 * losses)


def test_implicit_is_recomputed_by_brute_force():
    score, x = Wrong(), torch.randn(7, 2, dtype=torch.float64)
    losses = ImplicitScoreMatching()(score, x, NONE)
    for i in range(7):
        jacobian = torch.autograd.functional.jacobian(lambda y: score(y[None], NONE)[0], x[i])
        expected = score(x[i : i + 1], NONE).square().sum() / 2 + jacobian.trace()
        torch.testing.assert_close(losses[i], expected)


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


@pytest.mark.parametrize("objective", ESTIMATES, ids=repr)
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


@pytest.mark.parametrize("projection", ["rademacher", "gaussian", "sphere"])
def test_directions_have_the_identity_for_their_second_moment(projection):
    v = PROJECTIONS[projection](torch.zeros(100_000, 3))
    torch.testing.assert_close(v.T @ v / len(v), torch.eye(3), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: ImplicitScoreMatching(probes=-1), "ImplicitScoreMatching: probes is -1"),
        (lambda: Annealed(ImplicitScoreMatching(), power=math.inf), "Annealed: power is inf"),
        (lambda: SlicedScoreMatching(slices=0), "SlicedScoreMatching: slices is 0"),
        (lambda: SlicedScoreMatching(projection="cube"), "projection is cube, .* rademacher, gaussian, sphere"),
        (lambda: FiniteDifferenceSlicedScoreMatching(epsilon=0), "epsilon is 0"),
    ],
)
def test_impossible_settings_are_refused(make, field):
    with pytest.raises(ValueError, match=field):
        make()
