from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from ncsn.data import (
    CIFAR10,
    MNIST,
    Digits,
    FashionMNIST,
    ImageFolder,
    pixel_grid,
    to_pixels,
    to_unit,
)
from ncsn.data.examples import Batches, HeldExamples
from ncsn.data.module import keep_on
from ncsn.evaluation.grids import save_grid
from PIL import Image
from sklearn.datasets import load_digits


def in_training(data, training=True, ranks=1, rank=0):
    """`data` as if a trainer had it."""
    progress = SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(ready=0)))
    fit_loop = SimpleNamespace(epoch_loop=progress)
    data.trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        **{"training": training, "world_size": ranks, "global_rank": rank},
        **{"fit_loop": fit_loop, "limit_train_batches": 1.0},
    )
    return data


def test_every_pixel_survives_the_way_there_and_back():
    pixels = torch.arange(256, dtype=torch.uint8)
    unit = to_unit(pixels)
    assert (unit.min(), unit.max(), unit.dtype) == (0, 1, torch.float32)
    assert torch.equal(to_pixels(unit), pixels)


def test_states_outside_the_range_are_clamped_and_rounded():
    assert to_pixels(torch.tensor([-100.0, 0.4 / 255, 0.6 / 255, 254.4 / 255, 7.0])).tolist() == [0, 0, 1, 254, 255]


def test_a_grid_is_square_and_enlarges_small_images(tmp_path):
    assert pixel_grid(torch.zeros(16, 1, 8, 8)).shape == (3, 4 * 34 + 2, 4 * 34 + 2)
    assert pixel_grid(torch.zeros(5, 3, 28, 28)).shape == (3, 2 * 30 + 2, 3 * 30 + 2)
    of_four = torch.linspace(0, 1, 4).view(1, 4, 1, 1).expand(1, 4, 32, 32)
    expected = torch.tensor([0, 85, 170, 255], dtype=torch.uint8).repeat_interleave(32)
    assert torch.equal(pixel_grid(of_four), expected.expand(3, 32, 128))  # channels that are no colours, side by side
    save_grid(torch.ones(1, 1, 32, 32), tmp_path / "new" / "grid.png")
    with Image.open(tmp_path / "new" / "grid.png") as grid:
        assert grid.getpixel((16, 16)) == (255, 255, 255)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["grid.png"]


def test_a_grid_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "grid.png").mkdir()
    with pytest.raises(OSError, match="grid"):
        save_grid(torch.ones(1, 1, 32, 32), tmp_path / "grid.png")
    assert [file.name for file in tmp_path.iterdir()] == ["grid.png"]


def test_digits_are_the_scans_in_the_range():
    data = in_training(Digits(labels=True), training=False)
    data.setup()
    assert (len(data.splits["train"]), len(data.splits["val"])) == (1617, 180)
    x, _ = data.on_after_batch_transfer(data.splits["train"][range(1617)], 0)
    assert x.shape == (1617, 1, 8, 8)
    assert data.classes == 10
    assert (x.min(), x.max()) == (0, 1)


def test_the_held_out_digits_are_the_same_every_time_and_not_trained_on():
    first, second = Digits(), Digits()
    first.setup()
    second.setup()
    assert torch.equal(first.splits["val"].values, second.splits["val"].values)
    both = torch.cat([first.splits["train"].values, first.splits["val"].values]).flatten(1)
    assert len(both) == 1797
    theirs = (torch.tensor(load_digits().data) / 16 * 255).round()
    assert sorted(both.tolist()) == sorted(theirs.tolist())


def test_labels_are_there_only_where_asked_for():
    data = in_training(Digits())
    data.setup()
    assert data.classes == 0
    assert data.on_after_batch_transfer(data.splits["train"][[0, 1]], 0)[1] is None


def test_dequantisation_spreads_a_pixel_over_its_own_part_of_the_range():
    data = in_training(Digits(dequantise=True))
    pixels = torch.arange(256, dtype=torch.uint8).expand(1000, 1, 1, 256)
    x, _ = data.on_after_batch_transfer((pixels, torch.zeros(1000)), 0)
    # But for a few that float32 rounds onto the border.
    assert ((x * 256).floor() != pixels).float().mean() < 1e-4
    assert x.mean().item() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_an_epoch_without_overlap_in_an_order_of_its_own(ranks):
    data = Digits()
    data.setup()
    images = data.splits["train"]

    def order(seed, epoch):
        shares = []
        for rank in range(ranks):
            batches = Batches(images, 50, ranks, rank, shuffle=True, seed=seed, drop_last=True)
            batches.given = epoch * len(batches)
            share = list(batches)
            assert len(share) == len(batches)
            assert {len(batch) for batch in share} == {50}
            shares.append([index for batch in share for index in batch])
        return shares

    shares = order(0, 0)
    seen = [index for share in shares for index in share]
    assert len(seen) == len(set(seen)) == 1617 // ranks // 50 * 50 * ranks
    assert order(0, 0) == shares
    assert order(0, 1) != shares
    assert order(1, 0) != shares


