import math

import pytest
import torch
from ncsn.noise import GeometricSchedule, exact_steps, langevin_step_size
from ncsn.samplers import AnnealedLangevin, Langevin, MetropolisAdjustedLangevin

from conftest import gaussian_score, mixture_score

LADDER = GeometricSchedule(5, 0.05, 40).sigmas()
SAMPLER = AnnealedLangevin(epsilon=0.05 * 0.05**2, steps=80)


def last(frames):
    *_, x = frames
    return x


def test_a_gaussian_is_drawn_with_its_mean_and_std():
    start = 5 * torch.randn(40_000, 1)
    x = last(SAMPLER(gaussian_score(0.3, 0.7), start, LADDER))
    assert x.mean().item() == pytest.approx(0.3, abs=4 * 0.7 / math.sqrt(40_000))
    assert x.std().item() == pytest.approx(0.7, rel=0.03)


def test_two_modes_are_drawn_with_their_weights():
    start = 5 * torch.randn(20_000, 1)
    x = last(SAMPLER(mixture_score([0.8, 0.2], [-1.0, 1.0], 0.1), start, LADDER))
    assert (x < 0).float().mean().item() == pytest.approx(0.8, abs=0.02)
    for mode in (x[x < 0] + 1, x[x > 0] - 1):
        assert mode.mean().item() == pytest.approx(0, abs=0.01)
        assert mode.std().item() == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize("alpha", [0.05, 0.4])
@pytest.mark.parametrize("kind", [Langevin, AnnealedLangevin])
def test_one_level_settles_at_the_stationary_variance_of_euler_maruyama(kind, alpha):
    # On N(0, v) the step is linear, and its variance settles at v / (1 - alpha / (2 v)): with half the step, or with
    # noise of another size, it would settle elsewhere.
    sigma, v = torch.tensor([0.6]), 0.8**2 + 0.6**2
    sampler = kind(alpha, 300, **({"denoise": False} if kind is AnnealedLangevin else {}))
    x = last(sampler(gaussian_score(0.0, 0.8), torch.zeros(40_000, 1), sigma))
    assert x.var().item() == pytest.approx(v / (1 - alpha / (2 * v)), rel=4 * math.sqrt(2 / 40_000))


def log_normal(x, sigma):
    """log N(x; 0, 0.8^2 + sigma^2) up to a constant."""
    return -x.square().flatten(1).sum(1) / (2 * (0.8**2 + sigma**2))


@pytest.mark.parametrize("alpha", [0.05, 0.4, 0.9])
def test_metropolis_takes_the_bias_away(alpha):
    v = 0.8**2 + 0.6**2
    sampler = MetropolisAdjustedLangevin(alpha, 300, log_normal)
    x = last(sampler(gaussian_score(0.0, 0.8), torch.zeros(40_000, 1), torch.tensor([0.6])))
    assert x.mean().item() == pytest.approx(0, abs=4 * math.sqrt(v / 40_000))
    assert x.var().item() == pytest.approx(v, rel=4 * math.sqrt(2 / 40_000))


def test_fewer_proposals_are_accepted_as_the_step_grows():
    start = 0.8 * torch.randn(20_000, 2, 2)
    rates = []
    for alpha in (1e-4, 0.1, 0.3, 1.0, 2.0):
        x = last(MetropolisAdjustedLangevin(alpha, 1, log_normal)(gaussian_score(0.0, 0.8), start, torch.zeros(1)))
        moved = (x != start).flatten(1)
        assert torch.equal(moved.any(1), moved.all(1))  # an example moves as a whole
        rates.append(moved.all(1).float().mean().item())
    assert rates[0] > 0.999
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.5


def test_the_step_is_epsilon_at_the_lowest_level_and_grows_with_sigma_squared():
    # Without noise to speak of and a score of one, the state moves by alpha a step.
    epsilon, start, ladder = 1e-4, torch.zeros(1, 1, dtype=torch.float64), LADDER.double()
    sampler = AnnealedLangevin(epsilon, steps=3, denoise=False)
    frames = list(sampler(lambda x, sigma: 1e9 + 0 * x, start, ladder))
    moves = torch.cat([start, *frames]).diff(dim=0).flatten() / 3e9
    torch.testing.assert_close(moves, epsilon * (ladder / ladder[-1]) ** 2, rtol=1e-6, atol=0)


