"""The Frechet distance against another computation of it, and against what it should say of pictures."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from ncsn.data import MNIST, Digits, ImageData, to_pixels, to_unit
from ncsn.features import Features, load_features
from ncsn.metrics import FrechetDistance, frechet_distance, real_pictures

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"


@pytest.fixture
def features() -> Features:
    """Of chance, which is as good for a formula."""
    return Features(1, 10, width=4, num_features=6).eval()


@pytest.fixture(scope="module")
def digits() -> ImageData:
    data = Digits()
    data.setup()
    return data


@pytest.fixture(scope="module")
def mnist(real_data) -> ImageData:
    data = MNIST(root=str(real_data))
    data.setup()
    return data


def by_square_root(features: Features, x, y) -> float:
    """The distance by a square root of a matrix in float64, of features that are computed by themselves."""
    with torch.no_grad():
        a, b = (
            torch.cat([features(to_unit(to_pixels(p))) for p in part.split(100)]).double().numpy() for part in (x, y)
        )
    c, d = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(c @ d).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c + d - 2 * root))


def test_it_is_the_distance_that_a_matrix_square_root_gives(features):
    x, y = torch.rand(400, 1, 12, 12), torch.rand(300, 1, 12, 12) ** 2
    found = frechet_distance(features, x.split(64), y.split(7))
    assert found == pytest.approx(by_square_root(features, x, y), rel=1e-3)
    assert found == pytest.approx(frechet_distance(features, y.split(50), x.split(33)), rel=1e-3)  # symmetric
    assert found > 0


def test_a_set_is_at_no_distance_from_itself_in_any_order_and_batches(features):
    x, y = torch.rand(400, 1, 12, 12), torch.rand(400, 1, 12, 12) ** 2
    far = frechet_distance(features, [x], [y])
    assert abs(frechet_distance(features, x.flip(0).split(64), x.split(100))) < 1e-5 * far


def test_pictures_are_judged_as_the_pixels_that_a_file_holds(features):
    x, y = to_unit(torch.randint(256, (200, 1, 8, 8)).to(torch.uint8)), torch.rand(200, 1, 8, 8) ** 2
    exact = frechet_distance(features, [x], [y])
    jittered = x + (torch.rand_like(x) - 0.5) * 0.9 / 255
    beyond = torch.where(x == 1, 1.7, torch.where(x == 0, -0.3, jittered))
    assert frechet_distance(features, [jittered], [y]) == exact
    assert frechet_distance(features, [beyond], [y]) == exact
    assert frechet_distance(features, [x + 1 / 255], [y]) != exact


def test_the_features_that_are_given_stay_as_they_are_and_the_metric_s_are_not_trained(features):
    features.train()
    metric = FrechetDistance(features).train()
    for real in (True, False):
        metric.update(torch.rand(20, 1, 8, 8), real=real)
    assert features.training
    assert all(parameter.requires_grad for parameter in features.parameters())
    assert features.body[1].num_batches_tracked == metric.inception.body[1].num_batches_tracked == 0


def test_reset_keeps_the_reference(features):
    x, y, z = torch.rand(50, 1, 8, 8), torch.rand(50, 1, 8, 8) ** 2, torch.rand(50, 1, 8, 8) ** 3
    metric = FrechetDistance(features)
    metric.update(y, real=True)
    metric.update(z, real=False)
    metric.reset()
    metric.update(x, real=False)
    assert metric.compute().item() == frechet_distance(features, [x], [y])


def test_what_cannot_be_judged_is_refused(features):
    x = torch.rand(5, 1, 8, 8)
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(features, [x, x * torch.nan], [x])
    with pytest.raises(ValueError, match="of 1 pictures and 5 real ones"):
        frechet_distance(features, [x[:1]], [x])
    with pytest.raises(ValueError, match="of 5 pictures and 0 real ones"):
        frechet_distance(features, [x], [])
    with pytest.raises(ValueError, match="must be \\(B, 1, H, W\\)"):
        frechet_distance(features, [x.expand(-1, 3, -1, -1)], [x])


def test_real_pictures_are_each_given_once_and_as_they_are(digits):
    values = digits.splits["train"].values
    drawn = torch.cat(list(real_pictures(digits, batch_size=100)))
    assert len(drawn) == len(values)  # the last batch is not dropped
    assert torch.equal(to_pixels(drawn).flatten(1).unique(dim=0), values.flatten(1).unique(dim=0))
    assert torch.equal(to_unit(to_pixels(drawn)), drawn)
    some = torch.cat(list(real_pictures(digits, "val", 50, batch_size=20)))
    assert torch.equal(some, torch.cat(list(real_pictures(digits, "val", 50, batch_size=50))))
    for count in (0, len(values) + 1):
        with pytest.raises(ValueError, match="real pictures"):
            next(real_pictures(digits, "train", count))


def test_of_real_digits_it_is_small_and_of_others_large(mnist):
    features = load_features(CHECKPOINTS / "features_mnist.safetensors")
    reference = torch.cat(list(real_pictures(mnist, "train", 2000)))
    held_out = torch.cat(list(real_pictures(mnist, "val", 2000)))

    metric = FrechetDistance(features)
    for batch in reference.split(100):
        metric.update(batch, real=True)

    def of(x):
        metric.reset()  # but for the reference
        for batch in x.split(100):
            metric.update(batch, real=False)
        return metric.compute().item()

    floor = of(held_out)
    assert floor == pytest.approx(by_square_root(features, held_out, reference), rel=1e-3)
    assert abs(of(reference)) < 1e-3 * floor
    assert of(held_out + 0.1 * torch.randn_like(held_out)) > 2 * floor
    assert of(held_out.flip(-2)) > 20 * floor
    assert of(torch.rand_like(held_out)) > 1000 * floor
    assert of(held_out.mean(0, keepdim=True).expand_as(held_out)) > 100 * floor
