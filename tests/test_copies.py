"""Copies are found, and what is merely near is not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ncsn.data import Digits
from ncsn.data.examples import HeldExamples
from ncsn.evaluation.copies import are_copies, nearest, significantly_more


def held(pixels) -> HeldExamples:
    return HeldExamples(pixels, torch.zeros(len(pixels)))


def by_hand(x, pixels, neighbours=50):
    """Distances to every training image, one by one, sorted."""
    x = (x.clamp(0, 1) * 255).round() / 255
    every = (x.flatten(1).double()[:, None] - pixels.flatten(1).double()[None] / 255).norm(dim=-1).sort(1).values
    return torch.stack([every[:, 0], every[:, :neighbours].mean(1)], dim=1).float()


@settings(max_examples=15)
@given(st.integers(1, 130), st.integers(1, 9), st.integers(1, 40), st.integers(0, 1000))
def test_distances_are_those_of_a_search_whatever_the_chunks(count, batch, chunk, seed):
    torch.manual_seed(seed)
    pixels = torch.randint(256, (count, 1, 6, 6)).to(torch.uint8)
    x = 1.5 * torch.rand(batch, 1, 6, 6) - 0.2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ncsn.evaluation.copies.CHUNK", chunk)
        torch.testing.assert_close(nearest(x, held(pixels)), by_hand(x, pixels), rtol=1e-3, atol=1e-3)


def test_a_copy_is_at_no_distance_at_all():
    pixels = torch.randint(256, (300, 3, 32, 32)).to(torch.uint8)
    x = pixels[[5, 299]] / 255 + 0.001
    assert nearest(x, held(pixels))[:, 0].tolist() == [0, 0]


def test_a_copy_is_nearer_to_one_image_than_half_of_the_mean_to_fifty():
    distances = torch.tensor([[0.0, 1.0], [0.49, 1.0], [0.5, 1.0], [1.0, 1.0]])
    assert are_copies(distances).tolist() == [True, True, False, False]


def test_copies_and_slightly_noisy_ones_are_found_among_digits_and_an_empty_image_is_none():
    data = Digits()
    data.setup()
    training = data.splits["train"]
    x = training[list(range(200))][0] / 255
    assert are_copies(nearest(x, training)).all()
    noisy = x + 0.03 * torch.randn_like(x)
    assert are_copies(nearest(noisy, training)).float().mean() > 0.95
    held_out = data.splits["val"][list(range(len(data.splits["val"])))][0] / 255
    assert are_copies(nearest(held_out, training)).float().mean() < 0.2
    others = torch.stack([torch.zeros(1, 8, 8), torch.full((1, 8, 8), 0.3), torch.rand(1, 8, 8)])
    assert not are_copies(nearest(others, training)).any()


@pytest.mark.parametrize(
    ("share", "count", "floor", "floor_count", "plainly"),
    [
        (1.0, 65, 0.0, 65, True),
        (0.0, 100, 0.0, 100, False),
        (0.01, 100, 0.0, 100, False),  # one of a hundred
        (0.01, 10_000, 0.0, 10_000, True),
        (0.13, 200, 0.11, 180, False),
        (0.5, 200, 0.11, 180, True),
        (0.05, 200, 0.11, 180, False),
    ],
)
def test_a_share_is_plainly_more_by_three_standard_errors(share, count, floor, floor_count, plainly):
    assert significantly_more(share, count, floor, floor_count) is plainly
