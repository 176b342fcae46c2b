"""The samplers beside independent ones, those of diffusers: step by step, on the same noise.

Both sides draw from torch's generator, which is seeded anew at each level.
"""

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler, ScoreSdeVeScheduler
from diffusers.schedulers.deprecated.scheduling_karras_ve import KarrasVeScheduler
from ncsn.networks import MLP
from ncsn.noise import GeometricSchedule, KarrasSchedule
from ncsn.samplers import (
    Ancestral,
    DPMSolver,
    Euler,
    EulerMaruyama,
    Heun,
    MetropolisAdjustedLangevin,
    PredictorCorrector,
    SASolver,
)
from ncsn.score import EnergyScore, NCSNDenoiser

from conftest import named

SMAX, SMIN = 10.0, 0.05
KARRAS = KarrasSchedule(SMAX, SMIN, 20).sigmas()
SHAPE = (3, 8, 8)


def score(x, sigma):
    """Of two pictures, black and white, with noise: not linear in x."""
    variance = 0.09 + sigma**2
    ahead = ((2 * x - 1).flatten(1).sum(1) / (2 * variance)).sigmoid().view(-1, 1, 1, 1)
    return (ahead - x) / variance


def stepwise(walk, levels):
    """The states of a walk whose noise at each level is of the level's number as a seed."""
    for level in range(levels):
        torch.manual_seed(level)
        yield next(walk)
    assert next(walk, None) is None


def start(count):
    return SMAX * torch.randn(count, *SHAPE)


def close(ours, others):
    torch.testing.assert_close(torch.stack(list(ours)), torch.stack(list(others)), rtol=1e-4, atol=1e-4)


def sde_ve(x, levels, corrections, snr=0.16, pull=score):
    """ScoreSdeVePipeline: corrections, then a prediction, at each level; at the last the mean."""
    scheduler = ScoreSdeVeScheduler(levels, snr, SMIN, SMAX)
    sigmas = GeometricSchedule(SMAX, SMIN, levels).sigmas()
    torch.testing.assert_close(scheduler.discrete_sigmas.flip(0), sigmas)
    for level, (t, sigma) in enumerate(zip(scheduler.timesteps, sigmas, strict=True)):
        torch.manual_seed(level)
        for _ in range(corrections):
            x = scheduler.step_correct(pull(x, sigma), x).prev_sample
        stepped = scheduler.step_pred(pull(x, sigma), t, x)
        x = stepped.prev_sample if level < levels - 1 else stepped.prev_sample_mean
        yield x


def test_euler_maruyama_is_the_predictor_of_diffusers():
    x, levels = start(4), 30
    ours = EulerMaruyama()(score, x, GeometricSchedule(SMAX, SMIN, levels).sigmas())
    close(stepwise(ours, levels), sde_ve(x, levels, corrections=0))


def steep(x, sigma):
    """A score of which sigma times the length is above that of any noise, so that no step is at its bound."""
    return score(x, sigma) + 3 * (0.5 - x).sign() / sigma


@pytest.mark.parametrize("corrections", [1, 2])
def test_predictor_corrector_is_that_of_diffusers_on_one_sample(corrections):
    # On one, since there the norms are the means over the batch; and below the bound, which diffusers has not.
    x, levels = start(1), 30
    ours = PredictorCorrector(0.16, corrections)(steep, x, GeometricSchedule(SMAX, SMIN, levels).sigmas())
    close(stepwise(ours, levels), sde_ve(x, levels, corrections, pull=steep))


def test_a_correction_is_at_most_that_of_noise_alone():
    # Of a score that is small, alpha is 2 (snr sigma)^2: what is left of a step is its noise.
    x, sigma, sampler = start(2), torch.tensor(0.3), PredictorCorrector(0.2, 1)
    torch.manual_seed(0)
    moved = sampler.correct(lambda x, sigma: 1e-6 * torch.ones_like(x), x, sigma)
    torch.manual_seed(0)
    torch.testing.assert_close(moved, x + 2 * 0.2 * 0.3 * torch.randn_like(x), rtol=0, atol=1e-5)
    assert sampler.correct(lambda x, sigma: 0 * x, x, sigma).isfinite().all()


def test_a_correction_is_sized_by_the_norms_of_each_sample():
    x, sigma, sampler = start(2), torch.tensor(1.0), PredictorCorrector(0.2, 1)
    factors = torch.tensor([5.0, 50.0]).view(2, 1, 1, 1)
    torch.manual_seed(0)
    moved = sampler.correct(lambda x, sigma: factors * torch.ones_like(x), x, sigma)
    torch.manual_seed(0)
    z = torch.randn_like(x)
    for i in range(2):
        alpha = 2 * (0.2 * z[i].norm() / (factors[i] * 192**0.5)) ** 2
        torch.testing.assert_close(moved[i], x[i] + alpha * factors[i] + (2 * alpha).sqrt() * z[i])


