"""Vincent's theorem (2011): explicit, implicit and denoising score matching of a Parzen density, and the denoising
autoencoder, are one objective but for constants and a factor."""

import math

import numpy as np
import pytest
import torch
from ncsn.networks import AutoencoderEnergy
from ncsn.objectives import DenoisingScoreMatching, ExplicitScoreMatching, ImplicitScoreMatching, Weighted
from ncsn.samplers import AnnealedLangevin
from ncsn.score import EnergyScore
from ncsn.score.densities import ParzenWindow
from torch import nn

DATA = torch.tensor([[-1.2], [-0.3], [0.1], [0.9], [1.4]], dtype=torch.float64)
NODES, WEIGHTS = (torch.tensor(array) for array in np.polynomial.hermite_e.hermegauss(150))
WEIGHTS = WEIGHTS / math.sqrt(2 * math.pi)


@pytest.fixture
def quadrature(monkeypatch):
    """The mean of an objective over the data and over its noise, which Gauss and Hermite give in place of chance."""

    def mean(objective, score, sigma):
        x = DATA.repeat_interleave(len(NODES), 0)
        z = NODES.repeat(len(DATA)).unsqueeze(1)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randn_like", lambda like: z)
            losses = objective(score, x, sigma)
        return (losses * WEIGHTS.repeat(len(DATA))).sum() / len(DATA)

    return mean


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()

    def forward(self, x, sigma):
        return self.layers(x)


def energy_of_an_autoencoder():
    return EnergyScore(AutoencoderEnergy(1, 6).double())


def objectives(sigma):
    yield "explicit", ExplicitScoreMatching(ParzenWindow(DATA).score)
    yield "implicit", ImplicitScoreMatching()
    yield "denoising", Weighted(DenoisingScoreMatching(), -2)


@pytest.mark.parametrize("sigma", [0.4, 1.0])
@pytest.mark.parametrize("make", [Perceptron, energy_of_an_autoencoder])
def test_the_gradients_agree_and_the_losses_differ_by_constants(quadrature, make, sigma):
    sigma = torch.tensor(sigma, dtype=torch.float64)
    gradients, differences = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        score = make()
        losses = {name: quadrature(objective, score, sigma) for name, objective in objectives(sigma)}
        gradients.append(
            [
                torch.cat([g.flatten() for g in torch.autograd.grad(loss, score.parameters())])
                for loss in losses.values()
            ]
        )
        differences.append([(losses["explicit"] - losses[name]).item() for name in ("implicit", "denoising")])
    for explicit, *others in gradients:
        assert explicit.abs().max() > 1e-3
        for other in others:
            torch.testing.assert_close(other, explicit, atol=1e-6, rtol=1e-6)
    for other in differences[1:]:
        assert other == pytest.approx(differences[0], abs=1e-6)


def test_the_autoencoder_error_is_denoising_score_matching_times_2_sigma_4(quadrature):
    sigma = torch.tensor(0.7, dtype=torch.float64)
    autoencoder = AutoencoderEnergy(1, 6).double()

    def squared_error(score, x, sigma):
        return (autoencoder.reconstruct(x + sigma * torch.randn_like(x)) - x).square().sum(1)

    error = quadrature(squared_error, None, sigma)
    matching = quadrature(Weighted(DenoisingScoreMatching(), -2), EnergyScore(autoencoder), sigma)
    torch.testing.assert_close(error, 2 * sigma**4 * matching)
    for one, other in zip(
        *(torch.autograd.grad(loss, autoencoder.parameters()) for loss in (error, matching)), strict=True
    ):
        torch.testing.assert_close(one, 2 * sigma**4 * other)


def test_the_score_of_the_autoencoder_is_minus_the_gradient_of_its_energy():
    autoencoder, x = AutoencoderEnergy(3, 5).double(), torch.randn(4, 3, dtype=torch.float64)
    for sigma in (torch.tensor(0.5, dtype=torch.float64), torch.rand(4, 1, dtype=torch.float64) + 0.1):
        torch.testing.assert_close(EnergyScore(autoencoder)(x, sigma), autoencoder.score(x, sigma))
        assert autoencoder(x, sigma).shape == (4,)


def test_the_level_of_an_autoencoder_may_be_a_plain_number_or_of_another_type():
    autoencoder, x, each = AutoencoderEnergy(3, 5), torch.randn(4, 3), torch.rand(4, 1) + 0.1
    for of in (autoencoder, autoencoder.score, EnergyScore(autoencoder)):
        for sigma, others in ((torch.tensor(0.5), (0.5, torch.tensor(0.5).double())), (each, (each.double(),))):
            for other in others:
                value = of(x, other)
                assert value.dtype == torch.float32
                assert torch.equal(value, of(x, sigma))


def test_an_energy_is_walked_by_a_sampler_that_keeps_no_graph():
    def energy(x, sigma):
        return ((x - 0.3) ** 2 / (0.7**2 + sigma**2)).sum(1) / 2

    sigmas = torch.logspace(0.7, -1.3, 40)
    *_, x = AnnealedLangevin(0.05 * 0.05**2, 80)(EnergyScore(energy), 5 * torch.randn(20_000, 1), sigmas)
    assert x.std().item() == pytest.approx(0.7, rel=0.03)
    assert not x.requires_grad


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="got hidden=0"):
        AutoencoderEnergy(3, 0)
