"""Steering from the command line: measurements of pictures, classes, and the way between two pictures."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from ncsn.cli.main import main
from ncsn.data import Digits, pixel_grid, to_unit
from ncsn.model.load import load
from ncsn.samplers import Heun
from ncsn.score.guidance import AveragePooling, GaussianBlur, Mask, classifier_free, encode, posterior
from PIL import Image

from test_cli import pixels, refusal, sample, train_small

FLOW = ["--sampler", "ncsn.samplers.Heun", "--num-samples", "3"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    return train_small(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    return train_small(tmp_path_factory.mktemp("labelled"), "--data.labels", "true")


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    """A digit of the validation split, (1, 1, 8, 8) in [0, 1]."""
    data = Digits()
    data.setup()
    return to_unit(data.splits["val"].values[:1])


@pytest.fixture
def here(tmp_path, monkeypatch, picture) -> Path:
    """A folder with that digit, another, a mask whose upper half is white, and the digit seen coarsely."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(pixels_of(picture)).save("digit.png")
    Image.fromarray(pixels_of(picture.flip(-1))).save("other.png")
    mask = Image.new("L", (8, 8), 0)
    mask.paste(255, (0, 0, 8, 4))
    mask.save("mask.png")
    Image.fromarray(pixels_of(AveragePooling(2)(picture))).save("coarse.png")
    return tmp_path


def pixels_of(x: torch.Tensor):
    return (x[0, 0] * 255).round().to(torch.uint8).numpy()


def drawn_by(checkpoint: Path, guide, given: torch.Tensor, finish=lambda x: x) -> torch.Tensor:
    """The grid that the command should write: what was given, and three samples."""
    module = load(checkpoint)
    x = finish(module.sample(3, sampler=Heun(), guide=guide))
    return pixel_grid(torch.cat([given, x.detach()]))


def test_a_hole_is_filled_and_the_rest_left_as_it_was(digits, here, picture):
    main(["restore", "digit.png", "--mask", "mask.png", "--model", str(digits), *FLOW])
    known = torch.ones(1, 1, 8, 8)
    known[..., :4, :] = 0
    expected = drawn_by(
        digits,
        lambda score: posterior(score, Mask(known), picture * known, 0.01),
        picture * known,
        lambda x: torch.where(known.bool(), picture, x),
    )
    assert torch.equal(pixels("samples.png"), expected)


@pytest.mark.parametrize(
    ("options", "operator", "file"),
    [
        (["coarse.png", "--factor", "2"], AveragePooling(2), "coarse.png"),
        (["digit.png", "--blur", "1.5"], GaussianBlur(1.5), "digit.png"),
    ],
)
def test_a_measurement_steers_the_samples(digits, here, options, operator, file):
    main(["restore", *options, "--model", str(digits), "--noise", "0.05", *FLOW])
    y = to_unit(pixels(file)[None])
    scale = 8 // y.shape[-1]
    shown = y.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    expected = drawn_by(digits, lambda score: posterior(score, operator, y, 0.05), shown)
    assert torch.equal(pixels("samples.png"), expected)


def test_guidance_weighs_the_class(labelled, here):
    sample([str(labelled), "--label", "3", "--guidance", "2.5", *FLOW])
    module = load(labelled)
    x = module.sample(
        3,
        sampler=Heun(),
        label=torch.full((3,), 3),
        guide=lambda score: classifier_free(score, module.denoiser.score, 2.5),
    )
    assert torch.equal(pixels("samples.png"), pixel_grid(x))


def test_guidance_weighs_every_class_in_turn_and_not_none(labelled, here, capsys):
    sample([str(labelled), "--guidance", "2.5", *FLOW])
    model = load(labelled)
    x = model.sample(3, sampler=Heun(), label=torch.arange(3), guide=model.guidance(2.5))
    assert torch.equal(pixels("samples.png"), pixel_grid(x))
    status, line = refusal(capsys, lambda: sample([str(labelled), "--guidance", "2", "--label", "none"]))
    assert (status, line) == (2, "error: --guidance: 2 is the weight of a class; give one")


