"""A model as it is used in Python, against a score that is known."""

import math
import re
import warnings
from inspect import signature

import ncsn
import ncsn.samplers
import numpy as np
import pytest
import torch
from ncsn.evaluation.report import Counter
from ncsn.model.model import Model
from ncsn.model.shipped import SHIPPED_MODEL
from ncsn.networks import UNet
from ncsn.noise import GeometricSchedule, NoNoise
from ncsn.samplers import AnnealedLangevin, Gibbs, Heun, Langevin, MetropolisAdjustedLangevin, Sampler
from ncsn.score import EDMDenoiser, EnergyScore, NCSNDenoiser, ScoreModel
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


@pytest.mark.parametrize("sigma", [0.0, -0.3, float("nan"), float("inf"), torch.tensor([0.1, 0, 0.1]).view(3, 1, 1, 1)])
@pytest.mark.parametrize("call", ["score", "denoise", "__call__"])
def test_a_noise_level_that_is_not_positive_is_refused(call, sigma):
    with pytest.raises(ValueError, match=r"expected 0 < sigma < inf, got \[*(0.1|0.0|-0.3|nan|inf)"):
        getattr(model(), call)(X, sigma)


@pytest.mark.parametrize("call", ["score", "denoise", "log_prob"])
def test_pixels_of_8_bits_are_refused_and_never_make_the_noise_level_0(call):
    pixels = torch.randint(256, (2, 1, 2, 2), dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"expected x of floats, got torch.uint8; images of 8 bits are x / 255"):
        getattr(model(), call)(*(pixels, 0.5)[: 2 - (call == "log_prob")])


def test_a_model_without_noise_has_a_score_at_0():
    data = Gaussian(torch.full((1, 2, 2), MEAN), torch.tensor(STD))
    energy = EnergyScore(lambda x, sigma: -data.log_prob(x, torch.as_tensor(sigma)))
    without = Model(energy, NoNoise(), Langevin(epsilon=0.01, steps=1), (1, 2, 2))
    torch.testing.assert_close(without.score(X, 0), (MEAN - X) / STD**2)


def test_a_call_of_the_model_denoises():
    assert torch.equal(model()(X, 0.3), model().denoise(X, 0.3))


def dropping(training):
    """A model whose network drops all of its output, if it is in training."""
    made = model(denoiser=NCSNDenoiser(nn.Sequential()))

    class Dropping(Exact):
        def forward(self, x, c_noise, label=None):
            return nn.functional.dropout(super().forward(x, c_noise, label), 1.0, self.training)

    made.denoiser.network = Dropping()
    return made.train(training)


def test_dropout_is_off_in_every_use_of_a_model_in_training_and_on_again_between_two_steps():
    trained, steady = dropping(True), dropping(False)
    assert torch.equal(trained.score(X, 0.3), steady.score(X, 0.3))
    assert torch.equal(trained.denoise(X, 0.3), steady.denoise(X, 0.3))
    assert torch.equal(trained.log_prob(X), steady.log_prob(X))
    assert torch.equal(trained.sample(3), steady.sample(3))
    for _ in trained.trajectories(range(3)):
        assert trained.training
        assert trained.denoiser.network.training
    assert not steady.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_in_another_precision_samples_nearly_the_same_and_keeps_the_state_in_32_bits(dtype):
    torch.manual_seed(0)
    network = UNet(1, 8, (1, 2), attention=(1,))
    for weight in network.parameters():
        nn.init.normal_(weight, 0.5 if weight.ndim == 1 else 0, 0.05)
    one = Model(EDMDenoiser(network), GeometricSchedule(5, 0.1, 4), Heun(), (1, 8, 8)).eval()
    start, x = one.start(2), torch.rand(2, 1, 8, 8)
    *_, wanted = one.trajectory(start)
    score = one.score(x, 0.3)
    other = one.to(dtype)
    assert other.start(2).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    *_, found = other.trajectory(start)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=0.05, rtol=0)
    torch.testing.assert_close(other.score(x, 0.3), score, atol=0.2, rtol=0.05)


def test_samples_on_other_levels_are_those_of_these_levels_in_any_batch_size():
    one = model(shape=(1, 4, 4))
    sigmas = one.sigmas_for(one.sampler, 10, 8.0, 0.1)
    assert (len(sigmas), sigmas[0].item(), round(sigmas[-1].item(), 6)) == (10, 8, 0.1)
    x = one.sample(5, seed=3, steps=10, sigma_max=8, sigma_min=0.1)
    assert torch.equal(x, one.sample(5, seed=3, sigmas=sigmas))
    torch.testing.assert_close(one.sample(5, 3, steps=10, sigma_max=8, sigma_min=0.1, batch_size=2), x)
    torch.testing.assert_close(one.sample(*map(np.int64, (5, 3)), sigmas=sigmas, batch_size=np.int64(2)), x)
    assert len(one.sigmas_for(one.sampler, sigma_max=8)) == 60
    assert torch.equal(one.sigmas_for(one.sampler), one.schedule.sigmas())
    with pytest.raises(ValueError, match="steps, sigma_max and sigma_min have no effect with sigmas"):
        one.sample(5, sigmas=sigmas, steps=10)
    with pytest.raises(ValueError, match="expected count and batch_size of at least 1, got 0, 0"):
        one.sample(0)


