"""The toys: mixtures that look like what they are named for, and as data."""

import math

import pytest
import torch
from ncsn.data import Points
from ncsn.score.toys import Checkerboard, EightGaussians, Pinwheel, Rings, TwoMoons, TwoSpirals
from torch.utils.data import DataLoader

TOYS = [Checkerboard, EightGaussians, Pinwheel, Rings, TwoMoons, TwoSpirals]
NONE = torch.zeros(())


def lattice(reach=6.0, nodes=151):
    axis = torch.linspace(-reach, reach, nodes)
    return torch.cartesian_prod(axis, axis), (axis[1] - axis[0]).item() ** 2


@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_the_density_is_one_and_the_samples_are_of_it(toy, sigma):
    x, area = lattice(nodes=101 if sigma else 151)
    mass = toy().log_prob(x, torch.tensor(sigma)).exp() * area
    assert mass.sum().item() == pytest.approx(1, abs=1e-3)
    samples = toy().sample(20_000, sigma)
    assert samples.shape == (20_000, 2)
    for power in (1, 2):
        expected = (mass.unsqueeze(1) * x**power).sum(0)
        error = 5 * samples.pow(power).std(0) / math.sqrt(20_000)
        assert ((samples.pow(power).mean(0) - expected).abs() < error).all()
    # Coarse cells hold as many samples as the density says: it is not only the moments that agree.
    cell = ((x + 6) / 1.5).long().clamp(0, 7) @ torch.tensor([8, 1])
    expected = torch.zeros(64).index_add(0, cell, mass)
    counted = torch.bincount(((samples + 6) / 1.5).long().clamp(0, 7) @ torch.tensor([8, 1]), minlength=64) / 20_000
    assert (counted - expected).abs().max() < 0.015


@pytest.mark.parametrize("toy", TOYS)
def test_the_score_is_the_gradient_of_the_log_density(toy):
    x, toy = toy().sample(50, 0.1).requires_grad_(), toy()
    for sigma in (NONE, torch.rand(50, 1) + 0.05):
        exact = torch.autograd.grad(toy.log_prob(x, sigma).sum(), x)[0]
        torch.testing.assert_close(toy.score(x, sigma), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("toy", [toy for toy in TOYS if toy is not EightGaussians])
def test_no_toy_shows_that_it_is_made_of_pieces(toy):
    # Along the ridge from a centre to the next one, the density hardly dips.
    means = toy().means
    distance = torch.cdist(means, means).fill_diagonal_(math.inf)
    nearest = distance.argmin(1)
    ends, middle = toy().log_prob(means, NONE), toy().log_prob((means + means[nearest]) / 2, NONE)
    assert (torch.minimum(ends, ends[nearest]) - middle).max() < 0.05


def test_shapes_are_those_of_their_names():
    radius = Rings().sample(5000).norm(dim=1)
    assert ((radius / 0.9 - (radius / 0.9).round()).abs() * 0.9 < 4.5 * 0.12).all()
    assert {1.0, 2.0, 3.0, 4.0} <= set((radius / 0.9).round().tolist())
    assert EightGaussians().means.norm(dim=1).tolist() == pytest.approx([3.0] * 8)
    x = Checkerboard(std=0.01).sample(5000)
    assert ((((x + 4) / 2).floor().long().sum(1) % 2) == 1).float().mean() > 0.98
    fifth = 2 * math.pi / 5
    turn = torch.tensor([[math.cos(fifth), math.sin(fifth)], [-math.sin(fifth), math.cos(fifth)]])
    x = Pinwheel().sample(500)
    torch.testing.assert_close(Pinwheel().log_prob(x @ turn, NONE), Pinwheel().log_prob(x, NONE), rtol=1e-3, atol=1e-3)
    for toy in (TwoMoons(), TwoSpirals()):
        x = toy.sample(500)
        torch.testing.assert_close(toy.log_prob(-x, NONE), toy.log_prob(x, NONE), rtol=1e-3, atol=1e-3)


def test_the_arms_of_the_spirals_are_a_third_of_their_angle_from_the_middle():
    arm, other = TwoSpirals().means.double().chunk(2)
    torch.testing.assert_close(other, -arm)
    radius = arm.norm(dim=1)
    angle = 3 * radius
    along = radius.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], dim=1)
    torch.testing.assert_close(arm, along, rtol=0, atol=1e-5)  # float32
    # One and a half turns, from near the middle outwards.
    assert (angle.diff() > 0).all()
    assert (angle[0].item() < 0.31 * math.pi, angle[-1].item()) == (True, pytest.approx(3 * math.pi))


def test_the_moons_are_two_half_circles():
    upper, lower = TwoMoons().means.double().chunk(2)
    for moon, centre, side in ((upper, (-1.0, -0.5), 1), (lower, (1.0, 0.5), -1)):
        from_centre = side * (moon - torch.tensor(centre).double())
        torch.testing.assert_close(from_centre.norm(dim=1), torch.full((64,), 2.0).double())
        angle = torch.atan2(from_centre[:, 1].clamp(min=0), from_centre[:, 0])
        torch.testing.assert_close(angle, torch.linspace(0, math.pi, 64).double(), rtol=0, atol=1e-6)
        assert (from_centre[:, 1] > -1e-6).all()


@pytest.mark.parametrize("std", [0.0, -1.0, math.inf, math.nan])
def test_impossible_widths_are_refused(std):
    with pytest.raises(ValueError, match=r"expected std > 0, got std=.* \(TwoMoons\)"):
        TwoMoons(std)


def test_points_are_the_same_every_time_and_validation_has_others():
    data, again = Points(TwoMoons(), count=1000, batch_size=100), Points(TwoMoons(), count=1000, batch_size=100)
    for points in (data, again):
        points.setup()
    assert torch.equal(data.splits["train"].values, again.splits["train"].values)
    assert (len(data.splits["train"]), len(data.splits["val"])) == (1000, 100)
    assert not (data.splits["val"].values[:, None] == data.splits["train"].values).all(2).any()
    loader = data.train_dataloader()
    assert isinstance(loader, DataLoader)
    x, label = data.on_after_batch_transfer(next(iter(loader)), 0)
    assert (x.shape, x.dtype, label) == ((100, 2), torch.float32, None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Points(TwoMoons(), count=0), "Points: count is 0"),
        (lambda: Points(TwoMoons(), batch_size=0), "Points: batch_size is 0"),
    ],
)
def test_impossible_data_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
