"""Features are a classifier's, kept in a file that is read without running anything in it."""

import math
import os
import signal
from argparse import Namespace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from ncsn.cli.features import ClassifierTraining, shifted, train_features
from ncsn.cli.from_options import data_section
from ncsn.cli.main import main
from ncsn.data import MNIST, Digits, FashionMNIST, ImageFolder, to_unit
from ncsn.evaluation.classifier import Classifier, Residual, load_classifier, round_to_half, save_classifier
from safetensors.torch import load_file, save_file

from test_cli import refusal

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
CONFIGS = Path(__file__).parent.parent / "configs"
SHIPPED = {"digits": (Digits, 0.98), "mnist": (MNIST, 0.99), "fashion_mnist": (FashionMNIST, 0.91)}


def run(*options: str) -> None:
    """`ncsn features OPTIONS` in this process and folder."""
    main(["features", *options, "--accelerator", "cpu"])


@pytest.fixture
def saved(tmp_path) -> Path:
    """A file of weights that were not trained."""
    features = Classifier(1, 10, width=2, num_features=3)
    features.trained_on, features.accuracy = "Nothing", 0.1
    save_classifier(features, tmp_path / "saved.safetensors")
    return tmp_path / "saved.safetensors"


def accuracy(features: Classifier, pixels, labels) -> float:
    """The share of images (N, C, H, W) of 8 bits that are named rightly."""
    with torch.no_grad():
        named = torch.cat([features.logits(to_unit(part)).argmax(1) for part in pixels.split(100)])
    return (named == labels).double().mean().item()


@pytest.mark.parametrize(("shape", "channels"), [((8, 8), 1), ((28, 28), 1), ((33, 9), 3)])
def test_features_are_of_images_of_any_size_from_8(shape, channels):
    features = Classifier(channels, classes=4, width=2, num_features=5).eval()
    x = torch.rand(3, channels, *shape)
    assert features(x).shape == (3, 5)
    assert torch.equal(features.logits(x), features.head(features(x)))
    assert features.logits(x).shape == (3, 4)


@pytest.mark.parametrize("shape", [(3, 3, 8, 8), (3, 1, 7, 8), (1, 8, 8)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="expected images \\(B, 1, H, W\\) of at least 8x8"):
        Classifier(1, 10, width=2)(torch.rand(shape))


def test_blocks_are_convolutions_with_a_skip_at_two_resolutions():
    plain, deep = Classifier(3, 10, width=2).eval(), Classifier(3, 10, width=2, blocks=2).eval()
    blocks = [part for part in deep.body if isinstance(part, Residual)]
    assert [block.branch[0].out_channels for block in blocks] == [4, 4, 8, 8]
    deep.load_state_dict(deep.state_dict() | renumbered(plain, deep))
    x = torch.rand(5, 3, 8, 8)
    assert not torch.allclose(deep(x), plain(x))
    for block in blocks:
        block.branch[1].weight.data.zero_()  # what remains of a block is its skip
    assert torch.equal(deep(x), plain(x))


def renumbered(plain: Classifier, deep: Classifier) -> dict[str, torch.Tensor]:
    """The weights of `plain` under the names that its parts have in `deep`."""
    places = [i for i, part in enumerate(deep.body) if not isinstance(part, Residual)]
    named = ((i, part.state_dict().items()) for i, part in zip(places, plain.body, strict=True))
    parts = {f"body.{i}.{name}": weight for i, weights in named for name, weight in weights}
    return parts | {f"head.{name}": weight for name, weight in plain.head.state_dict().items()}


@pytest.mark.parametrize("blocks", [-1, 17])
def test_a_number_of_blocks_out_of_range_is_refused(blocks):
    with pytest.raises(ValueError, match=f"expected blocks from 0 to 16, got blocks={blocks}"):
        Classifier(1, 10, blocks=blocks)


@pytest.mark.parametrize("name", ["channels", "classes", "width", "num_features"])
def test_numbers_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=f"got {name}=0"):
        Classifier(**{"channels": 1, "classes": 10, name: 0})


