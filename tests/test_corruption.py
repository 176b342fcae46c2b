"""Denoising score matching under other noise than Gaussian."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from ncsn.noise import GeometricSchedule
from ncsn.objectives import (
    Corruption,
    CorruptionScoreMatching,
    GaussianNoise,
    LaplaceNoise,
    Weighted,
)
from ncsn.samplers import AnnealedLangevin, Euler

from test_vincent import DATA, Perceptron

SIGMA = torch.tensor(0.6, dtype=torch.float64)


@pytest.mark.parametrize(
    ("noise", "fourth_moment"), [(GaussianNoise(), 3), (LaplaceNoise(), 6)], ids=lambda value: type(value).__name__
)
def test_the_noise_has_unit_variance_and_its_law(noise, fourth_moment):
    x = torch.zeros(400_000, 1, dtype=torch.float64)
    z = noise(x, SIGMA)[0] / SIGMA
    assert abs(z.mean().item()) < 4 / math.sqrt(400_000)
    assert z.var().item() == pytest.approx(1, abs=0.02)
    assert (z**4).mean().item() == pytest.approx(fourth_moment, rel=0.05)


@pytest.mark.parametrize("noise", [GaussianNoise(), LaplaceNoise()])
@pytest.mark.parametrize("sigma", [torch.tensor(0.3), torch.rand(6, 1, 1) + 0.1])
def test_the_target_is_the_gradient_of_the_law_of_the_noise(noise, sigma):
    x = torch.randn(6, 2, 3)
    noisy, target = noise(x, sigma)
    noisy.requires_grad_()
    z = (noisy - x) / sigma
    log_law = -(z**2) / 2 if isinstance(noise, GaussianNoise) else -math.sqrt(2) * z.abs()
    torch.testing.assert_close(target, torch.autograd.grad(log_law.sum(), noisy)[0], rtol=1e-4, atol=1e-4)


class Quadrature(LaplaceNoise):
    """Laplace's noise at the nodes of Gauss and Laguerre, in place of chance: it is exponential to both sides."""

    nodes, weights = (torch.tensor(array) for array in np.polynomial.laguerre.laggauss(60))

    def draw(self, x):
        return torch.cat([self.nodes, -self.nodes]).repeat(len(DATA)).unsqueeze(1) / math.sqrt(2)


def blurred_log_density(x):
    """log of the data's density, blurred by Laplace's law of standard deviation SIGMA."""
    width = SIGMA / math.sqrt(2)
    return (-(x - DATA.T).abs() / width).logsumexp(1) - math.log(len(DATA)) - (2 * width).log()


def explicit(score):
    """Explicit score matching of that density, by Gauss and Legendre between the kinks at the data."""
    nodes, weights = (torch.tensor(array) for array in np.polynomial.legendre.leggauss(60))
    edges = [-30.0, -12.0, -5.0, -2.5, *DATA.flatten().tolist(), 2.5, 5.0, 12.0, 30.0]
    total = torch.zeros((), dtype=torch.float64)
    for low, high in pairwise(edges):
        x = ((high - low) / 2 * nodes + (high + low) / 2).unsqueeze(1).requires_grad_()
        log_density = blurred_log_density(x)
        target = torch.autograd.grad(log_density.sum(), x)[0]
        square = (score(x.detach(), SIGMA) - target).square().sum(1) / 2
        total = total + (high - low) / 2 * (weights * log_density.detach().exp() * square).sum()
    return total


def test_vincents_theorem_holds_of_laplaces_noise():
    count = 2 * len(Quadrature.nodes)
    weights = torch.cat([Quadrature.weights, Quadrature.weights]).repeat(len(DATA)) / 2 / len(DATA)
    objective = Weighted(CorruptionScoreMatching(Quadrature()), -2)
    gradients, differences = [], []
    for seed in range(2):
        torch.manual_seed(seed)
        score = Perceptron()
        denoising = (weights * objective(score, DATA.repeat_interleave(count, 0), SIGMA)).sum()
        losses = explicit(score), denoising
        gradients.append(
            [torch.cat([g.flatten() for g in torch.autograd.grad(loss, score.parameters())]) for loss in losses]
        )
        differences.append((losses[0] - losses[1]).item())
    for of_explicit, of_denoising in gradients:
        assert of_explicit.abs().max() > 1e-3
        torch.testing.assert_close(of_denoising, of_explicit, atol=1e-6, rtol=1e-6)
    assert differences[0] == pytest.approx(differences[1], abs=1e-6)


@dataclass(frozen=True)
class Coloured(Corruption):
    """A corruption of one's own: Gaussian noise that is wider in some dimensions than in others."""

    widths: tuple[float, ...]

    def __call__(self, x, sigma):
        width = sigma * torch.tensor(self.widths).to(x)
        z = torch.randn_like(x)
        return x + width * z, -z / width


def test_a_corruption_of_ones_own_is_learned():
    # Of data N(0, 1) the best linear score under noise of width w is -x / (1 + w^2).
    sigma, widths = torch.tensor(0.8), torch.tensor([0.5, 2.0])
    slope = torch.zeros(2, requires_grad=True)
    x = torch.randn(200_000, 2)
    objective = CorruptionScoreMatching(Coloured((0.5, 2.0)))
    optimizer = torch.optim.LBFGS([slope], max_iter=20, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        torch.manual_seed(1)
        loss = objective(lambda x, sigma: slope * x, x, sigma).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(slope.detach(), -1 / (1 + (sigma * widths) ** 2), atol=0.02, rtol=0)


def test_annealed_langevin_samples_under_laplaces_noise_where_the_flow_does_not():
    points = torch.tensor([-1.0, 1.0])

    def score(x, sigma):
        return torch.func.grad(lambda x: (-math.sqrt(2) / sigma * (x - points).abs()).logsumexp(1).sum())(x)

    sigmas = GeometricSchedule(10, 0.1, 20).sigmas()
    stds = []
    for sampler in (AnnealedLangevin(0.001, 20, denoise=False), Euler()):
        *_, x = sampler(score, 10 * torch.randn(4000, 1), sigmas)
        stds.append(x.std().item())
    assert stds[0] == pytest.approx(math.hypot(1, 0.1), rel=0.05)
    assert stds[1] > 1.5  # which is why it is refused