@pytest.mark.parametrize(
    "settings",
    [{"churn": 4.0}, {"churn": 80.0, "churn_min": 0.3, "churn_max": 4.0, "inflation": 1.007}, {"churn": 0.0}],
    ids=named,
)
def test_stochastic_heun_is_that_of_diffusers(settings):
    x, levels = start(4), len(KARRAS)
    churn = {"s_churn": 0, "s_min": 0, "s_max": float("inf"), "s_noise": 1.0}
    names = {"churn": "s_churn", "churn_min": "s_min", "churn_max": "s_max", "inflation": "s_noise"}
    scheduler = KarrasVeScheduler(SMIN, SMAX, **churn | {names[name]: value for name, value in settings.items()})
    scheduler.set_timesteps(levels)

    def others(x):
        for level, (sigma, lower) in enumerate(zip(KARRAS, [*KARRAS[1:], torch.tensor(0.0)], strict=True)):
            torch.manual_seed(level)
            x_hat, sigma_hat = scheduler.add_noise_to_input(x, sigma)
            slope = sigma_hat * score(x_hat, sigma_hat)
            stepped = scheduler.step(slope, sigma_hat, lower, x_hat)
            if lower:
                slope = lower * score(stepped.prev_sample, lower)
                end = stepped.prev_sample, stepped.derivative
                stepped = scheduler.step_correct(slope, sigma_hat, lower, x_hat, *end)
            x = stepped.prev_sample
            yield x

    close(stepwise(Heun(**settings)(score, x, KARRAS), levels), others(x))


def multistep(scheduler, x):
    """The states of a scheduler for EDM's networks F, of which the score is made one."""
    scheduler.set_timesteps(len(KARRAS))
    torch.testing.assert_close(scheduler.sigmas[:-1], KARRAS)
    for t, sigma in zip(scheduler.timesteps, KARRAS, strict=True):
        scheduler.scale_model_input(x, t)
        denoised, total = x + sigma**2 * score(x, sigma), (sigma**2 + 0.25).sqrt()
        network = (denoised - 0.25 / total**2 * x) / (sigma * 0.5 / total)
        x = scheduler.step(network, t, x).prev_sample
        yield x


def test_eulers_flow_is_that_of_diffusers():
    x = start(4)
    close(Euler()(score, x, KARRAS), multistep(EDMEulerScheduler(SMIN, SMAX, 0.5), x))


FORMS = pytest.mark.parametrize(("sampler", "form"), [(DPMSolver, "midpoint"), (SASolver, "heun")])


@FORMS
def test_the_two_step_solvers_are_those_of_diffusers(sampler, form):
    x, settings = start(4), {"solver_order": 2, "algorithm_type": "dpmsolver++", "solver_type": form}
    scheduler = EDMDPMSolverMultistepScheduler(SMIN, SMAX, 0.5, **settings, final_sigmas_type="zero")
    close(sampler()(score, x, KARRAS), multistep(scheduler, x))


@FORMS
def test_the_two_step_solvers_with_noise_are_those_of_diffusers(sampler, form):
    x, settings = start(4), {"solver_order": 2, "algorithm_type": "sde-dpmsolver++", "solver_type": form}
    scheduler = EDMDPMSolverMultistepScheduler(SMIN, SMAX, 0.5, **settings, final_sigmas_type="zero")
    close(stepwise(sampler(eta=1)(score, x, KARRAS), len(KARRAS)), stepwise(multistep(scheduler, x), len(KARRAS)))


def test_the_noise_of_an_ancestral_step_is_that_of_the_posterior_of_the_lower_level():
    start, sigmas = torch.zeros(50_000, 1), torch.tensor([1.0, 0.5])
    for sampler, variance in ((Ancestral(), 0.25 * 0.75), (EulerMaruyama(), 0.75)):
        x = next(sampler(lambda x, sigma: torch.zeros_like(x), start, sigmas))
        assert x.var().item() == pytest.approx(variance, rel=0.03)


def test_metropolis_adjusted_langevin_takes_the_log_density_of_an_energy_model():
    model = EnergyScore(lambda x, sigma: ((x - 1) ** 2 / 2 / 0.5**2).sum(1))
    given, own = (MetropolisAdjustedLangevin(0.2, 60, log_prob) for log_prob in (model.log_prob, None))
    samples = []
    for sampler in (given, own):
        torch.manual_seed(0)
        *_, x = sampler(sampler.of(model), torch.randn(4000, 1), torch.zeros(1))
        samples.append(x)
    assert torch.equal(*samples)
    assert x.mean().item() == pytest.approx(1, abs=0.04)
    assert x.std().item() == pytest.approx(0.5, abs=0.03)
    with pytest.raises(ValueError, match=r"MetropolisAdjustedLangevin takes a log-probability, .* an EnergyScore"):
        own.of(NCSNDenoiser(MLP(1)))


def test_a_correction_where_the_score_vanishes_is_of_the_size_of_that_for_pure_noise():
    x = PredictorCorrector(snr=0.2).correct(
        lambda x, _: torch.full_like(x, 1e-6), torch.zeros(50_000, 2), torch.ones(())
    )
    assert x.var().item() == pytest.approx(4 * 0.2**2, rel=0.03)  # sqrt(2 alpha) z, with alpha = 2 (snr sigma)^2
