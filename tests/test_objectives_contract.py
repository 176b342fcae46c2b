"""What holds of every objective, whatever it is given."""

import gc
import weakref

import pytest
import torch
from ncsn.objectives import (
    CorruptionScoreMatching,
    DenoisingScoreMatching,
    EDMScoreMatching,
    ExplicitScoreMatching,
    ImplicitScoreMatching,
    LaplaceNoise,
    PseudoLikelihood,
    RatioMatching,
    Weighted,
)
from ncsn.objectives.directions import PROJECTIONS

from conftest import DEVICES, named
from test_objectives_theory import SLICED, TARGET, Wrong

OBJECTIVES = [
    ExplicitScoreMatching(TARGET),
    ImplicitScoreMatching(),
    ImplicitScoreMatching(probes=2),
    DenoisingScoreMatching(),
    CorruptionScoreMatching(LaplaceNoise()),
    EDMScoreMatching(),
    Weighted(ImplicitScoreMatching()),
    *SLICED,
    RatioMatching(),
    PseudoLikelihood(),
    Weighted(RatioMatching()),
]


class WrongDensity(Wrong):
    """A log-probability that is no one's."""

    def forward(self, x, sigma):
        return super().forward(x, sigma).flatten(1).sum(1)


def is_binary(objective) -> bool:
    return isinstance(getattr(objective, "objective", objective), RatioMatching | PseudoLikelihood)


def model(objective, dtype=torch.float64):
    """What the objective takes: a score, or a log-probability."""
    return (WrongDensity if is_binary(objective) else Wrong)(dtype=dtype)


def examples(objective, *shape, dtype=torch.float64):
    """What it takes to be data: any numbers, or zeros and ones."""
    x = torch.randn(*shape, dtype=dtype)
    return (x > 0).to(dtype) if is_binary(objective) else x


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