def test_digits_are_learned_by_the_command_and_kept_with_what_is_known_of_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("--data", str(CONFIGS / "digits.yaml"), "--epochs", "4", "--data.batch_size", "64")
    out = capsys.readouterr().out
    assert [str(file) for file in Path("checkpoints").iterdir()] == ["checkpoints/features_digits.safetensors"]
    features = load_classifier("checkpoints/features_digits.safetensors")
    assert not features.training
    assert not any(parameter.requires_grad for parameter in features.parameters())
    assert features.trained_on == "Digits"
    assert features.accuracy > 0.95
    assert f"Digits: accuracy {features.accuracy:.2%} on the validation images" in out
    data = Digits(labels=True)
    data.setup()
    held_out = data.splits["val"]
    assert accuracy(features, held_out.values, held_out.labels) == pytest.approx(features.accuracy, abs=1e-6)


def test_the_same_seed_gives_the_same_weights(tmp_path):
    for name in ("one", "two", "other"):
        seed = str(len(name) - 3)
        run("--data=ncsn.data.Digits", "--epochs", "1", "--seed", seed, "--out", f"{tmp_path / name}.safetensors")
    one, two, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two", "other"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_wider_and_deeper_features_of_moved_images_are_learned_by_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ("--epochs", "4", "--width", "16", "--blocks", "1", "--shift", "1", "--data.batch_size", "64")
    run("--data=ncsn.data.Digits", *settings)
    features = load_classifier("checkpoints/features_digits.safetensors")
    assert (features.width, features.blocks) == (16, 1)
    assert features.accuracy > 0.8
    with pytest.raises(ValueError, match="shift: 8, and must be below the side of an image, 8"):
        train_features(Digits(labels=True), shift=8)


def test_a_shift_moves_each_image_and_reflects_what_is_outside():
    x = torch.rand(200, 2, 5, 6)
    assert torch.equal(shifted(x, 0), x)
    padded = torch.nn.functional.pad(x, [2] * 4, mode="reflect")
    places = torch.stack([padded[..., i : i + 5, j : j + 6] for i in range(5) for j in range(5)])
    torch.manual_seed(0)
    same = (shifted(x, 2) == places).flatten(2).all(2)
    assert (same.sum(0) == 1).all()  # each image is at one place
    assert same.any(1).all()  # all places are taken


def test_training_is_on_moved_images():
    seen, features = [], Classifier(1, 10, width=2)
    features.body.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.rand(2, 1, 8, 8)
    torch.manual_seed(0)
    for _ in range(10):
        ClassifierTraining(features, 1e-3, shift=1).training_step((x, torch.tensor([0, 1])))
    torch.manual_seed(0)
    assert all(torch.equal(each, shifted(x, 1)) for each in seen)
    assert not all(torch.equal(each, x) for each in seen)


@pytest.mark.parametrize("name", ["AdamW", "MuonAdam"])
def test_training_is_by_the_optimiser_of_that_name(name):
    training = ClassifierTraining(Classifier(1, 10, width=2), 1e-3, optimizer=name)
    training.trainer = Namespace(estimated_stepping_batches=10)
    both = training.configure_optimizers()
    optimizer, cycle, rates = both["optimizer"], both["lr_scheduler"]["scheduler"], []
    assert type(optimizer).__name__ == name
    for _ in range(9):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        cycle.step()
    assert [max(rate) for rate in zip(*rates, strict=True)] == pytest.approx([1e-3] * len(rates[0]), rel=0.1)
    assert max(*rates[0], *rates[-1]) < 3e-4


def test_what_is_loaded_is_what_was_saved(saved):
    features = load_classifier(saved)
    assert (features.channels, features.classes, features.width, features.num_features) == (1, 10, 2, 3)
    assert (features.trained_on, features.accuracy) == ("Nothing", 0.1)
    torch.manual_seed(0)
    original = Classifier(1, 10, width=2, num_features=3).eval()
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(features.logits(x), original.logits(x))


