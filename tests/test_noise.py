import math
from itertools import pairwise

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from ncsn.noise import (
    GeometricSchedule,
    KarrasSchedule,
    LogNormalSchedule,
    distance_bounds,
    exact_steps,
    langevin_step_size,
    max_pairwise_distance,
    num_levels,
    variance_ratio,
)
from ncsn.noise.shapes import norm_per_example, sum_per_example
from ncsn.noise.techniques import matched_noise

KARRAS_18 = [80, 57.59, 40.79, 28.37, 19.35, 12.91, 8.40, 5.32, 3.26, 1.92]
KARRAS_18 += [1.088, 0.585, 0.296, 0.1395, 0.0599, 0.0229, 0.0075, 0.002]


def test_karras_ladder_is_the_published_one():
    sigmas = KarrasSchedule(sigma_max=80, sigma_min=0.002, levels=18).sigmas()
    torch.testing.assert_close(sigmas, torch.tensor(KARRAS_18), rtol=5e-3, atol=0)


def test_ncsn_ladders_are_the_published_ones():
    ncsn = GeometricSchedule(sigma_max=1, sigma_min=0.01, levels=10).sigmas()
    expected = [1, 0.5995, 0.3594, 0.2154, 0.1292, 0.0774, 0.0464, 0.0278, 0.0167, 0.01]
    torch.testing.assert_close(ncsn, torch.tensor(expected), rtol=2e-3, atol=0)
    ncsnv2 = GeometricSchedule(sigma_max=50, sigma_min=0.01, levels=232).sigmas()
    ratios = ncsnv2[:-1] / ncsnv2[1:]
    torch.testing.assert_close(ratios, torch.full((231,), 5000 ** (1 / 231)), rtol=1e-5, atol=0)


@given(
    st.floats(1e-4, 1e3),
    st.floats(1.01, 1e5),
    st.integers(2, 300),
    st.sampled_from([GeometricSchedule, KarrasSchedule]),
)
def test_ladders_fall_strictly_between_their_ends(sigma_min, ratio, levels, kind):
    sigmas = kind(sigma_max=sigma_min * ratio, sigma_min=sigma_min, levels=levels).sigmas()
    assert sigmas.dtype == torch.float32
    assert sigmas.shape == (levels,)
    assert sigmas[0].item() == pytest.approx(sigma_min * ratio, rel=1e-5)
    assert sigmas[-1].item() == pytest.approx(sigma_min, rel=1e-5)
    # Neighbours of a very fine ladder are told apart in float64 and may meet in float32.
    assert (sigmas.diff() <= 0).all()
    assert levels > 20 or (sigmas.diff() < 0).all()


def test_a_large_rho_tends_to_the_geometric_ladder():
    karras = KarrasSchedule(10, 0.01, 50, rho=1e4).sigmas()
    torch.testing.assert_close(karras, GeometricSchedule(10, 0.01, 50).sigmas(), rtol=5e-3, atol=0)


def test_one_level_is_allowed_where_the_ends_are_equal():
    schedule = GeometricSchedule(0.5, 0.5, 1)
    assert schedule.sigmas().tolist() == [0.5]
    assert (schedule.sample(torch.zeros(4, 2)) == 0.5).all()


@pytest.mark.parametrize("kind", [GeometricSchedule, KarrasSchedule])
def test_every_level_is_sampled_equally_often(kind):
    schedule = kind(1.0, 0.01, 10)
    sigma = schedule.sample(torch.zeros(50_000, 1, 2, 2))
    assert sigma.shape == (50_000, 1, 1, 1)
    nearest = (sigma.flatten()[:, None] - schedule.sigmas()).abs()
    assert nearest.min(1).values.max() < 1e-6
    counts = nearest.argmin(1).bincount(minlength=10)
    chi_square = ((counts - 5000) ** 2 / 5000).sum()
    assert chi_square < 30  # 9 degrees of freedom: 0.04 % of right programs fail, with another seed


def test_log_normal_levels_have_the_stated_moments():
    log_sigma = LogNormalSchedule(mean=-1.2, std=1.2).sample(torch.zeros(100_000, 3)).log()
    assert log_sigma.mean().item() == pytest.approx(-1.2, abs=4 * 1.2 / math.sqrt(100_000))
    assert log_sigma.std().item() == pytest.approx(1.2, abs=4 * 1.2 / math.sqrt(200_000))


def test_log_normal_draws_on_the_karras_ladder():
    schedule = LogNormalSchedule(sigma_max=40, sigma_min=0.001, levels=18)
    torch.testing.assert_close(schedule.sigmas() * 2, torch.tensor(KARRAS_18), rtol=5e-3, atol=0)
    assert LogNormalSchedule() == schedule
    assert torch.equal(LogNormalSchedule(rho=3).sigmas(), KarrasSchedule(40, 0.001, 18, rho=3).sigmas())


