import math

import pytest
import torch
from ncsn.networks import MLP
from ncsn.noise import GeometricSchedule
from ncsn.score import EnergyScore, NCSNDenoiser, likelihood
from ncsn.score.densities import Gaussian, GaussianMixture
from ncsn.score.likelihood import bits_per_dim, log_prob
from ncsn.score.toys import TwoMoons
from torch import nn
from torch.distributions import MultivariateNormal
from torch.utils._python_dispatch import TorchDispatchMode

MIN, MAX = 0.01, 1000.0
LOW = torch.tensor(MIN, dtype=torch.float64)


def mixture():
    return GaussianMixture(
        torch.tensor([0.2, 0.5, 0.3]),
        torch.tensor([[-2.0, 1.0], [1.0, 0.0], [2.0, -3.0]]),
        torch.tensor([[0.3, 0.5], [0.6, 0.2], [0.1, 0.8]]),
    )


class Correlated:
    """A Gaussian of 16 dimensions, none of them independent of the others."""

    def __init__(self):
        root = torch.randn(16, 16, dtype=torch.float64) / 4
        self.mean = torch.randn(16, dtype=torch.float64)
        self.covariance = root @ root.T + 0.05 * torch.eye(16, dtype=torch.float64)

    def blurred(self, sigma):
        return self.covariance + sigma**2 * torch.eye(16, dtype=torch.float64)

    def score(self, x, sigma):
        return torch.linalg.solve(self.blurred(sigma), (self.mean - x).T).T

    def at(self, sigma):
        return MultivariateNormal(self.mean, self.blurred(sigma))


class Watched:
    """A score that keeps the noise levels at which it was asked."""

    def __init__(self, score):
        self.score, self.sigmas = score, []

    def __call__(self, x, sigma):
        self.sigmas.append(sigma.item())
        return self.score(x, sigma)


def gaussian(shape=(2,)):
    return Gaussian(torch.full(shape, 0.3), torch.tensor(0.7))


@pytest.mark.parametrize("density", [gaussian(), mixture(), TwoMoons()], ids=lambda density: type(density).__name__)
def test_the_flow_finds_the_density_of_the_data_at_sigma_min(density):
    x = torch.cat([density.sample(40, MIN), 2 * torch.randn(10, 2)]).double()
    found = log_prob(density.score, x, MIN, MAX)
    assert (found - density.log_prob(x, LOW)).abs().max() < 0.01


def test_it_is_the_density_at_sigma_min_and_not_at_zero():
    density, x = mixture(), mixture().sample(20).double()
    for sigma_min in (0.05, 0.5, 2.0):
        expected = density.log_prob(x, torch.tensor(sigma_min).double())
        torch.testing.assert_close(log_prob(density.score, x, sigma_min, MAX), expected, atol=5e-3, rtol=0)


def test_a_correlated_gaussian():
    density = Correlated()
    x = density.at(MIN).sample((30,))
    expected = density.at(MIN).log_prob(x)
    torch.testing.assert_close(log_prob(density.score, x, MIN, 2000.0), expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3, 2)])
def test_any_shape_of_an_example(shape):
    x = torch.randn(7, *shape, dtype=torch.float64)

    def score(x, sigma):
        return (0.3 - x) / (0.49 + sigma**2)

    found = log_prob(score, x, MIN, 3.0, prior=(0.3, 0.7))
    terms = -((x - 0.3) ** 2 / (0.49 + MIN**2) + math.log(2 * math.pi * (0.49 + MIN**2))) / 2
    torch.testing.assert_close(found, terms.reshape(7, -1).sum(1), atol=1e-3, rtol=0)


def test_the_prior_is_the_one_that_was_asked_for():
    # At a small sigma_max it matters: x_end is known for a Gaussian, and so is what a wrong prior says of it.
    x = gaussian().sample(20, MIN).double()
    end = 0.3 + (x - 0.3) * math.sqrt((0.49 + 4) / (0.49 + MIN**2))
    right = gaussian().log_prob(x, LOW)
    at_end = gaussian().log_prob(end, torch.tensor(2.0).double())
    for mean, std in [(0.0, 0.0), (0.3, 0.0), (-1.0, 2.0), (0.3, 0.7)]:
        prior = Gaussian(torch.full((2,), mean), torch.tensor(std)).log_prob(end, torch.tensor(2.0).double())
        found = log_prob(gaussian().score, x, MIN, 2.0, prior=(mean, std))
        torch.testing.assert_close(found, right + prior - at_end, atol=1e-3, rtol=0)
    torch.testing.assert_close(log_prob(gaussian().score, x, MIN, 2.0), log_prob(gaussian().score, x, MIN, 2.0, (0, 0)))


def test_the_bias_of_the_plain_prior_is_within_its_bound():
    density = mixture()
    x = density.sample(2000, MIN).double()
    lost = (density.log_prob(x, LOW) - log_prob(density.score, x, MIN, 10.0)).mean()
    clean = density.clean(20_000)
    assert 0.001 < lost < clean.square().sum(1).mean() / 200


