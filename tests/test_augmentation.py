"""Augmentation moves the images as its nine numbers say, and the network is told of it."""

import math

import pytest
import torch
from ncsn.networks import UNet
from ncsn.noise import GeometricSchedule
from ncsn.noise.streams import Streams
from ncsn.objectives import DenoisingScoreMatching
from ncsn.samplers import AnnealedLangevin
from ncsn.score import NCSNDenoiser
from ncsn.training import augmentation
from ncsn.training.augmentation import augmented
from ncsn.training.module import ScoreModule

VERTICAL, TURN, SCALE, STRETCH, MOVE = range(5)


def forced(monkeypatch, chosen=None, mirror=False, angle=0.0, axis=0.0, z=(0.0, 0.0, 0.0, 0.0)):
    """Let the random numbers be these: the augmentation `chosen`, coins of 1, angles and deviations."""
    values = {
        5: [0.0 if i == chosen else 0.9 for i in range(5)],
        4: [0.0 if mirror else 0.9, 0.0, (angle / math.pi + 1) / 2, (axis / math.pi + 1) / 2],
    }
    monkeypatch.setattr(augmentation, "uniform", lambda x: torch.tensor([values[x.shape[1]]]).expand_as(x))
    monkeypatch.setattr(augmentation, "normal", lambda x: torch.tensor([z]).expand_as(x))


def images(height=8, width=8):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_an_image_that_is_left_alone_stays_as_it_is(monkeypatch):
    forced(monkeypatch)
    x, label = augmented(images(6, 9), torch.tensor([3, -1]), 0.1)
    close(x, images(6, 9))
    assert label.tolist() == [[3] + 9 * [0], [-1] + 9 * [0]]


def test_mirrors(monkeypatch):
    forced(monkeypatch, mirror=True)
    x, label = augmented(images(6, 9), None, 0.1)
    close(x, images(6, 9).flip(-1))
    assert label[0].tolist() == [-1, 1, *8 * [0]]
    forced(monkeypatch, VERTICAL)
    x, label = augmented(images(6, 9), None, 0.1)
    close(x, images(6, 9).flip(-2))
    assert label[0].tolist() == [-1, 0, 1, *7 * [0]]


@pytest.mark.parametrize("quarters", [-1, 1])
def test_a_quarter_turn(monkeypatch, quarters):
    forced(monkeypatch, TURN, angle=quarters * math.pi / 2)
    x, label = augmented(images(), None, 0.1)
    close(x, images().rot90(quarters, (-2, -1)))
    close(label[0], torch.tensor([-1, 0, 0, 0, -1, quarters, 0, 0, 0, 0.0]))


def test_half_a_turn_of_an_oblong(monkeypatch):
    forced(monkeypatch, TURN, angle=-math.pi)
    close(augmented(images(6, 9), None, 0.1)[0], images(6, 9).flip(-1, -2))


def test_a_translation_is_in_units_of_an_eighth_and_reflects(monkeypatch):
    forced(monkeypatch, MOVE, z=(0.0, 0.0, 2.0, -1.0))  # two pixels to the right and one up, of 8
    x, label = augmented(images(), None, 0.1)
    expected = images()[..., [1, 2, 3, 4, 5, 6, 7, 7], :][..., [1, 0, 0, 1, 2, 3, 4, 5]]
    close(x, expected)
    assert label[0].tolist() == [-1, *7 * [0], 2, -1]


def test_a_scale_enlarges_by_its_power_of_two(monkeypatch):
    forced(monkeypatch, SCALE, z=(1 / 0.2, 0.0, 0.0, 0.0))
    ramp = torch.linspace(-1, 1, 9).expand(1, 1, 9, 9)
    x, label = augmented(ramp, None, 0.1)
    close(x, ramp / 2)
    close(label[0], torch.tensor([-1, 0, 0, 5, *6 * [0.0]]))