def test_the_default_log_normal_levels_are_half_of_those_of_images_of_twice_the_range():
    log_sigma = LogNormalSchedule().sample(torch.zeros(100_000, 3)).log()
    assert (log_sigma + math.log(2)).mean().item() == pytest.approx(-1.2, abs=4 * 1.2 / math.sqrt(100_000))


@pytest.mark.parametrize("schedule", [GeometricSchedule(1, 0.1, 5), LogNormalSchedule()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_level_has_the_dtype_of_the_data(schedule, dtype):
    assert schedule.sample(torch.zeros(3, 2, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        (
            {"sigma_max": 0.01, "sigma_min": 1, "levels": 10},
            "0 < sigma_min <= sigma_max, got sigma_min=1",
        ),
        ({"sigma_max": 1, "sigma_min": 0, "levels": 10}, "sigma_min=0"),
        ({"sigma_max": math.inf, "sigma_min": 0.1, "levels": 10}, "sigma_max=inf"),
        ({"sigma_max": math.nan, "sigma_min": 0.1, "levels": 10}, "sigma_max=nan"),
        ({"sigma_max": 1, "sigma_min": -0.1, "levels": 10}, "sigma_min=-0.1"),
        ({"sigma_max": 1, "sigma_min": 0.1, "levels": 0}, "levels=0"),
        ({"sigma_max": 1, "sigma_min": 0.1, "levels": 3.0}, "levels=3"),
        ({"sigma_max": 1, "sigma_min": 0.1, "levels": math.inf}, "levels=inf"),
        ({"sigma_max": 1, "sigma_min": 0.1, "levels": 10**9}, "levels=1000000000"),
        ({"sigma_max": 1, "sigma_min": 0.1, "levels": 1}, "one level"),
        ({"sigma_max": 1, "sigma_min": 1, "levels": 2}, "one level"),
    ],
)
@pytest.mark.parametrize("kind", [GeometricSchedule, KarrasSchedule, LogNormalSchedule])
def test_impossible_ladders_are_refused(kind, settings, field):
    with pytest.raises(ValueError, match=field):
        kind(**settings)


def test_the_length_of_an_example_is_its_own_whatever_its_shape():
    for shape in ((3,), (3, 4), (3, 2, 2, 2)):
        x = torch.randn(shape)
        expected = torch.stack([each.flatten().norm() for each in x])
        torch.testing.assert_close(norm_per_example(x), expected.view(3, *[1] * (len(shape) - 1)))


def test_an_empty_batch_has_no_sums_and_no_lengths():
    x = torch.randn(0, 3, 2)
    assert sum_per_example(x).shape == (0,)
    assert norm_per_example(x).shape == (0, 1, 1)


def test_impossible_distributions_are_refused():
    with pytest.raises(ValueError, match="std > 0, got std=0"):
        LogNormalSchedule(std=0)
    with pytest.raises(ValueError, match="mean=nan"):
        LogNormalSchedule(mean=math.nan)
    with pytest.raises(ValueError, match="rho=0"):
        KarrasSchedule(1, 0.1, 5, rho=0)


def brute_force(data):
    """The largest distance between two examples, over all of the pairs."""
    return torch.pdist(data.double().flatten(1)).max().item()


@given(st.integers(2, 60), st.integers(1, 5), st.sampled_from([1e-3, 1.0, 1e4]), st.integers(0, 2**31), st.booleans())
def test_the_largest_distance_is_that_of_all_pairs(count, dimension, scale, seed, sphere):
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(count, 1, dimension, generator=generator, dtype=torch.float64)
    if sphere:  # no example is farther out than another: of no pair is it known beforehand that it is not the farthest
        data = torch.nn.functional.normalize(data, dim=-1)
    data = scale * (data + 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ncsn.noise.techniques.CHUNK", 7 * dimension)
        bounds = list(distance_bounds(data))
    truth = brute_force(data)
    assert bounds[-1].exact
    assert bounds[-1].lower == pytest.approx(truth, rel=1e-5)
    for distance in bounds:
        assert distance.lower <= truth * (1 + 1e-12)
        assert distance.upper >= truth * (1 - 1e-5)
    assert all(later.upper <= earlier.upper for earlier, later in pairwise(bounds))


def test_a_search_that_is_broken_off_has_the_truth_between_its_bounds(monkeypatch):
    monkeypatch.setattr("ncsn.noise.techniques.CHUNK", 50 * 20)
    data = torch.nn.functional.normalize(torch.randn(1000, 20), dim=1)
    truth, widths = brute_force(data), []
    for operations in (0, 1e6, 1e12):
        distance = max_pairwise_distance(data, operations)
        assert distance.lower <= truth * (1 + 1e-6)
        assert distance.upper >= truth * (1 - 1e-6)
        widths.append(distance.upper - distance.lower)
        assert distance.exact == (operations == 1e12)
    assert widths[0] > widths[2] == 0


def test_distances_of_pixels_and_of_few_examples():
    pixels = torch.randint(0, 256, (300, 1, 4, 4), dtype=torch.uint8)
    assert max_pairwise_distance(pixels).lower == pytest.approx(brute_force(pixels))
    assert max_pairwise_distance(torch.tensor([3.0, 7.0, 4.0])).lower == 4
    for data in (torch.rand(1, 5), torch.ones(5, 5)):
        assert max_pairwise_distance(data).lower == 0
        assert max_pairwise_distance(data).exact


def test_data_without_a_distance_is_refused():
    with pytest.raises(ValueError, match="at least one example"):
        max_pairwise_distance(torch.zeros(0, 2))
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="expected finite data"):
            max_pairwise_distance(torch.tensor([[1.0, value], [2.0, 3.0]]))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "distance"), [("MNIST", 16.8758), ("FashionMNIST", 22.4561)])
