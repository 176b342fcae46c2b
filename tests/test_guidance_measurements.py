"""The posterior score against the posteriors of Gaussian data, and operators against their matrices."""

import ncsn
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ncsn.networks import MLP
from ncsn.noise import GeometricSchedule, KarrasSchedule
from ncsn.samplers import AnnealedLangevin
from ncsn.score import NCSNDenoiser
from ncsn.score.guidance import AveragePooling, GaussianBlur, Mask, adjoint, grey, posterior
from sklearn.datasets import load_digits
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from conftest import Correlated, columns, flow

SHAPE = (3, 2, 2)
MATRIX = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
OPERATORS = {
    "mask": Mask(torch.tensor([[1, 0], [1, 1]])),
    "pooling": AveragePooling(2),
    "blur": GaussianBlur(0.6),
    "grey": grey,
    "matrix": lambda x: x.flatten(1) @ MATRIX.to(x),
}
each_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


def measured(operator, x, noise):
    y = operator(x)
    return y + noise * torch.randn_like(y)


@each_operator
@pytest.mark.parametrize("noise", [0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_posterior_score_of_gaussian_data_is_exact(operator, noise, dtype):
    data = Correlated.draw(SHAPE)
    y = measured(operator, data.sample(1), noise)
    truth = data.given(operator, y, noise)
    guided = posterior(data.score, operator, y.to(dtype), noise, iterations=14)
    levels = torch.tensor([0.0, 0.02, 0.3, 1.0, 5.0], dtype=dtype)
    for sigma in [*levels, levels.view(5, 1, 1, 1)]:
        x = (data.sample(5) + sigma.double() * torch.randn(5, *SHAPE).double()).to(dtype)
        score, expected = guided(x, sigma), truth.score(x.double(), sigma.double())
        assert score.dtype == dtype
        # The higher sigma, the more digits cancel in D = x + sigma^2 score.
        digits = 1e-8 if dtype == torch.float64 else 1e-4 * max(1, sigma.max().item()) ** 3
        tolerance = digits * expected.abs().max().item()
        torch.testing.assert_close(score.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("operator", "as_real"),
    [(torch.fft.rfft2, torch.view_as_real), (lambda x: x.mean((1, 2, 3)), lambda y: y.unsqueeze(1))],
    ids=["complex", "number"],
)
def test_a_measurement_may_be_complex_or_one_number(operator, as_real):
    data = Correlated.draw(SHAPE)
    x, y, sigma = data.sample(5), operator(data.sample(1)), torch.tensor(0.3, dtype=torch.float64)
    guided = posterior(data.score, operator, y, 0.1)
    expected = posterior(data.score, lambda x: as_real(operator(x)), as_real(y), 0.1)
    assert torch.equal(guided(x, sigma), expected(x, sigma))


def test_two_measurements_may_follow_one_another():
    """Catches a derivative of 0/0: of such data the Krylov space of greys has one dimension, and others are 0."""
    data = Correlated(torch.zeros(12).double(), torch.eye(12).double(), SHAPE)
    x, y, sigma = data.sample(5), data.sample(1), torch.tensor(0.3, dtype=torch.float64)
    blur = OPERATORS["blur"]
    first = posterior(data.score, grey, grey(y), 0.1)
    both = posterior(first, blur, blur(y), 0.1, iterations=14)(x, sigma)
    expected = data.given(grey, grey(y), 0.1).given(blur, blur(y), 0.1).score(x, sigma)
    torch.testing.assert_close(both, expected)


def test_a_measurement_of_what_is_missing_is_refused():
    with pytest.raises(ValueError, match="expected a finite measurement, got NaN or infinity; leave out what is"):
        posterior(Correlated.draw(SHAPE).score, grey, torch.tensor([1.0, torch.nan]), 0.1)


@each_operator
def test_autocast_is_for_the_network_alone(operator):
    """Catches products of 16 bits between the evaluations of the network, and a solver that has no such numbers."""
    data = Correlated.draw(SHAPE)
    y, x, sigma = data.sample(1).float(), data.sample(5).float(), torch.tensor(0.3)

    def score(x, sigma):
        with torch.autocast("cpu", enabled=False):
            return data.score(x, sigma)

    guided = posterior(score, operator, operator(y), 0.1, iterations=5)
    expected = guided(x, sigma)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(guided(x, sigma), expected)


@each_operator
def test_the_flow_draws_the_exact_posterior(operator):
    data, noise, sigmas = Correlated.draw(SHAPE), 0.3, KarrasSchedule(80, 0.05, 24).sigmas()
    y = measured(operator, data.sample(1), noise)
    x = flow(posterior(data.score, operator, y, noise, iterations=8), 80 * torch.randn(2000, *SHAPE).double(), sigmas)
    data.given(operator, y, noise).assert_law(x, sigma=0.05, bias=0.02)


def test_annealed_langevin_draws_the_exact_posterior():
    data, operator, noise = Correlated.draw((1, 2, 2)), GaussianBlur(0.6), 0.3
    y = measured(operator, data.sample(1), noise)
    sigmas = GeometricSchedule(8, 0.05, 14).sigmas()
    guided = posterior(data.score, operator, y, noise, iterations=4)
    *_, x = AnnealedLangevin(0.2 * 0.05**2, 20)(guided, 8 * torch.randn(1500, 1, 2, 2).double(), sigmas)
    data.given(operator, y, noise).assert_law(x, bias=0.05)


def test_few_iterations_come_near_and_more_come_nearer():
    data, operator, noise = Correlated.draw(SHAPE), GaussianBlur(0.6), 0.3
    x, y, sigma = data.sample(50), measured(operator, data.sample(1), noise), torch.tensor(0.1)
    truth = data.given(operator, y, noise).score(x, sigma)
    errors = [
        ((posterior(data.score, operator, y, noise, n)(x, sigma) - truth).norm() / truth.norm()).item()
        for n in (1, 3, 6, 12)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.3
    assert errors[3] < 1e-6


def test_the_posterior_of_a_network_keeps_no_graph_without_gradients():
    score = NCSNDenoiser(MLP(3, width=8)).score
    guided = posterior(score, lambda x: x[:, :1] - x[:, 1:2], torch.zeros(1, 1), 0.1)
    x, sigma = torch.randn(4, 3), torch.tensor(0.5)
    with torch.no_grad():
        drawn = guided(x, sigma)
    assert drawn.grad_fn is None
    assert drawn.isfinite().all()
    assert guided(x, sigma).requires_grad
    *_, end = AnnealedLangevin(0.1 * 0.3**2, 2)(guided, x, torch.tensor([1.0, 0.3]))
    assert end.shape == x.shape
    assert not end.requires_grad


def test_each_example_is_steered_by_its_own_measurement_alone():
    data, noise = Correlated.draw(SHAPE), 0.3
    x, y = data.sample(4), measured(grey, data.sample(4), noise)
    sigma = torch.tensor([0.1, 0.5, 1.0, 3.0], dtype=torch.float64).view(4, 1, 1, 1)
    together = posterior(data.score, grey, y, noise)(x, sigma)
    alone = [posterior(data.score, grey, y[i : i + 1], noise)(x[i : i + 1], sigma[i]) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), iterations=st.integers(1, 32), operator=st.sampled_from(sorted(OPERATORS)))
def test_the_measurement_steers_a_score_of_any_jacobian_by_a_bounded_amount(seed, iterations, operator):
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(12, 12, dtype=torch.float64, generator=generator)  # neither symmetric nor positive
    sigma, noise = torch.tensor(0.3, dtype=torch.float64), 0.01

    def score(x, sigma):
        return ((x.flatten(1) @ jacobian).view_as(x) - x) / sigma**2

    x = torch.randn(5, *SHAPE, dtype=torch.float64, generator=generator)
    see = OPERATORS[operator]
    y = see(torch.randn(5, *SHAPE, dtype=torch.float64, generator=generator))
    change = posterior(score, see, y, noise, iterations)(x, sigma) - score(x, sigma)
    surprise = (y - see(x + sigma**2 * score(x, sigma))).flatten(1).norm(dim=1)
    # Each direction adds at most s / (s^2 + noise^2) <= 1 / (2 noise) of its share of the surprise.
    bound = min(iterations, 12) ** 0.5 * surprise / (2 * noise)
    assert (sigma * change.flatten(1).norm(dim=1) <= bound).all()


def test_half_a_digit_is_filled_in_by_a_network_with_many_iterations():
    model = ncsn.load("checkpoints/digits.safetensors")
    image = load_digits().images[:1, None] / 16
    half = torch.zeros(8, 8)
    half[:, :4] = 1
    operator = Mask(half)
    y = operator(torch.tensor(image, dtype=torch.float32))
    # With an unbounded weight, this seed goes to 28.
    x = model.sample(12, seed=4, guide=lambda score: posterior(score, operator, y, 0.01, 12))
    assert -0.5 < x.min() < x.max() < 1.5
    assert (operator(x) - y).square().mean().mul(2).sqrt().item() < 0.02


@each_operator
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_adjoint_moves_the_operator_to_the_other_side(operator, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, *SHAPE, dtype=torch.float64, generator=generator)
    y = torch.randn(operator(x).shape, dtype=torch.float64, generator=generator)
    pulled = adjoint(operator, y, x)
    assert pulled.shape == x.shape
    torch.testing.assert_close((operator(x) * y).flatten(1).sum(1), (x * pulled).flatten(1).sum(1))
    torch.testing.assert_close(pulled.flatten(1), y.flatten(1) @ columns(operator, SHAPE))


def test_operators_see_what_they_say():
    x = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).view(2, 3, 4, 6)
    mask = torch.zeros(4, 6)
    mask[1, 2] = 1
    seen = Mask(mask)(x)
    assert torch.equal(seen[..., 1, 2], x[..., 1, 2])
    assert seen.count_nonzero() == 6
    pooled = AveragePooling(2)(x)
    assert pooled.shape == (2, 3, 2, 3)
    assert pooled[0, 0, 0, 1] == (2 + 3 + 8 + 9) / 4
    colours = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8)
    luma = pil_to_tensor(to_pil_image(colours[0]).convert("L")).float()
    assert (grey(colours.float()) - luma).abs().max() <= 0.51  # which Pillow rounds
    assert torch.equal(grey(x[:, :1]), x[:, :1])
    with pytest.raises(ValueError, match=r"expected a factor of both sides, got factor=4, sides=\(4, 6\)"):
        AveragePooling(4)(x)
    with pytest.raises(ValueError, match="expected one or three channels, got channels=2"):
        grey(x[:, :2])


def test_a_blur_spreads_a_point_over_a_gaussian_and_leaves_an_even_picture():
    point = torch.zeros(1, 1, 31, 41)
    point[0, 0, 15, 20] = 1
    blurred = GaussianBlur(2.0)(point)[0, 0]
    assert blurred.sum().item() == pytest.approx(1, abs=1e-5)
    for side, margin in ((31, blurred.sum(1)), (41, blurred.sum(0))):
        place = torch.arange(side) - side // 2
        assert (place * margin).sum().item() == pytest.approx(0, abs=1e-5)
        assert (place**2 * margin).sum().item() == pytest.approx(4, rel=1e-3)
    torch.testing.assert_close(GaussianBlur(3.0)(torch.full((2, 3, 5, 4), 0.7)), torch.full((2, 3, 5, 4), 0.7))
