import math
import resource

import pytest
import torch
from ncsn.samplers import AnnealedLangevin
from ncsn.score import tweedie
from ncsn.score.densities import Gaussian, GaussianMixture, HyperCubeWindow, ParzenWindow

from conftest import DEVICES

SHAPES = [(1,), (2,), (2, 3, 2)]


def mixture(shape, dtype=torch.float64, device="cpu"):
    return GaussianMixture(
        torch.tensor([0.2, 0.5, 0.3], dtype=dtype, device=device),
        torch.randn(3, *shape, dtype=dtype).to(device),
        torch.tensor([0.3, 0.5, 0.8], dtype=dtype, device=device).view(3, *[1] * len(shape)),
    )


def densities(shape, dtype=torch.float64, device="cpu"):
    std = torch.tensor(0.7, dtype=dtype, device=device)
    yield Gaussian(torch.randn(shape, dtype=dtype).to(device), std)
    yield mixture(shape, dtype, device)
    yield ParzenWindow(torch.randn(11, *shape, dtype=dtype).to(device), chunk=4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("each", [False, True])
def test_the_score_is_the_gradient_of_the_log_density(shape, each):
    x = torch.randn(5, *shape, dtype=torch.float64).requires_grad_()
    levels = torch.tensor([0.1, 0.3, 0.5, 1.0, 3.0], dtype=torch.float64)
    sigma = levels.view(5, *[1] * len(shape)) if each else levels[2]
    for density in densities(shape):
        log_prob = density.log_prob(x, sigma)
        assert log_prob.shape == (5,)
        torch.testing.assert_close(density.score(x, sigma), torch.autograd.grad(log_prob.sum(), x)[0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("made", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", [torch.float32, torch.float64])
def test_what_is_given_a_point_is_like_it_and_a_sample_like_what_the_density_is_of(shape, device, made, given):
    x = torch.randn(5, *shape, dtype=given).to(device)
    each = torch.rand(5, *[1] * len(shape)) + 0.3
    for density, at_home in zip(densities(shape, made), densities(shape, made, device), strict=True):
        for sigma in (0.5, torch.tensor(0.5), torch.tensor(0.5).double(), each, each.double()):
            for value, like in ((density.log_prob(x, sigma), (5,)), (density.score(x, sigma), (5, *shape))):
                assert (value.shape, value.dtype, value.device.type) == (like, given, device)
            # Five digits, as float32 has them: the same density whatever it is given.
            torch.testing.assert_close(
                density.score(x, sigma).double().cpu(),
                density.score(x.double().cpu(), sigma),
                rtol=1e-4,
                atol=1e-4,
            )
        drawn = at_home.sample(4, 0.5)
        assert (drawn.shape, drawn.dtype, drawn.device.type) == ((4, *shape), made, device)


def test_densities_add_up_to_one():
    x = torch.linspace(-30, 30, 60_001, dtype=torch.float64).unsqueeze(1)
    for density in densities((1,)):
        for sigma in torch.tensor([0.05, 1.0, 2.5], dtype=torch.float64):
            assert torch.trapezoid(density.log_prob(x, sigma).exp(), x[:, 0]).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("sigma", [0.0, 0.4])
def test_samples_have_the_density_they_are_drawn_from(sigma):
    # The empirical distribution function stays within the band of Kolmogorov's test, at 1e-4.
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    for density in [d for d in densities((1,)) if sigma or not isinstance(d, ParzenWindow)]:
        x = density.sample(20_000, sigma).flatten().sort().values
        steps = density.log_prob(grid.unsqueeze(1), torch.tensor(sigma)).exp()
        expected = torch.cumulative_trapezoid(steps, grid)
        observed = torch.searchsorted(x, grid[1:]) / len(x)
        assert (expected - observed).abs().max() < 2.23 / math.sqrt(len(x))


def test_the_parzen_window_is_the_mixture_of_its_points():
    data, x = torch.randn(9, 2, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    sigma = torch.rand(6, 1, dtype=torch.float64) + 0.1
    points = GaussianMixture(torch.ones(9, dtype=torch.float64), data, torch.zeros((), dtype=torch.float64))
    for chunk in (1, 4, 100):
        parzen = ParzenWindow(data, chunk)
        torch.testing.assert_close(parzen.log_prob(x, sigma), points.log_prob(x, sigma))
        torch.testing.assert_close(parzen.score(x, sigma), points.score(x, sigma))


def test_the_parzen_score_is_right_in_float32_at_small_noise_in_many_dimensions():
    data = torch.rand(50, 3, 32, 32)
    x = data[:8] + 0.01 * torch.randn(8, 3, 32, 32)
    sigma = torch.tensor(0.01)
    exact = ParzenWindow(data.double()).score(x.double(), sigma.double())
    error = ParzenWindow(data, chunk=16).score(x, sigma) - exact
    assert error.norm() / exact.norm() < 1e-4


@pytest.mark.slow
def test_a_whole_data_set_of_pictures_needs_the_memory_of_a_chunk():
    # 50,000 pictures are 0.6 GB as numbers; all of their differences from 16 others would be 10 GB.
    data = torch.rand(50_000, 3, 32, 32)
    x, sigma = data[:16] + 0.05 * torch.randn(16, 3, 32, 32), torch.tensor(0.05)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    score = ParzenWindow(data).score(x, sigma)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20 < 0.5
    # At this noise no other picture is as near as the one it was made from.
    torch.testing.assert_close(score, (data[:16] - x) / sigma**2, atol=1e-2, rtol=1e-3)


def test_the_parzen_score_draws_the_data_back():
    data = torch.rand(6, 2, 2)
    sigmas = torch.logspace(0, -2, 60)
    start = torch.rand(64, 2, 2) + torch.randn(64, 2, 2)
    *_, x = AnnealedLangevin(epsilon=0.1 * 1e-4, steps=10)(ParzenWindow(data).score, start, sigmas)
    distance = torch.cdist(x.flatten(1), data.flatten(1)).min(1)
    assert distance.values.max() < 1e-3
    assert len(distance.indices.unique()) == 6


def test_tweedie_with_the_exact_score_is_the_posterior_mean():
    density = mixture((1,))
    x, sigma = torch.tensor([[0.3]], dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    clean = torch.linspace(-15, 15, 200_001, dtype=torch.float64)
    prior = density.log_prob(clean.unsqueeze(1), torch.tensor(0.0)).exp()
    joint = prior * torch.exp(-((x[0] - clean) ** 2) / (2 * sigma**2))
    mean = torch.trapezoid(clean * joint, clean) / torch.trapezoid(joint, clean)
    assert tweedie(density.score, x, sigma).item() == pytest.approx(mean.item(), abs=1e-9)


def test_a_cube_counts_the_data_in_reach_and_has_no_score():
    data = torch.tensor([[0.0, 0.0], [0.3, 0.1], [2.0, 2.0]])
    window, x = HyperCubeWindow(data), torch.tensor([[0.1, 0.1], [2.2, 1.8], [9.0, 9.0]])
    expected = torch.tensor([2 / 3 / 0.25, 1 / 3 / 0.25, 0.0]).log()
    torch.testing.assert_close(window.log_prob(x, torch.tensor(0.5)), expected)
    with pytest.raises(NotImplementedError, match="piecewise constant"):
        window.score(x, torch.tensor(0.5))


def test_a_cube_estimates_the_density_of_the_data():
    x = torch.tensor([[0.0], [1.0]])
    estimate = HyperCubeWindow(torch.randn(200_000, 1)).log_prob(x, torch.tensor(0.2))
    exact = Gaussian(torch.zeros(1), torch.tensor(1.0)).log_prob(x, torch.tensor(0.0))
    torch.testing.assert_close(estimate, exact, atol=0.03, rtol=0)