@pytest.mark.parametrize(
    ("options", "label", "words"), [([], -1, "of no class"), (["--label", "3"], 3, "of class 3 = 3")]
)
def test_a_given_image_is_of_no_class_unless_one_is_named(labelled, here, picture, capsys, options, label, words):
    model, label = load(labelled), torch.tensor([label])
    main(["denoise", "digit.png", "--sigma", "0.5", "--model", str(labelled), *options])
    assert words in capsys.readouterr().out
    assert torch.equal(pixels("denoised.png"), pixel_grid(torch.cat([picture, model.denoise(picture, 0.5, label)])))
    main(["restore", "digit.png", "--blur", "1.5", "--model", str(labelled), *FLOW[:2], "--num-samples", "1", *options])
    assert words in capsys.readouterr().out
    guide = partial(posterior, operator=GaussianBlur(1.5), measurement=picture, noise=0.01)
    restored = model.sample(1, label=label, sampler=Heun(), guide=guide)
    assert torch.equal(pixels("samples.png"), pixel_grid(torch.cat([picture, restored])))
    main(["interpolate", *["digit.png"] * 2, "--model", str(labelled), "--num-samples", "2", "--steps", "5", *options])
    assert words in capsys.readouterr().out
    sigmas = model.sigmas_for(Heun(), 5)
    latent = encode(partial(model.denoiser.score, label=label), picture, sigmas)
    *_, x = model.trajectory(latent.expand(2, -1, -1, -1), label.expand(2), Heun(), sigmas)
    assert (pixels("interpolated.png").int() - pixel_grid(x, 2).int()).abs().max() <= 1


def test_the_way_between_two_pictures_begins_and_ends_with_them(digits, here, picture):
    main(["interpolate", "digit.png", "other.png", "--model", str(digits), "--steps", "60", "--num-samples", "5"])
    grid = pixels("interpolated.png").float() / 255
    assert grid.shape == (3, 36, 5 * 34 + 2)
    first, last = grid[0, 2:34:4, 2:34:4], grid[0, 2:34:4, 2 + 4 * 34 : 34 + 4 * 34 : 4]
    assert (first - picture[0, 0]).abs().mean() < 0.05
    assert (last - picture[0, 0].flip(-1)).abs().mean() < 0.05
    assert (first - last).abs().mean() > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["restore", "digit.png"], "one of the arguments --mask --factor --blur --grey is required"),
        (["restore", "--mask", "mask.png"], "arguments are required: IMAGE"),
        (["restore", "digit.png", "--factor", "3"], "--factor: expected a divisor of 8"),
        (["restore", "digit.png", "--factor", "1"], "--factor"),
        (["restore", "digit.png", "--blur", "-1"], "-1"),
        (["restore", "no.png", "--blur", "1"], r"cannot read no\.png"),
        (["restore", "digit.png", "--grey"], "--grey: the model's images are grey"),
        (["restore", "digit.png", "--mask", "mask.png", "--noise", "0"], "noise"),
        (["restore", "digit.png", "--mask", "mask.png", "--grey"], "not allowed with"),
        (["sample", "--guidance", "2"], "--guidance: 2, but the model was trained without labels"),
        (["sample", "--label", "3", "--guidance", "2"], "--label: 3, but the model was trained without labels"),
        (["interpolate", "digit.png"], "IMAGE"),
        (["interpolate", "digit.png", "no.png"], r"cannot read no\.png"),
        (["interpolate", "digit.png", "other.png", "--out", "folder"], "--out: expected a .png file, got folder"),
        (["interpolate", "digit.png", "other.png", "--sampler.steps", "3"], "unrecognized arguments: --sampler"),
    ],
)
def test_a_wrong_wish_is_answered_in_one_line_and_leaves_nothing(digits, here, capsys, options, message):
    before = sorted(file.name for file in here.iterdir())
    model = [str(digits)] if options[0] == "sample" else ["--model", str(digits)]
    status, line = refusal(capsys, lambda: main([*options, *model, "--num-samples", "2"]))
    assert status == 2
    assert re.search(message, line), line
    assert sorted(file.name for file in here.iterdir()) == before