@pytest.mark.parametrize("axis", [0.0, math.pi / 2])
def test_a_stretch_is_along_its_axis_and_keeps_areas(monkeypatch, axis):
    forced(monkeypatch, STRETCH, axis=axis, z=(0.0, 1 / 0.2, 0.0, 0.0))
    across = torch.linspace(-1, 1, 9).expand(1, 1, 9, 9)
    wide, high = (1 / 2, 2) if axis == 0 else (2, 1 / 2)
    inner = slice(3, 6)  # without the reflected places
    for ramp, factor in ((across, wide), (across.mT, high)):
        x, label = augmented(ramp, None, 0.1)
        close(x[..., inner, inner], factor * ramp[..., inner, inner])
    close(label[0, 6:8], torch.tensor([5 * math.cos(axis), 5 * math.sin(axis)]))


@pytest.mark.parametrize("probability", [0.0, 0.12, 0.5, 0.9])
def test_each_is_as_frequent_as_asked(probability):
    with Streams(1, range(4000)):
        _, label = augmented(torch.zeros(4000, 1, 2, 2), None, probability)
    deviation = 5 * math.sqrt(probability * (1 - probability) / 4000)
    for number, expected in ((1, 0.5), (2, probability / 2), *((i, probability) for i in (3, 5, 6, 8, 9))):
        seen = (label[:, number] != 0).float().mean().item()
        assert abs(seen - expected) <= deviation + 5 * (number == 1) / math.sqrt(16000)


def test_a_place_is_exact_in_bf16_too(monkeypatch):
    forced(monkeypatch, TURN, angle=0.3)
    expected = augmented(images(30, 30), None, 0.1)[0]
    with torch.autocast("cpu", torch.bfloat16):
        close(augmented(images(30, 30), None, 0.1)[0], expected)


def network(classes=10, augmentations=9):
    torch.manual_seed(0)
    net = UNet(1, width=8, multipliers=[1], blocks=1, classes=classes, augmentations=augmentations)
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return net


@pytest.mark.parametrize("classes", [0, 10])
def test_nine_zeros_are_an_image_as_it_is_and_other_numbers_are_not(classes):
    net, x, sigma = network(classes), torch.rand(3, 1, 8, 8), torch.tensor(0.5)
    label = torch.tensor([-1, 2, 9]) if classes else None
    zeros = torch.cat([torch.full((3, 1), -1.0) if label is None else label.unsqueeze(1).float(), torch.zeros(3, 9)], 1)
    torch.testing.assert_close(net(x, sigma, zeros), net(x, sigma, label))
    assert not torch.allclose(net(x, sigma, zeros + torch.eye(10)[1]), net(x, sigma, label))


def test_each_weight_has_a_gradient_without_augmentation_as_training_on_two_devices_needs():
    net = network()
    net(torch.rand(3, 1, 8, 8), torch.tensor(0.5), torch.tensor([-1, 2, 9])).sum().backward()
    assert all(weight.grad is not None for weight in net.parameters())


def module(augment, **options):
    parts = NCSNDenoiser(network(**options)), GeometricSchedule(2, 0.1, 4), DenoisingScoreMatching()
    return ScoreModule(*parts, AnnealedLangevin(1e-3, 1), (1, 8, 8), augment=augment, label_dropout=0.0)


def test_training_tells_the_network_and_validation_leaves_images_alone(monkeypatch):
    seen = []
    trained = module(0.5)
    trained.denoiser.network.conditioning.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    monkeypatch.setattr(ScoreModule, "step_seed", 0)
    trained.random_losses(torch.rand(64, 1, 8, 8), torch.arange(64) % 10)
    assert seen[0].shape == (64, 10)
    assert torch.equal(seen[0][:, 0], torch.arange(64.0) % 10)
    assert (seen[0][:, 1:] != 0).any(0).all()
    trained.losses(torch.rand(2, 1, 8, 8), torch.ones(2, 1, 1, 1), torch.tensor([1, 2]))
    assert torch.equal(seen[1], torch.tensor([1, 2]))


@pytest.mark.parametrize(
    ("augment", "options"), [(0.12, {"augmentations": 0}), (0.12, {"augmentations": 3}), (1.0, {})]
)
def test_wrong_settings_are_refused(augment, options):
    with pytest.raises(ValueError, match="augment"):
        module(augment, **options)
    with pytest.raises(ValueError, match="augmentations >= 0"):
        UNet(1, augmentations=-1)