def test_an_epoch_that_was_broken_off_goes_on_where_it_was():
    data = Digits()
    data.setup()
    whole, resumed = (Batches(data.splits["train"], 50, 1, 0, shuffle=True, seed=0, drop_last=True) for _ in range(2))
    epochs = [list(whole), list(whole)]
    assert epochs[0] != epochs[1]
    resumed.given = 40
    assert list(resumed) == epochs[1][40 - 32 :]
    assert list(resumed) == list(whole)


def test_validation_sees_every_image_once_in_order():
    data = in_training(Digits(batch_size=50))
    data.setup()
    batches = [pixels for pixels, _ in data.val_dataloader()]
    assert [len(batch) for batch in batches] == [50, 50, 50, 30]
    assert torch.equal(torch.cat(batches), data.splits["val"].values)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_batch_must_fit_the_share_of_a_rank(ranks):
    with pytest.raises(ValueError, match=r"at most the number of training examples, 1617$"):
        Digits(batch_size=1618).setup()
    data = Digits(batch_size=1617 // ranks)
    data.setup()
    data.check_share(ranks)
    with pytest.raises(ValueError, match=f"on each of {ranks + 1} devices, {1617 // (ranks + 1)}$"):
        data.check_share(ranks + 1)


def test_data_that_cannot_be_had_says_where_it_was_looked_for(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", offline)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    for kind in (MNIST, CIFAR10):
        message = rf"(?s){kind.__name__} is not in {tmp_path}/a and could not be downloaded .*no network.* data\.root"
        with pytest.raises(OSError, match=message):
            kind(str(tmp_path / "a")).prepare_data()
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "mean", "std"), [(MNIST, 0.1307, 0.3081), (FashionMNIST, 0.2860, 0.3530)])
def test_the_real_sets_have_their_known_moments(real_data, kind, mean, std):
    data = kind(str(real_data))
    data.prepare_data()
    data.setup()
    pixels = to_unit(data.splits["train"].values)
    assert pixels.shape == (60_000, 1, 28, 28)
    assert pixels.mean().item() == pytest.approx(mean, abs=1e-4)
    assert pixels.std().item() == pytest.approx(std, abs=1e-4)
    assert len(data.splits["val"]) == 10_000


def test_the_real_jpeg_folder_is_read(real_data):
    data = ImageFolder(str(real_data / "cifar10-jpeg" / "test"), size=32, labels=True, memory=0)
    data.setup()
    assert (data.classes, len(data.files)) == (10, 10_000)
    # The known mean of CIFAR-10's colours.
    mean = to_unit(data.splits["train"][range(0, len(data.splits["train"]), 5)][0]).mean((0, 2, 3))
    assert (mean - torch.tensor([0.494, 0.485, 0.450])).abs().max() < 0.01


def test_a_fingerprint_is_of_every_pixel_label_and_place():
    values, labels = torch.randint(256, (9000, 1, 2, 2), dtype=torch.uint8), torch.arange(9000) % 10
    one = HeldExamples(values, labels).fingerprint()
    assert one == HeldExamples(values.clone(), labels.clone()).fingerprint()
    assert len(one) == 64
    changed = values.clone()
    changed[8999, 0, 1, 1] ^= 1
    others = [
        HeldExamples(changed, labels),
        HeldExamples(values, labels.roll(1)),
        HeldExamples(values.flip(0), labels.flip(0)),
        HeldExamples(values.view(9000, 1, 4, 1), labels),
        HeldExamples(values.float(), labels),
        HeldExamples(values[:-1], labels[:-1]),
    ]
    assert len({one, *(other.fingerprint() for other in others)}) == 7


def test_photographs_keep_their_rows_and_columns(tmp_path, monkeypatch):
    images = np.arange(2 * 32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(2, 32, 32, 3)

    def source(root, train):
        return SimpleNamespace(data=images[int(train)][None], targets=[7])

    monkeypatch.setattr(CIFAR10, "source", staticmethod(source))
    splits = CIFAR10(str(tmp_path), batch_size=1).load()
    for name, image in (("val", images[0]), ("train", images[1])):
        pixels, labels = splits[name][[0]]
        assert labels.tolist() == [7]
        assert pixels[0, :, 3, 20].tolist() == image[3, 20].tolist()


def test_a_batch_of_examples_in_memory_is_made_where_they_lie():
    examples = HeldExamples(torch.arange(12).view(6, 2), torch.arange(6))
    expected = examples[[4, 1]]
    assert [x.tolist() for x in expected] == [[[8, 9], [2, 3]], [4, 1]]
    examples.to("meta")
    assert [(x.device.type, x.shape) for x in examples[[4, 1]]] == [("meta", x.shape) for x in expected]


@pytest.mark.parametrize(("free", "fits"), [(10**4, False), (10**9, True)])
def test_training_examples_are_kept_on_a_gpu_that_has_much_more_memory(monkeypatch, free, fits):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
    examples, moved = HeldExamples(torch.zeros(300, 8), torch.zeros(300)), []
    monkeypatch.setattr(examples, "to", lambda device: moved.append(device))
    keep_on(torch.device("cuda"), examples)
    assert moved == [torch.device("cuda")] * fits
    keep_on(torch.device("cpu"), examples)
    assert len(moved) == fits
