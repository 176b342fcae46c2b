"""What holds of every objective, whatever it is given."""

import gc
import math
import weakref

import pytest
import torch
from ncsn.objectives import (
    Annealed,
    DenoisingScoreMatching,
    EDMScoreMatching,
    ExplicitScoreMatching,
    ImplicitScoreMatching,
    LaplaceNoise,
    PseudoLikelihood,
    RatioMatching,
)
from ncsn.objectives.binary import BinaryObjective
from ncsn.objectives.directions import PROJECTIONS
from torch import nn

from conftest import named
from test_objectives_theory import SLICED, TARGET, Wrong

OBJECTIVES = [
    ExplicitScoreMatching(TARGET),
    ImplicitScoreMatching(),
    ImplicitScoreMatching(probes=2),
    DenoisingScoreMatching(),
    DenoisingScoreMatching(corruption=LaplaceNoise()),
    EDMScoreMatching(),
    Annealed(ImplicitScoreMatching()),
    *SLICED,
    RatioMatching(),
    PseudoLikelihood(),
    Annealed(RatioMatching()),
]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


class WrongDensity(Wrong):
    """A log-probability that is no one's."""

    def forward(self, x, sigma):
        return super().forward(x, sigma).flatten(1).sum(1)


def of_bits(objective):
    return isinstance(getattr(objective, "objective", objective), BinaryObjective)


def model(objective, dtype=torch.float64):
    """What the objective takes: a score, or a log-probability."""
    return (WrongDensity if of_bits(objective) else Wrong)(dtype=dtype)


def examples(objective, *shape, dtype=torch.float64):
    """What it takes to be data: any numbers, or zeros and ones."""
    x = torch.randn(*shape, dtype=dtype)
    return (x > 0).to(dtype) if of_bits(objective) else x


@pytest.mark.parametrize("objective", OBJECTIVES, ids=named)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2,), (1, 2), (2, 1, 1)])
@pytest.mark.parametrize("device", DEVICES)
def test_contract(objective, dtype, shape, device):
    function, x = model(objective, dtype).to(device), examples(objective, 6, *shape, dtype=dtype).to(device)
    if isinstance(objective, ExplicitScoreMatching):
        objective = ExplicitScoreMatching(lambda x, sigma: -x / (1 + sigma**2))
    for sigma in (torch.tensor(0.5, dtype=dtype), torch.rand(6, *[1] * len(shape), dtype=dtype) + 0.1):
        losses = objective(function, x, sigma.to(device))
        assert (losses.shape, losses.dtype, losses.device.type) == ((6,), dtype, device)
        losses.sum().backward()
        assert all(parameter.grad is not None for parameter in function.layers[0].parameters())


@pytest.mark.parametrize("objective", OBJECTIVES, ids=named)
def test_sigma_may_be_a_plain_number_or_of_another_type_than_x(objective):
    function, x = model(objective, torch.float32), examples(objective, 6, 2, dtype=torch.float32)
    each = torch.rand(6, 1) + 0.1
    for sigma, others in ((torch.tensor(0.5), (0.5, torch.tensor(0.5).double())), (each, (each.double(),))):
        torch.manual_seed(0)
        expected = objective(function, x, sigma)
        for other in others:
            torch.manual_seed(0)
            losses = objective(function, x, other)
            assert losses.dtype == torch.float32
            assert torch.equal(losses, expected)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=named)
def test_an_example_is_the_same_alone_and_among_others(objective, monkeypatch):
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    monkeypatch.setitem(PROJECTIONS, "gaussian", torch.ones_like)
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda x: x.fill_(0.7))
    function, x = model(objective), examples(objective, 5, 2)
    sigma = torch.rand(5, 1, dtype=torch.float64) + 0.1
    alone = torch.cat([objective(function, x[i : i + 1], sigma[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(objective(function, x, sigma), alone)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=named)
def test_no_objective_leaves_a_graph_alive(objective):
    function, x = model(objective), examples(objective, 6, 2)
    watched = []

    def watching(x, sigma):
        out = function(x, sigma)
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
        assert not objective(function, x, torch.tensor(0.5)).requires_grad


X, HALF = torch.ones(4, 2), torch.tensor(0.5)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=named)
@pytest.mark.parametrize(
    ("x", "sigma", "message"),
    [
        (torch.ones(4, 2, dtype=torch.long), HALF, "x is of torch.int64, and must be floating-point"),
        (torch.tensor([[0.0, math.nan]]), HALF, "x has 1 numbers that are NaN or infinite"),
        (torch.tensor([[math.inf, 0.0]]), HALF, "x has 1 numbers that are NaN or infinite"),
        (torch.ones(4), HALF, r"x is of shape \(4,\), and must be \(B, ...\)"),
        (torch.ones(0, 2), HALF, r"x is of shape \(0, 2\), and must be \(B, ...\)"),
        (torch.ones(4, 0), HALF, r"x is of shape \(4, 0\), and must be \(B, ...\)"),
        (X, torch.tensor(-0.5), "sigma is -0.5, and must be at least 0"),
        (X, -0.5, "sigma is -0.5, and must be at least 0"),
        (X, torch.tensor([[0.5], [0.1], [-2.0], [1.0]]), "sigma is -2, and must be at least 0"),
        (X, torch.tensor(math.nan), "sigma is nan, and must be"),
        (X, torch.tensor(math.inf), "sigma is inf, and must be"),
        (X, torch.ones(4), r"sigma is of shape \(4,\), and must be \(\) or \(4, 1\)"),
        (X, torch.ones(3, 1), r"sigma is of shape \(3, 1\)"),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(objective, x, sigma, message):
    function = nn.Identity()  # not reached
    with pytest.raises(ValueError, match=message) as refused:
        objective(function, x, sigma)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "objective",
    [DenoisingScoreMatching(), EDMScoreMatching(), Annealed(ImplicitScoreMatching()), Annealed(RatioMatching())],
    ids=named,
)
def test_without_noise_there_is_nothing_to_denoise_or_to_weigh(objective):
    for sigma in (0.0, torch.tensor(0.0), torch.tensor([[0.5], [0.1], [0.0], [1.0]])):
        with pytest.raises(ValueError, match="sigma is 0, and must be positive"):
            objective(nn.Identity(), X, sigma)
