import math

import pytest
import torch
from ncsn.noise import GeometricSchedule
from ncsn.objectives import DenoisingScoreMatching, EDMScoreMatching, Weighted

from conftest import gaussian_score

MEAN, STD, DIMENSION = 0.3, 0.7, 12
OBJECTIVES = [DenoisingScoreMatching(), EDMScoreMatching(data_std=STD)]


def zero(x, sigma):
    return torch.zeros_like(x)


def data(count):
    return MEAN + STD * torch.randn(count, 3, 2, 2)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("sigma", [torch.tensor(0.1), torch.full((8, 1, 1, 1), 0.1)])
def test_contract_one_loss_for_each_example(objective, sigma):
    x = data(8).requires_grad_()
    loss = objective(gaussian_score(MEAN, STD), x, sigma)
    assert loss.shape == (8,)
    assert torch.autograd.grad(loss[0], x)[0][1:].abs().max() == 0


def test_a_zero_score_costs_half_the_dimension_at_every_level():
    for sigma in GeometricSchedule(50, 0.01, 6).sigmas():
        losses = DenoisingScoreMatching()(zero, data(20_000), sigma)
        assert losses.mean().item() == pytest.approx(DIMENSION / 2, abs=4 * math.sqrt(DIMENSION / 2 / 20_000))


def test_the_exact_score_costs_what_it_must_and_others_cost_more():
    x = data(20_000)
    for sigma in torch.tensor([0.1, 0.7, 5.0]):
        floor = DIMENSION / 2 * STD**2 / (STD**2 + sigma**2)
        loss = DenoisingScoreMatching()(gaussian_score(MEAN, STD), x, sigma).mean()
        assert loss.item() == pytest.approx(floor.item(), rel=0.03)
        for wrong in (gaussian_score(MEAN + 0.5, STD), gaussian_score(MEAN, 1.5 * STD), zero):
            state = torch.random.get_rng_state()
            exact = DenoisingScoreMatching()(gaussian_score(MEAN, STD), x, sigma).mean()
            torch.random.set_rng_state(state)
            assert DenoisingScoreMatching()(wrong, x, sigma).mean() > exact


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0, 3.0])
def test_anneal_power_is_the_power_of_sigma_in_the_weight(power):
    x, sigma = data(16), GeometricSchedule(1, 0.01, 10).sample(data(16))
    torch.manual_seed(1)
    loss = Weighted(DenoisingScoreMatching(), power - 2)(gaussian_score(MEAN, STD), x, sigma)
    torch.manual_seed(1)
    z = torch.randn_like(x)
    residual = gaussian_score(MEAN, STD)(x + sigma * z, sigma) + z / sigma
    expected = sigma.flatten() ** power * residual.square().flatten(1).sum(1) / 2
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("data_std", [0.25, 0.5, 2.0])
def test_edm_weight_is_table_1_on_the_denoiser(data_std):
    x, sigma = data(16), torch.rand(16, 1, 1, 1) + 0.1
    torch.manual_seed(1)
    loss = EDMScoreMatching(data_std=data_std)(gaussian_score(MEAN, STD), x, sigma)
    torch.manual_seed(1)
    noisy = x + sigma * torch.randn_like(x)
    denoised = noisy + sigma**2 * gaussian_score(MEAN, STD)(noisy, sigma)
    weight = (sigma**2 + data_std**2) / (sigma * data_std) ** 2
    torch.testing.assert_close(loss, (weight * (denoised - x) ** 2).flatten(1).sum(1) / 2, rtol=1e-4, atol=1e-5)


def test_impossible_weights_are_refused():
    with pytest.raises(ValueError, match="expected a finite power, got power=inf"):
        Weighted(DenoisingScoreMatching(), math.inf)
    with pytest.raises(ValueError, match="expected data_std > 0, got data_std=-1"):
        EDMScoreMatching(-1)