def test_a_file_that_is_not_of_features_is_refused_in_one_line(saved, tmp_path):
    whole, weights = saved.read_bytes(), load_file(saved)
    about = {"kind": "Features", "channels": "1", "classes": "10", "width": "2", "num_features": "3"}
    about |= {"trained_on": "Nothing", "accuracy": "0.1"}
    broken = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"not weights at all",
        "pickle": b"\x80\x04cos\nsystem\n(S'exit 1'\ntR.",
        "long header": b"\xff" * 8 + whole[8:],
    }
    for content in broken.values():
        saved.write_bytes(content)
        refused(saved, "is not a safetensors file, or is damaged")
    refused(tmp_path / "absent.safetensors", "there is no file")
    save_file(weights, saved)
    refused(saved, "weights that .ncsn features. did not write")
    huge = {"width": str(10**6)}, {"width": str(10**30)}, {"width": "0"}, {"width": "two"}, {"num_features": "4"}
    for other in (*huge, {"accuracy": "high"}, {"blocks": "1"}, {"blocks": "17"}):
        save_file(weights, saved, about | other)
        refused(saved, "does not hold the weights of its metadata")
    for name in about.keys() - {"kind"}:
        save_file(weights, saved, {key: value for key, value in about.items() if key != name})
        refused(saved, "does not hold the weights of its metadata")
    save_file({name: weight for name, weight in weights.items() if name != "head.1.bias"}, saved, about)
    refused(saved, "does not hold the weights of its metadata")
    save_file(weights | {"head.1.bias": torch.full((10,), math.nan)}, saved, about)
    refused(saved, "not finite")


def refused(path: Path, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        load_classifier(path)
    assert "\n" not in str(error.value)


def test_only_the_default_folder_stands_for_the_files_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_classifier("checkpoints/features_mnist.safetensors").trained_on == "MNIST"
    with pytest.raises(ValueError, match=r"there is no file wrong/features_mnist\.safetensors"):
        load_classifier("wrong/features_mnist.safetensors")


def test_halves_are_read_as_whole_numbers_of_32_bits(saved):
    before = load_classifier(saved)
    about = {name: str(getattr(before, name)) for name in ("channels", "classes", "width", "num_features")}
    about |= {"trained_on": "Nothing", "accuracy": "0.1"}
    save_classifier(before, saved, half=True)
    kinds = {weight.dtype for weight in load_file(saved).values()}
    assert kinds == {torch.float16, torch.int64}
    save_file(load_file(saved), saved, {"kind": "Features", **about})  # as earlier versions wrote it
    x = torch.rand(2, 1, 28, 28)
    assert load_classifier(saved)(x) == pytest.approx(before(x), abs=0.01)


def test_numbers_beyond_16_bits_become_the_largest_of_them(saved):
    features = load_classifier(saved)
    features.body[1].running_var[0] = 1e6
    round_to_half(features)
    save_classifier(features, saved, half=True)
    loaded = load_classifier(saved)
    assert loaded.body[1].running_var[0] == torch.finfo(torch.float16).max
    assert all(torch.equal(weight, features.state_dict()[name]) for name, weight in loaded.state_dict().items())


def test_the_accuracy_of_halves_is_that_of_the_rounded_weights(tmp_path):
    run("--data=ncsn.data.Digits", "--epochs", "1", "--half", "--out", f"{tmp_path}/half.safetensors")
    features = load_classifier(tmp_path / "half.safetensors")
    assert all(torch.equal(weight, weight.half().float()) for weight in features.parameters())
    data = Digits(labels=True)
    data.setup()
    held_out = data.splits["val"]
    assert accuracy(features, held_out.values, held_out.labels) == pytest.approx(features.accuracy, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "data"),
        (["--data", "absent.yaml"], "there is no file absent.yaml"),
        (["--data", "empty.yaml"], "has no section `data`"),
        (["--data", "broken.yaml"], "is not YAML"),
        (["--data", "ncsn.data.Points"], "ImageData"),
        (["--data", "ncsn.data.Digits", "--data.rot", "3"], "rot"),
        (["--data", "ncsn.data.Digits", "--epochs", "0"], "epochs"),
        (["--data", "ncsn.data.Digits", "--lr", "-1"], "lr"),
        (["--data", "ncsn.data.Digits", "--seed", "-1"], "seed"),
        (
            ["--data", "ncsn.data.Digits", "--out", "step=1.ckpt"],
            "--out: expected a name with .safetensors, got step=1.ckpt",
        ),
        (["--data", "ncsn.data.Digits", "--out", "a.safetensors"], "a.safetensors exists and holds something else"),
        (["--data", "ncsn.data.Digits", "--out", "dir.safetensors"], "dir.safetensors exists"),
    ],
)
def test_a_wrong_setting_ends_in_one_line(options, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty.yaml").write_text("name: run\n")
    Path("broken.yaml").write_text("data: [")
    save_file({"x": torch.zeros(1)}, "a.safetensors")
    Path("dir.safetensors").mkdir()
    model = Path("a.safetensors").read_bytes()
    status, line = refusal(capsys, lambda: run(*options))
    assert status == 2
    assert reason in line
    assert Path("a.safetensors").read_bytes() == model
    assert {file.name for file in Path().iterdir()} == {
        *("empty.yaml", "broken.yaml", "a.safetensors", "dir.safetensors"),
    }


def test_features_are_written_over_features(saved):
    before = load_classifier(saved)
    run("--data=ncsn.data.Digits", "--epochs", "1", "--out", str(saved))
    assert (before.trained_on, load_classifier(saved).trained_on) == ("Nothing", "Digits")
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]
    assert saved.stat().st_mode & 0o044 == 0o044  # for others to read


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_training_ends_it_and_nothing_is_written(tmp_path, monkeypatch, capsys, number):
    """Lightning takes SIGTERM for the end of training: the command would end well, without a file."""
    monkeypatch.chdir(tmp_path)
    kind, step = ClassifierTraining, ClassifierTraining.training_step
    monkeypatch.setattr(kind, "training_step", lambda *of: (os.kill(os.getpid(), number), step(*of[:2]))[1])
    options = ["--data", "ncsn.data.Digits", "--epochs", "1", "--out", "new/a.safetensors"]
    status, line = refusal(capsys, lambda: run(*options))
    assert (status, line) == (128 + number, f"error: stopped by {number.name}")
    assert not list(tmp_path.iterdir())