def test_one_frame_a_level_and_the_published_number_of_network_calls():
    calls = []

    def score(x, sigma):
        calls.append(sigma)
        return -x / (1 + sigma**2)

    sigmas = GeometricSchedule(50, 0.01, 232).sigmas()
    frames = list(AnnealedLangevin(6.2e-6, 5)(score, torch.rand(1, 1), sigmas))
    assert (len(frames), len(calls)) == (232, 1161)
    calls.clear()
    list(AnnealedLangevin(2e-5, 100, denoise=False)(score, torch.rand(1, 1), GeometricSchedule(1, 0.01, 10).sigmas()))
    assert len(calls) == 1000
    torch.testing.assert_close(torch.stack(calls[::100]), GeometricSchedule(1, 0.01, 10).sigmas())


def test_the_last_frame_is_the_posterior_mean():
    score = gaussian_score(0.3, 0.7)
    frames = []
    for denoise in (False, True):
        torch.manual_seed(0)
        frames.append(last(AnnealedLangevin(1e-4, 2, denoise)(score, torch.zeros(5, 2), LADDER)))
    torch.testing.assert_close(frames[1], frames[0] + LADDER[-1] ** 2 * score(frames[0], LADDER[-1]))


def test_frames_and_start_are_never_written_to_again():
    start = torch.zeros(4, 2)
    frames, copies = [], []
    for x in SAMPLER(gaussian_score(0.3, 0.7), start, LADDER):
        frames.append(x)
        copies.append(x.clone())
    assert all(torch.equal(frame, copy) for frame, copy in zip(frames, copies, strict=True))
    assert not start.any()


def test_the_state_keeps_its_dtype_and_no_graph():
    weight = torch.ones(1, requires_grad=True)
    x = last(SAMPLER(lambda x, sigma: -weight * x, torch.zeros(4, 2), LADDER.double()))
    assert x.dtype == torch.float32
    assert not x.requires_grad


def test_an_unstable_step_is_refused_with_the_limit():
    sampler = AnnealedLangevin(epsilon=2e-4, steps=1)
    with pytest.raises(ValueError, match=r"2 sigma_min\^2 = 0.0002, .* got epsilon=0.0002"):
        sampler.check(torch.tensor([1.0, 0.01]))
    sampler.check(torch.tensor([1.0, 0.0101]))


@pytest.mark.parametrize("ladder", [(50, 0.01, 232), (5, 0.05, 40)])
def test_an_automatic_step_has_the_size_and_the_noise_that_are_exact(ladder):
    sigmas, score = GeometricSchedule(*ladder).sigmas(), gaussian_score(0.3, 0.7)
    auto = AnnealedLangevin("auto", 5, denoise=False)
    torch.manual_seed(0)
    x = last(auto(score, torch.zeros(9, 2), sigmas))
    torch.manual_seed(0)
    eta, q = exact_steps(sigmas, 5)
    expected = torch.zeros(9, 2)
    for sigma, variance in zip(sigmas, q, strict=True):
        for _ in range(5):
            z = torch.randn(9, 2)
            expected = expected + eta * sigma**2 * score(expected, sigma) + sigma * variance.sqrt().float() * z
    torch.testing.assert_close(x, expected)
    auto = AnnealedLangevin("auto", 5)
    auto.check(sigmas)
    assert repr(auto) == "AnnealedLangevin(epsilon='auto', steps=5, denoise=True)"


@pytest.mark.parametrize(("levels", "steps"), [(20, 5), (100, 1), (10, 10)])
@pytest.mark.parametrize("std", [0.2, 1.0])
def test_automatic_steps_draw_gaussians_of_any_width_where_technique_4_is_too_noisy(levels, steps, std):
    sigmas = GeometricSchedule(5, 0.02, levels).sigmas()
    found = []
    for epsilon in ("auto", langevin_step_size(sigmas, steps)):
        x = last(AnnealedLangevin(epsilon, steps)(gaussian_score(0.3, std), 5 * torch.randn(40_000, 1), sigmas))
        found.append(x.var().item() / std**2)
    assert found[0] == pytest.approx(1, abs=0.05)
    assert found[1] > 1.1


def test_an_automatic_step_is_refused_where_there_is_one_level():
    with pytest.raises(ValueError, match="two noise levels or a number for epsilon, got epsilon='auto'"):
        AnnealedLangevin("auto", 5).check(torch.tensor([0.5]))
    with pytest.raises(ValueError, match="expected epsilon > 0, got epsilon='fast'"):
        AnnealedLangevin("fast", 5)


@pytest.mark.parametrize(("epsilon", "steps", "field"), [(0, 1, "epsilon"), (math.nan, 1, "epsilon"), (1, 0, "steps")])
def test_impossible_settings_are_refused(epsilon, steps, field):
    with pytest.raises(ValueError, match=field):
        AnnealedLangevin(epsilon, steps)