def test_the_largest_distance_of_real_pictures(name, distance, real_data):
    pixels = getattr(torchvision.datasets, name)(real_data).data
    found = max_pairwise_distance(pixels)
    assert found.exact
    assert found.lower / 255 == pytest.approx(distance, abs=1e-4)
    for rows in torch.split(pixels[:12_000].flatten(1).float(), 4000):
        assert torch.cdist(rows, pixels.flatten(1).float()).max() <= found.lower * (1 + 1e-5)


@pytest.mark.parametrize(
    ("sigma_max", "dimension", "levels"), [(50, 3 * 32**2, 232), (90, 3 * 64**2, 500), (348, 3 * 256**2, 2311)]
)
def test_technique_2_gives_the_published_numbers_of_levels(sigma_max, dimension, levels):
    assert num_levels(sigma_max, 0.01, dimension) == levels


def test_levels_have_the_overlap_that_is_asked_for():
    gamma = torch.tensor((50 / 0.01) ** (1 / (num_levels(50, 0.01, 3072, overlap=0.5) - 1)), dtype=torch.float64)
    shift = math.sqrt(2 * 3072) * (gamma - 1)
    normal = torch.distributions.Normal(0, 1)
    assert (normal.cdf(shift + 3 * gamma) - normal.cdf(shift - 3 * gamma)).item() == pytest.approx(0.5, abs=3e-3)


def test_in_few_dimensions_the_ratio_of_levels_is_that_of_the_first_ladder():
    assert [num_levels(1, 0.01, dimension) for dimension in (1, 2, 26, 40)] == [10, 10, 10, 13]
    assert num_levels(1, 1, 2) == 1
    assert num_levels(1, 0.99, 2) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0.01, 1, 3), "sigma_min=1, sigma_max=0.01"),
        ((1, 0, 3), "sigma_min=0"),
        ((math.inf, 1, 3), "sigma_max=inf"),
        ((1, 0.1, 3, 1.0), "overlap=1.0"),
    ],
)
def test_impossible_numbers_of_levels_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        num_levels(*settings)


@pytest.mark.parametrize(
    ("ladder", "steps", "epsilon"),
    [((50, 0.01, 232), 5, 6.18e-6), ((90, 0.01, 500), 5, 3.34e-6), ((348, 0.01, 2311), 3, 8.9e-7)],
)
def test_technique_4_gives_the_published_step_sizes(ladder, steps, epsilon):
    assert langevin_step_size(GeometricSchedule(*ladder).sigmas(), steps) == pytest.approx(epsilon, rel=5e-3)


@given(st.floats(1.001, 3), st.integers(2, 50), st.floats(0.01, 10))
def test_one_step_a_level_has_its_size_in_closed_form(gamma, levels, sigma_min):
    # r = (1 - eta)^2 gamma^2 + 2 eta is least at eta = 1 - 1 / gamma^2.
    sigmas = sigma_min * gamma ** torch.arange(levels - 1, -1, -1, dtype=torch.float64)
    expected = sigma_min**2 * (1 - gamma**-2)
    assert langevin_step_size(sigmas, 1) == pytest.approx(expected, rel=1e-4)


@given(st.integers(2, 500), st.integers(1, 200), st.sampled_from([GeometricSchedule, KarrasSchedule]))
def test_no_other_step_size_keeps_the_variance_better(levels, steps, kind):
    sigmas = kind(5, 0.01, levels).sigmas()
    best = langevin_step_size(sigmas, steps)
    least = variance_ratio(sigmas, steps, best)
    assert least >= 1
    others = torch.logspace(-9, -4 - 1e-6, 5000, dtype=torch.float64)
    assert (variance_ratio(sigmas, steps, others) >= least - 1e-12).all()


