"""What the evaluation cannot do, it says in one line, before anything is drawn."""

import re
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from ncsn.data import Digits
from PIL import Image

from test_cli import refusal, train_small
from test_evaluate import DIGITS, evaluate, training_images, write
from test_inception import NAME
from test_sampling import trained


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return str(train_small(tmp_path_factory.mktemp("digits"), "--samples.count", "0"))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """A folder of its own for each test, and another for what is cached."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def nothing_is_drawn(monkeypatch):
    def drawn(*_):
        raise AssertionError("something was drawn")

    monkeypatch.setattr("ncsn.cli.devices.draws", drawn)


WRONG = [
    (["--num-samples", "64"], "--num-samples: 64, and 64 features take 65 images at least"),
    (["--num-samples", "0"], "--num-samples"),
    (["--features", "absent.safetensors"], "features: there is no file absent.safetensors"),
    (["--features", "inception"], r"--features: Inception expects colour images, .* \(1, 8, 8\)"),
    (["--features", "{checkpoint}"], "is not a safetensors file, or is damaged"),
    (["--data", "absent.yaml"], "--data: there is no file absent.yaml"),
    (["--data", "ncsn.data.Points"], "ImageData"),
    (["--data.root", "x"], "data: Digits: got an unexpected keyword argument 'root'"),
    (["--sampler", "NoSuch"], "NoSuch"),
    (["--sampler.no_such", "3"], "no_such"),
    (["--steps", "1"], "--steps"),
    (["--label", "3"], "--label: 3, but the model was trained without labels"),
    (["--likelihood", "200", "--num-samples", "70"], "expected 1 to 180 of the split val, got 200"),
    (["--json", "no/such/folder.json"], "--json: there is no folder no/such"),
    (["--json", "{checkpoint}"], r"--json: expected a name with \.json, got .*\.ckpt"),
    (["--json", "other.json"], "--json: other.json exists and holds something else"),
    (["--device", "tpu"], "--device"),
    (["--samplers", "--steps", "5"], "--steps has no effect with --samplers"),
    (["--samplers", "--sampler", "Ancestral"], "--sampler has no effect with --samplers"),
    (["--png", "empty"], "the folder of images is empty, which has no images in it"),
    (["--png", "absent"], "the folder of images is absent, which is not a folder"),
    (["--png", "few"], "--num-samples: 3, and 64 features take 65 images at least"),
    (["--png", "few", "--num-samples", "70"], "--num-samples: 70, and few has 3 images"),
    (["--png", "mixed"], "mixed/9.png is of 9x8 pixels, and must be of 8x8, as the data"),
    (["--png", "large"], "large/00000.png is of 28x28 pixels, and must be of 8x8"),
    (["--png", "broken"], "cannot read broken/1.png as an image"),
    (["--png", "few", "--seeds", "2"], "--seeds has no effect with --png"),
    (["--png", "few", "--samplers"], "--samplers"),
    (["--png", "few", "--likelihood", "5"], "--likelihood has no effect with --png"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_use_is_answered_in_one_line_before_anything_is_drawn(
    checkpoint, here, capsys, nothing_is_drawn, options, message
):
    Path("empty").mkdir()
    write("few", torch.rand(3, 1, 8, 8))
    write("large", torch.rand(80, 1, 28, 28))
    write("mixed", torch.rand(80, 1, 8, 8))
    Image.new("L", (9, 8)).save("mixed/9.png")
    Path("broken").mkdir()
    Path("broken/1.png").write_text("no image")
    Path("other.json").write_text('{"hyper_parameters": {}}')
    before = set(here.rglob("*"))
    given = [checkpoint, *(option.format(checkpoint=checkpoint) for option in options)]
    status, line = refusal(capsys, lambda: evaluate(*given))
    assert status == 2
    assert re.search(message, line), line
    assert set(here.rglob("*")) == before
    assert Path("other.json").read_text() == '{"hyper_parameters": {}}'


def test_a_model_of_points_or_of_other_images_is_refused(checkpoint, tmp_path_factory, capsys, nothing_is_drawn):
    moons = str(trained("implicit", tmp_path_factory.mktemp("moons")))
    capsys.readouterr()
    assert refusal(capsys, lambda: evaluate(moons))[1].endswith("was not trained on images")
    status, line = refusal(capsys, lambda: evaluate(moons, *DIGITS))
    assert (status, "images are of shape (1, 8, 8), but" in line) == (2, True)


def test_data_without_features_of_its_own_says_how_to_train_them(capsys, nothing_is_drawn):
    data = Digits()
    data.setup()
    write("grey", training_images(data, 80))
    options = ["--data", "ncsn.data.ImageFolder", "--data.root", "grey", "--data.size", "8", "--data.channels", "1"]
    options += ["--data.batch_size", "8"]
    status, line = refusal(capsys, lambda: evaluate("--png", "grey", *options))
    assert status == 2
    assert "there is no checkpoints/features_image_folder.safetensors; `ncsn features --data CONFIG`" in line
    # Other features will do, if they are asked for and take such images.
    evaluate("--png", "grey", *options, "--features", "checkpoints/features_digits.safetensors")
    assert "(a classifier of Digits, 99.44% right)" in capsys.readouterr().out


def test_too_few_held_out_images_are_refused_before_anything_is_drawn(checkpoint, capsys, nothing_is_drawn):
    data = Digits()
    data.setup()
    write("few", training_images(data, 80))
    options = ["--data", "ncsn.data.ImageFolder", "--data.root", "few", "--data.size", "8", "--data.channels", "1"]
    options += ["--data.batch_size", "8", "--data.held_out", "0.03", "--num-samples", "65"]
    options += ["--features", "checkpoints/features_digits.safetensors"]
    status, line = refusal(capsys, lambda: evaluate(checkpoint, *options))
    assert status == 2
    assert "--data: it has 2 held-out images, and the metrics take 4 at least; set --data.held_out" in line


def test_colour_images_are_evaluated_by_inception_whose_weights_are_asked_for(here, capsys, monkeypatch):
    def unreachable(url, *others, **more):
        raise URLError("Name or service not known")

    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(here))
    write("colour", torch.rand(30, 3, 8, 8))
    options = ["--data", "ncsn.data.ImageFolder", "--data.root", "colour", "--data.size", "8", "--data.batch_size", "8"]
    status, line = refusal(capsys, lambda: evaluate("--png", "colour", *options))
    assert status == 1
    assert line.endswith(f"put it at {here / 'hub' / 'checkpoints' / NAME}")