def test_any_score_makes_a_density_that_adds_up_to_one():
    # With a rotation, no gradient of anything: only the divergence with the right sign and factor adds up to one.
    def score(x, sigma):
        return -x / (0.5 + sigma**2) + torch.stack([-x[:, 1], 2 * x[:, 0].sin()], dim=1) / (1 + sigma**3)

    line = torch.linspace(-12, 12, 97)
    found = log_prob(score, torch.cartesian_prod(line, line), 0.1, 10.0, rtol=1e-4, atol=1e-4)
    assert (found.exp().sum() * (line[1] - line[0]) ** 2).item() == pytest.approx(1, abs=2e-3)


def test_probes_are_unbiased_for_the_exact_divergence():
    density = Correlated()
    one = density.at(MIN).sample()
    exact = log_prob(density.score, one.unsqueeze(0), MIN, 50.0)
    spread = {}
    for probes in (1, 8):
        found = log_prob(density.score, one.expand(3000, 16), MIN, 50.0, probes=probes)
        spread[probes] = found.std()
        assert abs(found.mean() - exact) < 4 * found.std() / math.sqrt(3000)
    assert spread[1] > 0.1
    assert spread[8] == pytest.approx(spread[1].item() / math.sqrt(8), rel=0.1)


def test_probes_are_drawn_once_and_cost_no_more_steps():
    counts = []
    for probes in (0, 3):
        score = Watched(Correlated().score)
        log_prob(score, torch.randn(4, 16, dtype=torch.float64), MIN, 50.0, probes=probes)
        counts.append(len(score.sigmas))
    assert counts[1] < 1.3 * counts[0] < 400


@pytest.mark.parametrize(("low", "high"), [(0.01, 50.0), (0.5, 0.6), (0.001, 0.0011)])
def test_the_score_is_asked_within_the_noise_levels_alone(low, high):
    score = Watched(gaussian().score)
    log_prob(score, torch.randn(3, 2), low, high)
    assert low == pytest.approx(min(score.sigmas), rel=1e-6)
    assert high == pytest.approx(max(score.sigmas), rel=1e-6)
    assert max(score.sigmas) <= high * (1 + 1e-6)


def test_float32_and_float64_agree_and_keep_their_type():
    density = TwoMoons()
    x = density.sample(50, MIN)
    single, double = log_prob(density.score, x, MIN, MAX), log_prob(density.score, x.double(), MIN, MAX)
    assert single.dtype == torch.float32
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, atol=3e-3, rtol=0)


def test_tolerances_are_heeded():
    density, x = mixture(), mixture().sample(30, MIN).double()
    exact = log_prob(density.score, x, MIN, MAX, rtol=1e-9, atol=1e-9)
    errors, counts = [], []
    for tolerance in (1e-3, 1e-5, 1e-7):
        score = Watched(density.score)
        errors.append((log_prob(score, x, MIN, MAX, rtol=tolerance, atol=tolerance) - exact).abs().max())
        counts.append(len(score.sigmas))
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert counts[0] < counts[1] < counts[2]


def test_an_example_has_the_result_it_has_alone():
    density = mixture()
    # One that is easy, one in a narrow place; with companions that are many, or far away.
    x = torch.tensor([[1.0, 0.0], [2.05, -2.0], [-0.4, 0.4]]).double()
    alone = torch.cat([log_prob(density.score, one.unsqueeze(0), MIN, MAX) for one in x])
    for others in (torch.zeros(200, 2), 2 * torch.randn(100, 2), torch.tensor([[6.0, -6.0]])):
        found = log_prob(density.score, torch.cat([x, others.double()]), MIN, MAX)[: len(x)]
        torch.testing.assert_close(found, alone, atol=1e-3, rtol=0)


def test_one_hard_example_is_not_hidden_among_easy_ones():
    # Between two narrow modes the flow turns sharply; a mean over the batch would lose that one error in a thousand.
    density = GaussianMixture(torch.ones(2), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.tensor(0.05))
    easy = torch.tensor([1.0, 0.0]).expand(3000, 2)
    x = torch.cat([torch.tensor([[0.02, 0.0]]), easy]).double()
    found = log_prob(density.score, x, 0.05, MAX)[0]
    assert found.item() == pytest.approx(density.log_prob(x[:1], torch.tensor(0.05).double()).item(), abs=0.01)


def test_no_graph_is_left_and_none_is_needed():
    model = NCSNDenoiser(MLP(2, 16, 2))
    energy = EnergyScore(lambda x, sigma: (x**2 / (2 + 2 * sigma**2)).flatten(1).sum(1))
    for score in (model.score, energy):
        x = torch.randn(4, 2, requires_grad=True)
        found = log_prob(score, x, MIN, 5.0, rtol=1e-3, atol=1e-3)
        assert not found.requires_grad
        assert found.grad_fn is None
        with torch.no_grad():
            torch.testing.assert_close(log_prob(score, x, MIN, 5.0, rtol=1e-3, atol=1e-3), found)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    bits = bits_per_dim(model.score, torch.ones(2, 2), MIN, 5.0, rtol=1e-3, atol=1e-3)
    assert not bits.requires_grad