def test_the_labels_of_a_batch_are_those_of_its_samples():
    class Classes(Exact):
        classes = 4

        def forward(self, x, c_noise, label=None):
            sigma = c_noise.exp()
            label = -torch.ones(len(x)) if label is None else label
            return sigma * (label.view(-1, 1, 1, 1) - x) / (0.01**2 + sigma**2)

    label, one = torch.tensor([3, 0, 2, 1, 1]), model(denoiser=NCSNDenoiser(Classes()))
    x = one.sample(5, label=label, batch_size=2)
    torch.testing.assert_close(x.mean((1, 2, 3)), label.float(), atol=0.1, rtol=0)
    of_3 = one.sample(5, label=3, guidance=1.5, steps=20, batch_size=3)
    torch.testing.assert_close(of_3.mean((1, 2, 3)), torch.full((5,), 3 + 0.5 * (3 + 1)), atol=0.2, rtol=0)
    with pytest.raises(ValueError, match="guidance has no effect with guide"):
        one.sample(1, guidance=2, guide=lambda score: score)


@pytest.mark.parametrize("beyond", [{"sigma_max": 50}, {"sigma_min": 0.001}])
def test_levels_beyond_those_of_training_are_said_and_others_are_not(beyond):
    with pytest.warns(UserWarning, match=r"the model's own noise levels are 20 to 0.01: outside them"):
        model().sample(1, steps=4, **beyond)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model().sample(1, steps=4, sigma_max=20, sigma_min=0.01)


def test_a_model_prints_as_one_line_with_what_it_is_made_of():
    line = repr(model())
    assert "\n" not in line
    for part in ("NCSNDenoiser", "GeometricSchedule(sigma_max=20, ", "Heun(", "(1, 2, 2)", "Exact of 1 parameters"):
        assert part in line


def test_a_model_is_loaded_onto_a_device():
    assert ncsn.load(SHIPPED_MODEL, device="meta").device.type == "meta"


@pytest.mark.parametrize("sigmas", [[2.0, 0.5, 0.1], (2, 0.5, 0.1), torch.tensor([2.0, 0.5, 0.1])])
def test_noise_levels_are_taken_as_a_list(sigmas):
    x = model().sample(2, sigmas=sigmas)
    assert torch.equal(x, model().sample(2, sigmas=torch.tensor([2.0, 0.5, 0.1])))


@pytest.mark.parametrize("sampler", [AnnealedLangevin(), Heun()])
def test_noise_levels_may_be_integers(sampler):
    x = model().sample(200, sampler=sampler, sigmas=[5, 4, 3, 2, 1])
    assert torch.equal(x, model().sample(200, sampler=sampler, sigmas=[5.0, 4.0, 3.0, 2.0, 1.0]))
    assert x.std() > STD / 8


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: model().sample(2, sigmas=[0.5, 1.0]), ValueError, r"levels \(L,\) from high to low, got \[0.5, 1.0\]"),
        (lambda: model().sample(2, sigmas=[]), ValueError, "from high to low, got"),
        (lambda: model().sample(2, sigmas=1.0), ValueError, "from high to low, got 1.0"),
        (lambda: model().sample(2, sigmas="high"), TypeError, "sigmas: expected noise levels .*, got 'high'"),
        (lambda: model().sample(2, sigmas=["a"]), TypeError, "sigmas: expected noise levels"),
        (lambda: model().sample(2, sampler="Heun"), TypeError, r"sampler: expected .* ncsn.Heun\(\), got 'Heun'"),
        (
            lambda: model().sample(2, sampler=Heun, steps=3),
            TypeError,
            r"sampler: expected .* ncsn.Heun\(\), got <class",
        ),
        (lambda: model().score([[0.5]], 0.5), TypeError, r"expected x, a tensor \(B, ...\), got list"),
        (lambda: model().denoise(X.numpy(), 0.5), TypeError, r"expected x, a tensor \(B, ...\), got ndarray"),
    ],
)
def test_wrong_arguments_are_named(call, kind, message):
    with pytest.raises(kind, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("sampler", [MetropolisAdjustedLangevin(0.1, 1), Gibbs(1)])
def test_a_guide_of_scores_is_refused_by_a_sampler_that_follows_a_log_probability(sampler):
    energy = EnergyScore(lambda x, sigma: x.square().flatten(1).sum(1) / 2)
    given = Model(energy, NoNoise(), Langevin(0.1, 1), (1, 2, 2))
    assert given.sample(1, sampler=sampler).shape == (1, 1, 2, 2)
    with pytest.raises(ValueError, match=re.escape(f"guide: {sampler} follows a log-probability")):
        given.sample(1, sampler=sampler, guide=lambda score: score)
    counter = Counter()  # changes no score
    assert torch.equal(given.sample(1, sampler=sampler, guide=counter), given.sample(1, sampler=sampler))
    assert counter.evaluations > 0


def test_sampling_starts_from_uniform_images_with_noise():
    x = model().start(2000, torch.tensor(1e-6))
    assert -1e-5 < x.min() < 0.01
    assert 0.99 < x.max() < 1 + 1e-5
    assert x.mean().item() == pytest.approx(0.5, abs=0.02)
    assert x.std().item() == pytest.approx(12**-0.5, abs=0.01)
    assert model().start(2000).std().item() == pytest.approx(20, rel=0.05)
