import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ncsn.noise import GeometricSchedule, KarrasSchedule, LogNormalSchedule

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


@pytest.mark.parametrize("schedule", [GeometricSchedule(1, 0.1, 5), LogNormalSchedule()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_level_has_the_dtype_of_the_data(schedule, dtype):
    assert schedule.sample(torch.zeros(3, 2, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"sigma_max": 0.01, "sigma_min": 1, "levels": 10}, "sigma_min .* is above sigma_max"),
        ({"sigma_max": 1, "sigma_min": 0, "levels": 10}, "sigma_min is 0"),
        ({"sigma_max": math.inf, "sigma_min": 0.1, "levels": 10}, "sigma_max is inf"),
        ({"sigma_max": math.nan, "sigma_min": 0.1, "levels": 10}, "sigma_max is nan"),
        ({"sigma_max": 1, "sigma_min": -0.1, "levels": 10}, "sigma_min is -0.1"),
        ({"sigma_max": 1, "sigma_min": 0.1, "levels": 0}, "levels is 0"),
        ({"sigma_max": 1, "sigma_min": 0.1, "levels": 10**9}, "levels is 1000000000"),
        ({"sigma_max": 1, "sigma_min": 0.1, "levels": 1}, "one level"),
        ({"sigma_max": 1, "sigma_min": 1, "levels": 2}, "one level"),
    ],
)
@pytest.mark.parametrize("kind", [GeometricSchedule, KarrasSchedule, LogNormalSchedule])
def test_impossible_ladders_are_refused(kind, settings, field):
    with pytest.raises(ValueError, match=field):
        kind(**settings)


def test_impossible_distributions_are_refused():
    with pytest.raises(ValueError, match="std is 0"):
        LogNormalSchedule(std=0)
    with pytest.raises(ValueError, match="mean is nan"):
        LogNormalSchedule(mean=math.nan)
    with pytest.raises(ValueError, match="rho is 0"):
        KarrasSchedule(1, 0.1, 5, rho=0)