def test_an_empty_batch_has_no_results():
    assert log_prob(gaussian().score, torch.zeros(0, 2), MIN, MAX).shape == (0,)


def test_bits_per_dim_of_noise_under_a_wide_density():
    density = Gaussian(torch.full((3, 2, 2), 0.5), torch.tensor(3.0))
    x = torch.randint(256, (200, 3, 2, 2)) / 255
    found = bits_per_dim(density.score, x, MIN, MAX, prior=(0.5, 3.0), probes=0)
    assert found.shape == (200,)
    # E (u - 1/2)^2 is 1/12 for u uniform in [0, 1].
    expected = (math.log(2 * math.pi * 9) + 1 / 12 / 9) / 2 / math.log(2) + 8
    assert found.mean().item() == pytest.approx(expected, abs=1e-3)


def test_bits_per_dim_spreads_a_pixel_over_its_256th():
    # A density about as narrow as a pixel: at the middle of the spread value, and one of its width is heeded.
    std, sigma_min, value = 0.002, 0.0005, 100
    density = Gaussian(torch.full((4,), (value + 0.5) / 256), torch.tensor(std))
    found = bits_per_dim(
        density.score, torch.full((4000, 4), value / 255), sigma_min, 2.0, (100.5 / 256, std), probes=0
    )
    variance = std**2 + sigma_min**2
    expected = (math.log(2 * math.pi * variance) + 1 / 12 / 256**2 / variance) / 2 / math.log(2) + 8
    assert found.mean().item() == pytest.approx(expected, abs=4 * found.std().item() / math.sqrt(4000))
    assert found.std() > 0.05


def test_bits_per_dim_hands_on_its_settings():
    density = gaussian((12,))
    x = torch.randint(256, (50, 12)) / 255
    exact = bits_per_dim(density.score, x, MIN, 2.0, (0.3, 0.7), probes=0)
    probed = bits_per_dim(density.score, x, MIN, 2.0, (0.3, 0.7))
    other = bits_per_dim(density.score, x, MIN, 2.0, probes=0)
    assert (exact - probed).abs().max() < 0.02
    assert (exact - other).abs().max() > 0.02


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.tensor([[0.5, 1.0]]), r"expected 8-bit values k/255, not dequantised, got 0.5 \(x\)"),
        (torch.tensor([[200.0, 1.0]]), r"expected 8-bit values k/255, not dequantised, got 200 \(x\)"),
        (torch.tensor([[0.0, -1.0]]), r"expected 8-bit values k/255, not dequantised, got -1 \(x\)"),
    ],
)
def test_bits_per_dim_refuses_what_is_no_picture(x, message):
    with pytest.raises(ValueError, match=message) as error:
        bits_per_dim(gaussian().score, x, MIN, MAX)
    assert "\n" not in str(error.value)


def test_a_score_that_is_not_finite_is_named(monkeypatch):
    with pytest.raises(RuntimeError, match=r"NaN or infinite at sigma 0.01; check the score"):
        log_prob(lambda x, sigma: x / 0, torch.ones(2, 2), MIN, MAX)
    monkeypatch.setattr(likelihood, "MAX_EVALUATIONS", 20)
    with pytest.raises(RuntimeError, match=r"after 20 evaluations of the score; raise rtol .1e-05."):
        log_prob(mixture().score, torch.ones(2, 2), MIN, MAX)


def test_the_levels_of_a_schedule_are_all_it_takes():
    schedule = GeometricSchedule(MAX, MIN, 10)
    x = gaussian().sample(5, MIN)
    found = log_prob(gaussian().score, x, schedule.sigma_min, schedule.sigma_max)
    torch.testing.assert_close(found, gaussian().log_prob(x, torch.tensor(MIN)), atol=0.01, rtol=0)


def test_a_module_is_a_score_too():
    class Exact(nn.Module):
        def forward(self, x, sigma):
            return gaussian().score(x, sigma)

    assert log_prob(Exact(), torch.zeros(1, 2), MIN, MAX).item() == pytest.approx(
        gaussian().log_prob(torch.zeros(1, 2), torch.tensor(MIN)).item(), abs=0.01
    )


class NoFloat64(TorchDispatchMode):
    """A device without float64, such as Apple's GPUs."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        assert not (isinstance(out, torch.Tensor) and out.dtype == torch.float64), f"{function} made float64"
        return out


def test_a_device_without_float64_needs_none_for_the_likelihood(monkeypatch):
    assert likelihood.finest_dtype(torch.device("mps")) == torch.float32
    assert likelihood.finest_dtype(torch.device("cuda")) == torch.float64
    monkeypatch.setattr(likelihood, "finest_dtype", lambda device: torch.float32)
    x = torch.tensor([[0.1, -0.4], [1.0, 0.5]])
    with NoFloat64():
        found = log_prob(gaussian().score, x, MIN, MAX)
    torch.testing.assert_close(found, gaussian().log_prob(x, torch.tensor(MIN)), atol=1e-3, rtol=0)
