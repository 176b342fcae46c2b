"""Looks are those of the judge, in order; those at the training pictures are kept, and made anew where they must."""

import re

import pytest
import torch
from ncsn.data import Digits, to_pixels, to_unit
from ncsn.evaluation.extractors import cache_folder, look_at, looks, real_pictures, reference_looks
from ncsn.evaluation.features import Features


class Counting(Features):
    """Features that count the pictures which they look at."""

    seen = 0

    def look(self, x):
        self.seen += len(x)
        return super().look(x)


@pytest.fixture
def judge() -> Counting:
    torch.manual_seed(1)
    return Counting(1, 10, width=2, num_features=3).eval()


@pytest.fixture
def digits() -> Digits:
    data = Digits()
    data.setup()
    return data


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ncsn"


def same(one, other) -> bool:
    return torch.equal(one.features, other.features) and torch.equal(one.logits, other.logits)


def test_looks_are_features_and_logits_of_the_pixels_in_order(judge):
    x = 1.4 * torch.rand(30, 1, 8, 8) - 0.2
    found = looks(judge, x.split(7))
    with torch.no_grad():
        pixels = to_unit(to_pixels(x))
        torch.testing.assert_close(found.features, judge(pixels))
        torch.testing.assert_close(found.logits, judge.logits(pixels))
    assert not found.features.requires_grad


def test_a_judge_in_training_looks_as_in_evaluation_and_is_left_as_it_is(judge):
    x = torch.rand(20, 1, 8, 8)
    expected = looks(judge, [x])
    judge.train()
    assert same(looks(judge, [x]), expected)
    assert all(module.training for module in judge.modules())
    assert all(parameter.requires_grad for parameter in judge.parameters())
    assert judge.body[1].num_batches_tracked == 0


def test_what_cannot_be_judged_is_refused_and_leaves_the_mode(judge):
    judge.train()
    with pytest.raises(ValueError, match="not finite"):
        look_at(judge, torch.full((2, 1, 8, 8), torch.nan))
    with pytest.raises(ValueError, match=re.escape("must be (B, 1, H, W)")):
        look_at(judge, torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match="there are none"):
        looks(judge, [])
    assert judge.training


def test_the_reference_is_looked_at_once(judge, digits, cache):
    count = len(digits.splits["train"])
    first = reference_looks(judge, digits)
    assert judge.seen == count
    assert same(first, looks(judge, real_pictures(digits)))
    judge.seen = 0
    assert same(reference_looks(judge, digits), first)
    assert judge.seen == 0
    assert cache_folder() == cache
    assert len(list(cache.iterdir())) == 1


def test_of_another_judge_or_other_pictures_it_is_another(judge, digits, cache):
    first = reference_looks(judge, digits)
    with torch.no_grad():
        judge.body[-1].bias += 1
    torch.testing.assert_close(reference_looks(judge, digits).features, first.features + 1)
    digits.splits["train"].values[3, 0, 2, 2] += 1
    judge.seen = 0
    reference_looks(judge, digits)
    assert judge.seen == len(digits.splits["train"])
    assert len(list(cache.iterdir())) == 3


def flipped(content: bytes) -> bytes:
    return content[:-3] + bytes([content[-3] ^ 16]) + content[-2:]


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:-9], lambda content: b"", lambda content: b"no"])
def test_a_damaged_cache_is_made_anew(judge, digits, cache, damage):
    first = reference_looks(judge, digits)
    (file,) = cache.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    for looked_at in (len(digits.splits["train"]), 0):
        judge.seen = 0
        assert same(reference_looks(judge, digits), first)
        assert judge.seen == looked_at


def test_a_cache_that_cannot_be_written_is_done_without(judge, digits, cache):
    cache.parent.mkdir()
    cache.write_text("a file in the place of the folder")
    with pytest.warns(UserWarning, match="are not kept for the next time"):
        found = reference_looks(judge, digits)
    assert same(found, looks(judge, real_pictures(digits)))


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
