import pytest
import torch
from ncsn.score import EDMDenoiser, NCSNDenoiser, tweedie
from torch import Tensor, nn

from conftest import gaussian_score

MEAN, STD = 0.3, 0.7


def exact_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """E[clean | x] for clean data N(MEAN, STD^2)."""
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


class ExactNCSN(nn.Module):
    """The F whose NCSNDenoiser is exact, worked out from the network's own inputs."""

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
        sigma = c_noise.exp()
        return (exact_denoiser(x, sigma) - x) / sigma


class ExactEDM(nn.Module):
    """The F whose EDMDenoiser(data_mean=0.5, data_std=0.25) is exact."""

    def forward(self, scaled: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
        sigma = (4 * c_noise).exp()
        total = (sigma**2 + 0.25**2).sqrt()
        x = scaled * total + 0.5
        return (exact_denoiser(x, sigma) - 0.5 - 0.25**2 / total**2 * (x - 0.5)) / (sigma * 0.25 / total)


DENOISERS = [NCSNDenoiser(ExactNCSN()), EDMDenoiser(ExactEDM(), data_mean=0.5, data_std=0.25)]


@pytest.mark.parametrize("denoiser", DENOISERS)
@pytest.mark.parametrize("shape", [(5, 2), (5, 3, 4, 4)])
def test_score_is_exact_where_the_network_is(denoiser, shape):
    x = torch.randn(shape, dtype=torch.float64)
    for sigma in torch.tensor([0.01, 0.5, 50.0], dtype=torch.float64):
        for level in (sigma, sigma.expand(5, *[1] * (len(shape) - 1))):
            torch.testing.assert_close(denoiser(x, level), exact_denoiser(x, sigma))
            torch.testing.assert_close(denoiser.score(x, level), gaussian_score(MEAN, STD)(x, sigma))


@pytest.mark.parametrize("denoiser", DENOISERS)
def test_score_keeps_its_precision_in_float32(denoiser):
    x, sigma = torch.rand(100, 3), torch.tensor(0.01)
    exact = gaussian_score(MEAN, STD)(x, sigma)
    assert (denoiser.score(x, sigma) - exact).norm() / exact.norm() < 0.02


def test_tweedie_inverts_the_score():
    x, sigma = torch.randn(7, 2, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    torch.testing.assert_close(tweedie(gaussian_score(MEAN, STD), x, sigma), exact_denoiser(x, sigma))


def test_edm_scalings_are_table_1_of_karras():
    c_skip, c_out, c_in, c_noise = EDMDenoiser(nn.Identity(), data_std=0.5).scalings(torch.tensor(2.0))
    assert c_skip.item() == pytest.approx(0.25 / 4.25)
    assert c_out.item() == pytest.approx(2 * 0.5 / 4.25**0.5)
    assert c_in.item() == pytest.approx(1 / 4.25**0.5)
    assert c_noise.item() == pytest.approx(0.6931472 / 4)


@pytest.mark.parametrize("sigma", [0.02, 0.4, 30.0])
def test_the_input_and_the_target_of_edms_network_have_unit_variance(sigma):
    x, z = 2 + 0.4 * torch.randn(100_000, dtype=torch.float64), torch.randn(100_000, dtype=torch.float64)
    denoiser = EDMDenoiser(nn.Identity(), data_mean=2, data_std=0.4)
    c_skip, c_out, c_in, _ = denoiser.scalings(torch.tensor(sigma, dtype=torch.float64))
    noisy = x + sigma * z
    assert (c_in * (noisy - 2)).var().item() == pytest.approx(1, abs=0.02)
    assert ((x - 2 - c_skip * (noisy - 2)) / c_out).var().item() == pytest.approx(1, abs=0.02)


def test_ncsn_scalings_make_the_score_the_network_over_sigma():
    class Constant(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
            return torch.full_like(x, 3.0)

    score = NCSNDenoiser(Constant()).score(torch.zeros(2, 2), torch.tensor(0.5))
    torch.testing.assert_close(score, torch.full((2, 2), 6.0))


@pytest.mark.parametrize("sigma", [0.02, 0.4, 30.0])
def test_the_input_of_ncsns_network_has_the_deviation_of_the_data_if_it_is_given(sigma):
    x, z = 0.4 * torch.randn(100_000, dtype=torch.float64), torch.randn(100_000, dtype=torch.float64)
    level = torch.tensor(sigma, dtype=torch.float64)
    c_skip, c_out, c_in, c_noise = NCSNDenoiser(nn.Identity(), data_std=0.4).scalings(level)
    assert (c_in * (x + sigma * z)).std().item() == pytest.approx(0.4, rel=0.01)
    assert (c_skip, c_out, c_noise) == (1, level, level.log())
    assert NCSNDenoiser(nn.Identity()).scalings(level)[2] == 1


class Recorder(nn.Module):
    """A network that notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
        out: Tensor = self.linear(x)
        self.seen = x, c_noise, label, out
        return out


@pytest.mark.parametrize("kind", [NCSNDenoiser, EDMDenoiser])
def test_only_the_network_runs_under_autocast(kind):
    denoiser = kind(Recorder())
    with torch.autocast("cpu", torch.bfloat16):
        out = denoiser.score(torch.rand(4, 2), torch.tensor(0.1))
    x, c_noise, _, inner = denoiser.network.seen
    assert (inner.dtype, x.dtype, c_noise.dtype, out.dtype) == (torch.bfloat16, *[torch.float32] * 3)


def test_label_and_a_plain_number_reach_the_network():
    denoiser = EDMDenoiser(Recorder())
    label = torch.tensor([1, 2, 3, 4])
    denoiser.score(torch.rand(4, 2), 0.1, label)
    assert denoiser.network.seen[2] is label


def test_a_float64_sigma_does_not_promote_the_state():
    assert DENOISERS[0].score(torch.rand(4, 2), torch.tensor(0.1, dtype=torch.float64)).dtype == torch.float32


@pytest.mark.parametrize(("setting", "value"), [("data_std", 0.0), ("data_std", float("nan")), ("data_mean", 1e400)])
def test_impossible_moments_are_refused(setting, value):
    for kind in (EDMDenoiser, NCSNDenoiser)[: 1 + (setting == "data_std")]:
        with pytest.raises(ValueError, match=setting):
            kind(nn.Identity(), **{setting: value})