def test_the_section_of_a_configuration_is_what_is_taken():
    assert '"ncsn.data.FashionMNIST"' in data_section(str(CONFIGS / "fashion_mnist.yaml"))
    assert data_section("ncsn.data.MNIST") == "ncsn.data.MNIST"


def test_data_without_labels_is_refused():
    with pytest.raises(ValueError, match="labels is false"):
        train_features(Digits())


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_files_are_small_and_listed_with_their_sums(name):
    file = CHECKPOINTS / f"features_{name}.safetensors"
    features = load_classifier(file)
    row = next(line for line in (CHECKPOINTS / "README.md").read_text().splitlines() if file.name in line)
    assert file.stat().st_size < 1_000_000
    assert features.trained_on == SHIPPED[name][0].__name__
    assert features.accuracy >= SHIPPED[name][1]
    assert f"{100 * features.accuracy:.2f} %" in row
    assert sha256(file.read_bytes()).hexdigest() in row
    assert f"ncsn features --data configs/{name}.yaml" in row


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_weights_reach_their_accuracy(name, real_data):
    features = load_classifier(CHECKPOINTS / f"features_{name}.safetensors")
    kind = SHIPPED[name][0]
    data = kind(labels=True) if kind is Digits else kind(root=str(real_data), labels=True)
    data.setup()
    held_out = data.splits["val"]
    reached = accuracy(features, held_out.values, held_out.labels)
    assert reached >= SHIPPED[name][1]
    assert reached == pytest.approx(features.accuracy, abs=2e-4)


PHOTOGRAPHS = CHECKPOINTS / "features_cifar10.safetensors"


def test_the_classifier_of_photographs_is_small_and_listed_with_its_sum():
    features, listed = load_classifier(PHOTOGRAPHS), (CHECKPOINTS / "README.md").read_text()
    row = next(line for line in listed.splitlines() if line.startswith(f"| `{PHOTOGRAPHS.name}`"))
    assert PHOTOGRAPHS.stat().st_size < 2_000_000
    assert features.accuracy >= 0.88
    assert f"{100 * features.accuracy:.2f} %" in row
    assert sha256(PHOTOGRAPHS.read_bytes()).hexdigest() in row
    assert f"--width {features.width} --blocks {features.blocks}" in row


@pytest.mark.slow
def test_the_classifier_of_photographs_reaches_its_accuracy(real_data):
    root = real_data / "cifar10-jpeg" / "train"
    if not root.is_dir():
        pytest.skip(f"there is no folder {root}")
    data = ImageFolder(str(root), size=32, labels=True)
    data.setup()
    held_out, features = data.splits["val"], load_classifier(PHOTOGRAPHS)
    assert accuracy(features, held_out.values, held_out.labels) == pytest.approx(features.accuracy, abs=2e-4)
    test = ImageFolder(str(root.parent / "test"), size=32, labels=True)
    test.setup()
    right = [len(split) * accuracy(features, split.values, split.labels) for split in test.splits.values()]
    assert sum(right) >= 0.88 * 10_000
