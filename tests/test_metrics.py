"""Metrics against other computations of them, and against what they should say of images."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ncsn.data import MNIST, to_pixels, to_unit
from ncsn.evaluation.classifier import Classifier, load_classifier
from ncsn.evaluation.extractors import extract_all, real_images
from ncsn.evaluation.metrics import classifier_score, frechet, frechet_distance, kernel_distance, precision_recall

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"


@pytest.fixture
def features() -> Classifier:
    """Of chance, which is as good for a formula."""
    return Classifier(1, 10, width=4, num_features=6).eval()


def by_square_root(a, b) -> float:
    """The distance of features by a square root of a matrix in float64."""
    a, b = a.double().numpy(), b.double().numpy()
    c, d = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(c @ d).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c + d - 2 * root))


def seen(features: Classifier, x):
    """The features of images, computed by themselves."""
    with torch.no_grad():
        return torch.cat([features(to_unit(to_pixels(part))) for part in x.split(100)])


def test_it_is_the_distance_that_a_matrix_square_root_gives(features):
    x, y = torch.rand(400, 1, 12, 12), torch.rand(300, 1, 12, 12) ** 2
    found = frechet_distance(features, x.split(64), y.split(7))
    assert found == pytest.approx(by_square_root(seen(features, x), seen(features, y)), rel=1e-3)
    assert found == pytest.approx(frechet_distance(features, y.split(50), x.split(33)), rel=1e-3)  # symmetric
    assert found > 0


@settings(max_examples=20)
@given(st.integers(2, 8), st.integers(20, 60), st.integers(20, 60), st.integers(0, 1000))
def test_it_is_that_distance_of_any_features_and_of_more_than_a_chunk(dimension, n, m, seed):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, dimension, generator=generator)
    b = torch.randn(m, dimension, generator=generator) @ torch.randn(dimension, dimension, generator=generator) + 1
    assert frechet(a, b) == pytest.approx(by_square_root(a, b), rel=1e-3)
    many = torch.cat([a] * 300)
    assert frechet(many, b) == pytest.approx(by_square_root(many, b), rel=1e-3)


def test_of_gaussians_it_is_the_closed_form():
    # N(0, I) and N(mean, diag(s^2)): ||mean||^2 + sum of (s - 1)^2.
    x, y = torch.randn(200_000, 3), torch.randn(200_000, 3) * torch.tensor([1.0, 2.0, 0.5]) + torch.tensor([1.0, 0, 0])
    assert frechet(x, y) == pytest.approx(1 + 1 + 0.25, rel=0.02)


def test_a_set_is_at_no_distance_from_itself_in_any_order_and_batches(features):
    x, y = torch.rand(400, 1, 12, 12), torch.rand(400, 1, 12, 12) ** 2
    far = frechet_distance(features, [x], [y])
    assert abs(frechet_distance(features, x.flip(0).split(64), x.split(100))) < 1e-5 * far


def test_images_are_evaluated_as_the_pixels_that_a_file_holds(features):
    x, y = to_unit(torch.randint(256, (200, 1, 8, 8)).to(torch.uint8)), torch.rand(200, 1, 8, 8) ** 2
    exact = frechet_distance(features, [x], [y])
    jittered = x + (torch.rand_like(x) - 0.5) * 0.9 / 255
    beyond = torch.where(x == 1, 1.7, torch.where(x == 0, -0.3, jittered))
    assert frechet_distance(features, [jittered], [y]) == exact
    assert frechet_distance(features, [beyond], [y]) == exact
    assert frechet_distance(features, [x + 1 / 255], [y]) != exact


def test_what_cannot_be_evaluated_is_refused(features):
    x = torch.rand(5, 1, 8, 8)
    with pytest.raises(ValueError, match="expected finite values"):
        frechet_distance(features, [x, x * torch.nan], [x])
    with pytest.raises(ValueError, match="expected two images of each kind, got 1 and 5"):
        frechet_distance(features, [x[:1]], [x])
    with pytest.raises(ValueError, match="expected at least one, got none"):
        frechet_distance(features, [x], [])
    with pytest.raises(ValueError, match="expected images \\(B, 1, H, W\\)"):
        frechet_distance(features, [x.expand(-1, 3, -1, -1)], [x])


def cubic(a, b):
    a, b = a.double(), b.double()
    return (a @ b.T / a.shape[1] + 1) ** 3


def test_the_kernel_distance_is_the_unbiased_discrepancy_of_a_cubic_kernel():
    a, b = torch.randn(50, 4), torch.randn(50, 4) + 1
    off = 1 - torch.eye(50)
    n = 50
    expected = ((cubic(a, a) + cubic(b, b)) * off).sum() / (n * (n - 1)) - 2 * cubic(a, b).mean()
    assert kernel_distance(a, b) == pytest.approx(expected.item(), rel=1e-4)  # every subset is the whole set
    # Of subsets of 1,000 it is the same but for chance: about 0 for one distribution, far from it for two.
    c, d, e = torch.randn(3000, 4), torch.randn(2000, 4), torch.randn(2000, 4) + 1
    assert abs(kernel_distance(c, d)) < 0.02 * kernel_distance(c, e)


def test_the_score_of_classes_is_from_1_to_their_number():
    sure = 100 * torch.eye(5).repeat(400, 1)
    assert classifier_score(sure) == pytest.approx(5, rel=0.02)
    assert classifier_score(sure[torch.arange(2000) % 5 < 2]) == pytest.approx(2, rel=0.02)
    assert classifier_score(sure[:1].expand(500, -1)) == pytest.approx(1)
    assert classifier_score(torch.zeros(500, 5)) == pytest.approx(1)
    # Half sure of one of two classes each: exp of KL(p || mean), p = (3/4, 1/4) or the other way round.
    p = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).repeat(5000, 1)
    kl = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    assert classifier_score(p.log()) == pytest.approx(np.exp(kl), rel=1e-3)


def by_balls(a, b) -> float:
    """The share of `a` in the balls about `b` that reach the third neighbour."""
    radius = torch.cdist(b, b).sort(1).values[:, 3]
    return (torch.cdist(a, b) <= radius).any(1).double().mean().item()


def test_precision_and_recall_are_shares_in_balls_of_as_many_of_each():
    drawn, real = 0.5 * torch.randn(150, 3) + 0.3, torch.randn(400, 3)
    precision, recall = precision_recall(drawn, real)
    assert precision == pytest.approx(by_balls(drawn, real[:150]))
    assert recall == pytest.approx(by_balls(real[:150], drawn))
    assert precision > recall + 0.1
    few = real[:100]
    assert precision_recall(drawn, few) == pytest.approx((by_balls(drawn[:100], few), by_balls(few, drawn[:100])))


def test_precision_and_recall_of_planted_sets():
    real = torch.randn(500, 4)
    assert precision_recall(real, real) == (1, 1)
    one = torch.zeros(500, 4)
    precision, recall = precision_recall(one, real)
    assert precision == 1  # a likely image
    assert recall < 0.01
    away, _ = precision_recall(real + 20, real)
    assert away == 0


def test_metrics_leave_the_random_generator_alone():
    x = torch.randn(100, 4)
    state = torch.random.get_rng_state()
    first = kernel_distance(x, x + 1), classifier_score(x)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(5)
    assert (kernel_distance(x, x + 1), classifier_score(x)) == first


def test_of_real_digits_they_are_good_and_of_others_bad(real_data):
    data = MNIST(root=str(real_data), labels=True)
    data.setup()
    extractor = load_classifier(CHECKPOINTS / "features_mnist.safetensors")
    images = torch.cat(list(real_images(data, "val", 1000)))
    held_out = extract_all(extractor, images.split(100))
    reference = extract_all(extractor, real_images(data, "train", 1000))

    def distance(x):
        return frechet(extract_all(extractor, x.split(100)).features, reference.features)

    floor = frechet(held_out.features, reference.features)
    assert floor == pytest.approx(by_square_root(held_out.features, reference.features), rel=1e-3)
    assert abs(frechet(reference.features, reference.features)) < 1e-3 * floor
    assert distance(images + 0.1 * torch.randn_like(images)) > 2 * floor
    assert distance(images.flip(-2)) > 20 * floor
    assert distance(torch.rand_like(images)) > 1000 * floor

    mean, one = images.mean(0, keepdim=True), images[:1]
    for x in (mean, one):  # over and over
        found = extract_all(extractor, x.expand_as(images).split(100))
        assert frechet(found.features, reference.features) > 100 * floor
        assert classifier_score(found.logits) < 1.01
        assert precision_recall(found.features, reference.features)[1] < 0.05

    half = held_out.logits.argmax(1) < 5  # half of the classes are missing
    features = held_out.features[half]
    assert frechet(features, reference.features) > 10 * floor
    assert classifier_score(held_out.logits[half]) < 0.6 * classifier_score(held_out.logits)
    kernel = kernel_distance(held_out.features, reference.features)
    assert kernel_distance(features, reference.features) > 10 * abs(kernel)
    precision, recall = precision_recall(held_out.features, reference.features)
    precision_of_half, recall_of_half = precision_recall(features, reference.features)
    assert precision_of_half > 0.9 * precision
    assert recall_of_half < 0.7 * recall
