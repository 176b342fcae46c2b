"""Guidance against what is known: products and conditionals of Gaussians, flows there and back."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ncsn.noise import GeometricSchedule, KarrasSchedule
from ncsn.samplers import AnnealedLangevin, Langevin
from ncsn.score.guidance import (
    AveragePooling,
    GaussianBlur,
    classifier_free,
    encode,
    grey,
    inpaint,
    posterior,
    restore_known,
    slerp,
)

from conftest import Correlated, flow, gaussian_score

# Classifier-free guidance


@settings(max_examples=50)
@given(
    weight=st.floats(-5, 20),
    low=st.floats(0, 2),
    width=st.floats(0.01, 5),
    levels=st.lists(st.floats(0.01, 8), min_size=1, max_size=6),
)
def test_each_example_is_guided_inside_the_interval_and_conditional_outside(weight, low, width, levels):
    conditional, unconditional = gaussian_score(1.0, 0.3), gaussian_score(-0.5, 0.8)
    sigma = torch.tensor(levels, dtype=torch.float64).view(-1, 1)
    x = torch.linspace(-2, 2, 2 * len(levels), dtype=torch.float64).view(-1, 2)
    guided = classifier_free(conditional, unconditional, weight, (low, low + width))(x, sigma)
    for i, level in enumerate(levels):
        with_class, without = conditional(x[i], sigma[i]), unconditional(x[i], sigma[i])
        if low <= level <= low + width:
            torch.testing.assert_close(guided[i], without + weight * (with_class - without))
        else:
            assert torch.equal(guided[i], with_class)


def test_a_weight_of_one_is_the_conditional_score_and_zero_the_unconditional():
    conditional, unconditional = gaussian_score(1.0, 0.3), gaussian_score(-0.5, 0.8)
    x, sigma = torch.randn(100, 2), torch.tensor(0.4)
    assert torch.equal(classifier_free(conditional, unconditional, 1)(x, sigma), conditional(x, sigma))
    torch.testing.assert_close(classifier_free(conditional, unconditional, 0)(x, sigma), unconditional(x, sigma))


def test_the_unconditional_score_is_asked_only_where_it_is_needed():
    asked = []

    def unconditional(x, sigma):
        asked.append(sigma)
        return -x

    guided = classifier_free(gaussian_score(1.0, 0.3), unconditional, 3.0, (0.5, 2.0))
    x = torch.randn(2, 1)
    for sigma in (0.4, 2.1, [[0.4], [2.1]]):
        guided(x, torch.tensor(sigma))
    assert not asked
    for sigma in (0.5, 2.0, [[0.4], [1.0]]):
        guided(x, torch.tensor(sigma))
    assert len(asked) == 3


def test_guided_gaussians_are_drawn_at_their_product():
    # p(x | c)^w p(x)^(1 - w) of two Gaussians of equal width is the Gaussian round w m_c + (1 - w) m.
    guided = classifier_free(gaussian_score(1.0, 0.7), gaussian_score(0.0, 0.7), 2.5)
    *_, x = Langevin(0.02, 400)(guided, torch.zeros(10_000, 1), torch.zeros(1))
    assert x.mean().item() == pytest.approx(2.5, abs=0.03)
    assert x.std().item() == pytest.approx(0.7, rel=0.05)


# Inpainting


def test_inpainting_keeps_the_known_pixels_and_draws_the_rest_from_the_conditional_law():
    data, mask = Correlated.draw((1, 2, 2)), torch.tensor([[1, 0], [0, 1]])
    known = data.sample(1)
    # What is known is a measurement without noise; where the mask is 0, it must not matter.
    truth = data.given(lambda x: x[:, :, [0, 1], [0, 1]], known[0, 0, [0, 1], [0, 1]], 1e-9)
    known = torch.where(mask == 1, known, math.nan)
    sigmas = GeometricSchedule(8, 0.05, 40).sigmas()
    sampler = AnnealedLangevin(0.4 * 0.05**2, 40)
    *_, x = sampler(inpaint(data.score, known, mask), torch.rand(3000, 1, 2, 2).double(), sigmas)
    x = restore_known(x, known, mask)
    for pixel in (0, 3):
        assert torch.equal(x.flatten(1)[:, pixel], known.flatten()[pixel].expand(3000))
    rest = [1, 2]
    unknown = Correlated(truth.mean[rest], truth.covariance[rest][:, rest], (2,))
    unknown.assert_law(x.flatten(1)[:, rest], bias=0.05)


def test_the_score_that_is_asked_for_the_rest_sees_known_pixels_as_noisy_as_the_rest():
    seen = []

    def score(x, sigma):
        seen.append(x)
        return torch.full_like(x, 7.0)

    x, known, mask = (
        torch.randn(5000, 1, 2, 2),
        torch.full((1, 1, 2, 2), 0.3),
        torch.tensor([[True, False], [False] * 2]),
    )
    sigma = torch.tensor([0.5, 2.0]).repeat(2500).view(-1, 1, 1, 1)
    inpainted = inpaint(score, known, mask)
    steered, _ = inpainted(x, sigma), inpainted(x, sigma)
    noise = [(noisy - 0.3)[..., 0, 0] / sigma[..., 0, 0] for noisy in seen]
    for z in noise:
        assert z[::2].std().item() == pytest.approx(1, rel=0.1)
        assert z[1::2].std().item() == pytest.approx(1, rel=0.1)
    assert (noise[0] * noise[1]).mean().item() == pytest.approx(0, abs=0.08)
    assert torch.equal(seen[0][..., ~mask], x[..., ~mask])
    assert (steered[..., ~mask] == 7).all()
    torch.testing.assert_close(steered[..., 0, 0], (0.3 - x[..., 0, 0]) / sigma[..., 0, 0] ** 2)


def test_the_flow_brings_the_known_pixels_down_as_well():
    known, mask = torch.rand(1, 1, 2, 2).double(), torch.tensor([[1, 1], [0, 1]])
    sigmas = GeometricSchedule(10, 0.01, 200).sigmas()
    inpainted = inpaint(gaussian_score(0.5, 0.2), known, mask)
    x = flow(inpainted, known + 10 * torch.randn(1000, 1, 2, 2).double(), sigmas)
    error = (x - known)[..., mask == 1]
    assert error.std().item() == pytest.approx(0.01, rel=0.1)


def test_restoring_changes_nothing_but_the_known_pixels():
    x, known, mask = torch.randn(4, 3, 2, 2), torch.rand(3, 2, 2).double(), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    restored = restore_known(x, known, mask)
    assert restored.dtype == x.dtype
    assert torch.equal(restored[..., 0, 0], known[..., 0, 0].float().expand(4, 3))
    assert torch.equal(restored[..., mask == 0], x[..., mask == 0])


# Interpolation


def test_encoding_and_decoding_returns_the_picture():
    data = Correlated.draw((3, 2, 2))
    x = data.sample(16)
    errors = []
    for levels in (30, 60):
        sigmas = KarrasSchedule(40, 0.01, levels).sigmas()
        errors.append((flow(data.score, encode(data.score, x, sigmas), sigmas) - x).abs().max().item())
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 3  # Heun's method is of the second order


def test_the_latent_is_the_one_that_the_flow_of_a_gaussian_has():
    # dx/dsigma = -sigma (m - x) / (s^2 + sigma^2) keeps (x - m) / sqrt(s^2 + sigma^2).
    x, sigmas = torch.randn(8, 3).double(), KarrasSchedule(20, 0.05, 200).sigmas().double()
    latent = encode(gaussian_score(0.3, 0.7), x, sigmas)
    stretch = math.sqrt((0.49 + 20**2) / (0.49 + 0.05**2))
    torch.testing.assert_close(latent, 0.3 + (x - 0.3) * stretch, rtol=1e-3, atol=1e-3)


def test_a_latent_keeps_the_dtype_and_no_graph():
    weight = torch.ones(1, requires_grad=True)
    latent = encode(lambda x, sigma: -weight * x, torch.zeros(4, 2), KarrasSchedule(2, 0.1, 5).sigmas().double())
    assert latent.dtype == torch.float32
    assert not latent.requires_grad


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), t=st.floats(0, 1), scale=st.floats(0.01, 100))
def test_an_arc_has_its_ends_its_length_and_an_even_turn(seed, t, scale):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 3, 2, 4, dtype=torch.float64, generator=generator)
    b = scale * b
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)
    between = slerp(a, b, t)
    norms = [v.flatten(1).norm(dim=1) for v in (a, b, between)]
    torch.testing.assert_close(norms[2], (1 - t) * norms[0] + t * norms[1])
    cosines = [torch.cosine_similarity(a.flatten(1), v.flatten(1)).clamp(-1, 1) for v in (b, between)]
    torch.testing.assert_close(cosines[1], (t * cosines[0].acos()).cos())
    torch.testing.assert_close(between, slerp(b, a, 1 - t))
    each = slerp(a, b, torch.tensor([0.0, t, 1.0], dtype=torch.float64).view(3, 1, 1))
    torch.testing.assert_close(each, torch.stack([a[0], between[1], b[2]]))


def test_an_arc_between_vectors_on_one_line_is_that_line():
    a = torch.randn(1, 5)
    torch.testing.assert_close(slerp(a, a, 0.3), a)
    torch.testing.assert_close(slerp(a, 3 * a, 0.5), 2 * a)
    torch.testing.assert_close(slerp(a, -a, 0.25), 0.5 * a)
    torch.testing.assert_close(slerp(a, torch.zeros(1, 5), 0.25), 0.75 * a)


# Refusals

X = torch.rand(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (lambda: classifier_free(torch.add, torch.add, math.nan), "weight=nan"),
        (lambda: classifier_free(torch.add, torch.add, math.inf), "weight=inf"),
        (lambda: classifier_free(torch.add, torch.add, 2.0, (2.0, 1.0)), r"interval=\(2.0, 1.0\)"),
        (lambda: classifier_free(torch.add, torch.add, 2.0, (-1.0, 1.0)), "interval="),
        (lambda: classifier_free(torch.add, torch.add, 2.0, (0.0, math.nan)), "interval="),
        (lambda: posterior(torch.add, grey, X, 0.0), "noise=0.0"),
        (lambda: posterior(torch.add, grey, X, math.nan), "noise=nan"),
        (lambda: posterior(torch.add, grey, X, 0.1, iterations=0), "iterations=0"),
        (lambda: AveragePooling(0), "factor=0"),
        (lambda: GaussianBlur(0.0), "width=0.0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(refused, words):
    with pytest.raises(ValueError, match=words) as error:
        refused()
    assert "\n" not in str(error.value)
