"""A model as it is used in Python, against a score that is known."""

import math
import re
from inspect import signature

import ncsn.samplers
import pytest
import torch
from ncsn.model.model import Model
from ncsn.noise import GeometricSchedule
from ncsn.samplers import AnnealedLangevin, Gibbs, Heun, Langevin, MetropolisAdjustedLangevin, Sampler
from ncsn.score import NCSNDenoiser, ScoreModel
from ncsn.score.densities import Gaussian
from torch import nn

MEAN, STD = 0.4, 0.2


class Exact(nn.Module):
    """The network whose `NCSNDenoiser` has the score of N(MEAN, STD^2): F = sigma score."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, c_noise, label=None):
        sigma = c_noise.exp()
        return self.scale * sigma * (MEAN - x) / (STD**2 + sigma**2)


def model(shape=(1, 2, 2), denoiser=None, gaussian_noise=True):
    return Model(
        NCSNDenoiser(Exact()) if denoiser is None else denoiser,
        GeometricSchedule(20, 0.01, 60),
        Heun(),
        shape,
        gaussian_noise,
    )


X = torch.linspace(-1, 2, 12).view(3, 1, 2, 2)


@pytest.mark.parametrize("sigma", [0.3, torch.tensor(0.3), torch.tensor([0.1, 0.3, 5.0]).view(3, 1, 1, 1)])
def test_the_score_and_the_denoised_picture_are_those_of_the_data(sigma):
    score = (MEAN - X) / (STD**2 + sigma**2)
    torch.testing.assert_close(model().score(X, sigma), score)
    torch.testing.assert_close(model().denoise(X, sigma), X + sigma**2 * score)


def test_the_dtype_of_the_picture_is_kept_and_a_number_is_taken_to_it():
    assert model().score(X.double(), 0.3).dtype == torch.float64
    assert model().denoise(X.double(), torch.tensor(0.3)).dtype == torch.float64


def test_there_is_a_graph_where_the_picture_asks_for_one_alone():
    assert not model().score(X, 0.3).requires_grad
    assert not model().denoise(X, 0.3).requires_grad
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model().score(x, 0.3).sum(), x)
    torch.testing.assert_close(slope, torch.full_like(X, -1 / (STD**2 + 0.3**2)))
    with torch.no_grad():
        assert not model().score(x, 0.3).requires_grad


@pytest.mark.parametrize("call", ["score", "denoise"])
def test_a_shape_that_would_broadcast_to_something_else_is_refused(call):
    square = torch.zeros(2, 1, 2, 2)
    with pytest.raises(ValueError, match=r"expected sigma \(\) or \(2, 1, 1, 1\), got shape \(2,\)"):
        getattr(model(), call)(square, torch.tensor([0.1, 1.0]))
    with pytest.raises(ValueError, match=r"expected x of shape \(B, 1, 2, 2\), got \(1, 2, 2\)"):
        getattr(model(), call)(square[0], 0.1)


def test_the_log_probability_is_that_of_the_blurred_data():
    exact = Gaussian(torch.full((1, 2, 2), MEAN), torch.tensor(STD))
    truth = exact.log_prob(X, torch.tensor(0.01))
    torch.testing.assert_close(model().log_prob(X), truth, atol=0.05, rtol=3e-3)
    torch.testing.assert_close(model().log_prob(X, probes=3), truth, atol=0.05, rtol=3e-3)  # of one slope everywhere
    with pytest.raises(ValueError, match="expected x of shape"):
        model().log_prob(X[0])


def test_the_density_of_a_model_adds_up_to_one():
    x = torch.linspace(-1.5, 2.5, 400).unsqueeze(1)
    total = model(shape=(1,)).log_prob(x, tolerance=1e-4).exp().sum() * 4 / 399
    assert total.item() == pytest.approx(1, abs=0.01)


def test_samples_are_those_of_the_data_and_the_same_for_a_seed():
    x = model(shape=(2, 4, 4)).sample(200, seed=3)
    assert x.shape == (200, 2, 4, 4)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert x.std().item() == pytest.approx(math.hypot(STD, 0), abs=0.02)
    assert torch.equal(model(shape=(2, 4, 4)).sample(5, 3), x[:5])
    assert not torch.equal(model(shape=(2, 4, 4)).sample(5, 4), x[:5])


def test_a_model_of_other_noise_is_followed_by_langevin_dynamics_alone():
    laplace, sigmas = model(gaussian_noise=False), torch.tensor([1.0, 0.5])
    needed = {"epsilon": 0.2, "steps": 1, "log_prob": laplace.score}
    for name in ncsn.samplers.__all__:
        kind = getattr(ncsn.samplers, name)
        if kind in (Sampler, Gibbs):  # Gibbs takes an energy
            continue
        sampler = kind(**{key: value for key, value in needed.items() if key in signature(kind).parameters})
        if kind in (Langevin, MetropolisAdjustedLangevin):
            laplace.check(sampler, sigmas)
            continue
        with pytest.raises(ValueError, match=re.escape(f"{sampler} assumes Gaussian noise")):
            next(laplace.trajectory(X, sampler=sampler, sigmas=sigmas))
    laplace.check(AnnealedLangevin(0.2, 1, denoise=False), sigmas)
    assert not Gibbs(1).assumes_gaussian_noise
    for method in (lambda: laplace.denoise(X, 0.3), lambda: laplace.log_prob(X)):
        with pytest.raises(ValueError, match="assumes Gaussian noise"):
            method()


def test_the_classes_reach_the_score():
    class Classes(ScoreModel):
        def score(self, x, sigma, label=None):
            return label.view(-1, 1, 1, 1) * torch.ones_like(x)

    label = torch.tensor([0, 1, 2])
    labelled = model(denoiser=Classes())
    assert torch.equal(labelled.score(X, 0.5, label)[:, 0, 0, 0], label.float())
    torch.testing.assert_close(labelled.denoise(X, 0.5, label) - X, 0.25 * label.view(-1, 1, 1, 1) * torch.ones_like(X))