def variances(extent, sigmas, steps, eta, q):
    """The variance after each level of steps x + eta sigma^2 score + sqrt(q) sigma z, on data of variance `extent`."""
    v, found = extent + sigmas[0] ** 2, []
    for sigma, noise in zip(sigmas, q, strict=True):
        for _ in range(steps):
            v = (1 - eta * sigma**2 / (extent + sigma**2)) ** 2 * v + noise * sigma**2
        found.append(v)
    return torch.stack(found)


@given(st.integers(2, 60), st.integers(1, 20), st.sampled_from([GeometricSchedule, KarrasSchedule]))
def test_exact_steps_end_each_level_with_the_variance_of_its_noise(levels, steps, kind):
    sigmas = kind(5, 0.02, levels).sigmas().double()
    eta, q = exact_steps(sigmas, steps)
    assert 0 < eta <= 1
    assert (q >= 0).all()
    torch.testing.assert_close(variances(0.0, sigmas, steps, eta, q), sigmas**2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 1.0], [1.0, 2.0], [1.0, 0.0]])
def test_exact_steps_need_levels_that_fall(sigmas):
    with pytest.raises(ValueError, match="two noise levels or more, from high to low"):
        exact_steps(torch.tensor(sigmas), 5)


@pytest.mark.parametrize(("levels", "steps"), [(20, 5), (100, 1), (10, 10), (232, 5), (20, 50)])
def test_exact_steps_draw_gaussians_of_any_width(levels, steps):
    sigmas = GeometricSchedule(5, 0.02, levels).sigmas().double()
    eta, q = exact_steps(sigmas, steps)
    for std, error in ((0.1, 0.03), (0.2, 0.03), (0.1**0.5, 1e-5), (0.5, 0.03), (1.0, 0.03)):
        last = variances(std**2, sigmas, steps, eta, q)[-1]
        assert last.item() == pytest.approx(std**2 + sigmas[-1].item() ** 2, rel=error), std


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_auto_tends_to_the_sde_with_eta_2_t_plus_1(steps):
    errors = []
    for levels in (1001, 10_001):
        sigmas = GeometricSchedule(16.9, 0.01, levels).sigmas().double()
        h = math.log(16.9 / 0.01) / (levels - 1)
        size, q = exact_steps(sigmas, steps)
        drift, noise = steps * size / h, steps * q[1:].mean().item() / h  # of the SDE: 1 + eta, and 2 eta
        errors.append((drift - (2 * steps + 2), noise - 2 * (2 * steps + 1)))
    for coarse, fine in zip(*errors, strict=True):
        assert abs(coarse) < 0.3 * steps
        assert fine == pytest.approx(coarse / 10, rel=0.3)  # of first order in h


@given(st.floats(0.1, 10), st.floats(1, 8), st.integers(1, 10))
def test_the_variance_errs_in_second_order_but_for_one_size_of_the_steps(std, b, steps):
    h, sigma = 1e-4, 1.0
    sigmas = torch.tensor([sigma * math.exp(h), sigma], dtype=torch.float64)
    q = matched_noise(sigmas, steps, torch.tensor([b * h], dtype=torch.float64))[1].item()
    total, v = std**2 + sigma**2, std**2 + sigmas[0].item() ** 2
    for _ in range(steps):
        v = (1 - b * h * sigma**2 / total) ** 2 * v + q * sigma**2
    c_skip = std**2 / total
    expected = steps * c_skip * (1 - c_skip) * ((2 + 2 / steps) * b - b**2)
    assert (v / total - 1) / h**2 == pytest.approx(expected, abs=0.002 * (steps * b) ** 2 + 1e-4)


def test_the_variance_ratio_is_that_of_a_walk():
    # Langevin on N(0, sigma_i^2) from the level before: v <- (1 - eta)^2 v + 2 eta sigma_i^2, each level in its turn.
    sigmas, steps, epsilon = KarrasSchedule(2, 0.1, 7).sigmas().double(), 4, 2e-3
    ratios = []
    for before, sigma in pairwise(sigmas):
        alpha, variance = epsilon * sigma**2 / sigmas[-1] ** 2, before**2
        for _ in range(steps):
            variance = (1 - alpha / sigma**2) ** 2 * variance + 2 * alpha
        ratios.append(variance / sigma**2)
    assert variance_ratio(sigmas, steps, epsilon).item() == pytest.approx(torch.stack(ratios).mean().item())
    ncsn = variance_ratio(GeometricSchedule(1, 0.01, 10).sigmas(), 100, 2e-5)
    assert ncsn.item() == pytest.approx(1.111, abs=1e-3)
