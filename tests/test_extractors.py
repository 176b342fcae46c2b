"""Features are those of the extractor, in order; those of the training images are cached, and renewed if needed."""

import re

import pytest
import torch
from ncsn.data import Digits, to_pixels, to_unit
from ncsn.evaluation.classifier import Classifier
from ncsn.evaluation.extractors import cache_folder, extract, extract_all, real_images, reference_features


class Counting(Classifier):
    """An extractor that counts the images that it is applied to."""

    seen = 0

    def features_and_logits(self, x):
        self.seen += len(x)
        return super().features_and_logits(x)


@pytest.fixture
def extractor() -> Counting:
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


def test_features_and_logits_are_those_of_the_pixels_in_order(extractor):
    x = 1.4 * torch.rand(30, 1, 8, 8) - 0.2
    found = extract_all(extractor, x.split(7))
    with torch.no_grad():
        pixels = to_unit(to_pixels(x))
        torch.testing.assert_close(found.features, extractor(pixels))
        torch.testing.assert_close(found.logits, extractor.logits(pixels))
    assert not found.features.requires_grad


def test_an_extractor_in_training_mode_acts_as_in_evaluation_and_is_left_as_it_is(extractor):
    x = torch.rand(20, 1, 8, 8)
    expected = extract_all(extractor, [x])
    extractor.train()
    assert same(extract_all(extractor, [x]), expected)
    assert all(module.training for module in extractor.modules())
    assert all(parameter.requires_grad for parameter in extractor.parameters())
    assert extractor.body[1].num_batches_tracked == 0


def test_features_are_computed_in_float32_whatever_the_samples_were(extractor):
    x = torch.rand(20, 1, 8, 8)
    expected = extract(extractor, x)
    with torch.autocast("cpu", torch.bfloat16):
        found = extract(extractor, x)
    assert same(found, expected)
    assert found.features.dtype == torch.float32


def test_what_cannot_be_evaluated_is_refused_and_leaves_the_mode(extractor):
    extractor.train()
    with pytest.raises(ValueError, match="expected finite values"):
        extract(extractor, torch.full((2, 1, 8, 8), torch.nan))
    with pytest.raises(ValueError, match=re.escape("expected images (B, 1, H, W)")):
        extract(extractor, torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match="expected at least one, got none"):
        extract_all(extractor, [])
    assert extractor.training


def test_the_reference_is_computed_once(extractor, digits, cache):
    count = len(digits.splits["train"])
    first = reference_features(extractor, digits)
    assert extractor.seen == count
    assert same(first, extract_all(extractor, real_images(digits)))
    extractor.seen = 0
    assert same(reference_features(extractor, digits), first)
    assert extractor.seen == 0
    assert cache_folder() == cache
    assert len(list(cache.iterdir())) == 1


def test_of_another_extractor_or_other_images_it_is_another(extractor, digits, cache):
    first = reference_features(extractor, digits)
    with torch.no_grad():
        extractor.body[-1].bias += 1
    torch.testing.assert_close(reference_features(extractor, digits).features, first.features + 1)
    digits.splits["train"].values[3, 0, 2, 2] += 1
    extractor.seen = 0
    reference_features(extractor, digits)
    assert extractor.seen == len(digits.splits["train"])
    assert len(list(cache.iterdir())) == 3


def flipped(content: bytes) -> bytes:
    return content[:-3] + bytes([content[-3] ^ 16]) + content[-2:]


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:-9], lambda content: b"", lambda content: b"no"])
def test_a_damaged_cache_is_made_anew(extractor, digits, cache, damage):
    first = reference_features(extractor, digits)
    (file,) = cache.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    for computed in (len(digits.splits["train"]), 0):
        extractor.seen = 0
        assert same(reference_features(extractor, digits), first)
        assert extractor.seen == computed


def test_a_cache_that_cannot_be_written_is_done_without(extractor, digits, cache):
    cache.parent.mkdir()
    cache.write_text("a file in the place of the folder")
    with pytest.warns(UserWarning, match="are not cached"):
        found = reference_features(extractor, digits)
    assert same(found, extract_all(extractor, real_images(digits)))


def test_real_images_are_each_given_once_and_as_they_are(digits):
    values = digits.splits["train"].values
    drawn = torch.cat(list(real_images(digits, batch_size=100)))
    assert len(drawn) == len(values)  # the last batch is not dropped
    assert torch.equal(to_pixels(drawn).flatten(1).unique(dim=0), values.flatten(1).unique(dim=0))
    assert torch.equal(to_unit(to_pixels(drawn)), drawn)
    some = torch.cat(list(real_images(digits, "val", 50, batch_size=20)))
    assert torch.equal(some, torch.cat(list(real_images(digits, "val", 50, batch_size=50))))
    for count in (0, len(values) + 1):
        with pytest.raises(ValueError, match="real images: expected"):
            next(real_images(digits, "train", count))
