"""Steering from the command line: measurements of pictures, classes, and the way between two pictures."""

import re
from functools import partial
from pathlib import Path

import numpy as np
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
    Image.new("L", (8, 8), 0).save("black.png")
    Image.new("L", (8, 8), 255).save("white.png")
    mask.point(lambda value: value // 255).save("classes.png")
    mask.convert("RGBA").save("opaque.png")
    layer = mask.convert("RGBA")
    layer.putalpha(mask)
    layer.save("layer.png")
    mask.crop((0, 0, 4, 4)).save("small_mask.png")
    Image.new("RGB", (8, 8), (255, 0, 0)).save("red.png")
    Image.fromarray(pixels_of(picture)).resize((16, 16)).save("large.png")
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


def test_samples_of_another_image_are_not_taken_for_those_of_this_one(digits, here, capsys):
    command = ["restore", "digit.png", "--mask", "mask.png", "--model", str(digits), *FLOW, "--out", "v1.0"]
    Path("v1.0").mkdir()  # a folder, though its name has a dot
    main(command)
    before = {file.name: file.read_bytes() for file in Path("v1.0").iterdir()}
    main(command)
    Path("digit.png").write_bytes(Path("other.png").read_bytes())
    assert "000000.png exists; give another folder" in refusal(capsys, lambda: main(command))[1]
    assert {file.name: file.read_bytes() for file in Path("v1.0").iterdir()} == before
    assert len(before) == 3


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
        (["restore", "digit.png", "--blur", "1e300"], "--blur: expected at most the 8 pixels of the image, got 1e"),
        (["restore", "digit.png", "--grey", "--checkpoint", "a"], r"--checkpoint a; did you mean --model FILE\?"),
        (["interpolate", "digit.png", "no.png", "--num-samples", "9999"], "an integer from 2 to 1000, got '9999'"),
        (["restore", "no.png", "--blur", "1"], r"cannot read no\.png"),
        (["restore", "digit.png", "--grey"], "--grey: expected a model of images in colour, got 1 channel"),
        (["restore", "digit.png", "--mask", "mask.png", "--noise", "0"], "noise"),
        (["restore", "digit.png", "--mask", "mask.png", "--grey"], "not allowed with"),
        (["sample", "--guidance", "2"], "--guidance: 2, but the model was trained without labels"),
        (["sample", "--label", "3", "--guidance", "2"], "--label: 3, but the model was trained without labels"),
        (["restore", "digit.png", "--mask", "black.png"], r"--mask: expected white .* got values from 0 to 0"),
        (["restore", "digit.png", "--mask", "white.png"], r"--mask: expected .* black .* got values from 255 to 255"),
        (
            ["restore", "digit.png", "--mask", "classes.png"],
            r"--mask: .* from 0 to 1, .* multiply a map of 0 and 1 by 255",
        ),
        (
            ["restore", "digit.png", "--mask", "layer.png"],
            r"layer\.png: .* got 8x8 pixels, some of them transparent; convert",
        ),
        (
            ["restore", "digit.png", "--mask", "small_mask.png"],
            r"small_mask\.png: expected 8x8 pixels .* got 4x4 pixels",
        ),
        (
            ["restore", "digit.png", "--mask", "red.png"],
            r"red\.png: expected 8x8 pixels .* got 8x8 pixels with colours",
        ),
        (
            ["restore", "large.png", "--mask", "mask.png"],
            r"large\.png: expected 8x8 pixels .* got 16x16 pixels; convert",
        ),
        (["restore", "digit.png", "--factor", "2"], r"digit\.png: expected 4x4 pixels .* got 8x8 pixels"),
        (["restore", "large.png", "--blur", "1"], r"large\.png: expected 8x8 pixels .* got 16x16 pixels"),
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


@pytest.mark.parametrize("file", ["large.png", "red.png", "layer.png"])
def test_an_image_of_a_stated_noise_level_is_not_resampled(digits, here, capsys, file):
    options = ["denoise", file, "--sigma", "0.2", "--model", str(digits)]
    status, line = refusal(capsys, lambda: main(options))
    found = {
        "large.png": "16x16 pixels",
        "red.png": "8x8 pixels with colours",
        "layer.png": "8x8 pixels, some of them transparent",
    }[file]
    assert (status, f"{file}: expected 8x8 pixels (width x height) without colours, got {found};" in line) == (2, True)
    assert not Path("denoised.png").exists()


def test_a_mask_says_how_many_pixels_it_fills_and_how_grey_ones_are_read(digits, here, capsys):
    options = ["--model", str(digits), *FLOW]
    main(["restore", "digit.png", "--mask", "opaque.png", *options])
    assert "opaque.png: 32 of 64 pixels to fill in\n" in capsys.readouterr().out
    with Image.open("mask.png") as mask:
        mask.putpixel((0, 7), 200)
        mask.save("soft.png")
    main(["restore", "digit.png", "--mask", "soft.png", *options])
    assert "soft.png: 33 of 64 pixels to fill in; 1 grey ones count as black or white" in capsys.readouterr().out


def test_interpolated_images_are_resized_and_it_is_said(digits, here, capsys):
    main(["interpolate", "digit.png", "large.png", "--model", str(digits), "--num-samples", "2"])
    said = "large.png: 16x16 pixels; resized and cropped to 8x8 pixels (width x height) without colours"
    assert said in capsys.readouterr().out


@pytest.fixture(scope="module")
def rectangular(tmp_path_factory) -> Path:
    """A model of images 12 high and 20 wide, beside which some lie as they were trained on."""
    folder = tmp_path_factory.mktemp("rectangular")
    (folder / "images").mkdir()
    for i, one in enumerate(torch.randint(256, (20, 12, 20, 3), dtype=torch.uint8)):
        Image.fromarray(one.numpy()).save(folder / "images" / f"{i}.png")
    data = ["--data", "ImageFolder", "--data.root", str(folder / "images"), "--data.size", "[12, 20]"]
    return train_small(folder, *data, "--data.batch_size", "8", "--trainer.max_steps", "2")


def test_rectangular_images_are_trained_on_steered_and_shown(rectangular, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = load(rectangular)
    image, grid = rectangular.parents[2] / "images" / "0.png", (2 * 12 + 4, 2 * (2 * 20 + 2) + 2)
    given = pixels(str(image))
    assert (model.shape, tuple(model.sample(1).shape)) == ((3, 12, 20), (1, 3, 12, 20))
    mask = Image.new("L", (20, 12))
    mask.paste(255, (0, 0, 20, 5))
    mask.save("mask.png")
    with Image.open(image) as opened:
        opened.reduce(4).save("coarse.png")
    for file, task, value in ((str(image), "--mask", "mask.png"), ("coarse.png", "--factor", "4")):
        options = ["--model", str(rectangular), "--num-samples", "1", "--out", f"out{task}.png"]
        main(["restore", file, task, value, *options])
        assert pixels(f"out{task}.png").shape[1:] == grid
    assert torch.equal(pixels("out--mask.png")[:, 14:26:2, 46:84:2], given[:, 6:, 1:])
    main(["denoise", str(image), "--sigma", "0.5", "--model", str(rectangular)])
    assert torch.equal(pixels("denoised.png")[:, 2:26:2, 2:42:2], given)
    main(["interpolate", str(image), str(image), "--model", str(rectangular), "--num-samples", "2"])
    assert pixels("interpolated.png").shape[1:] == grid
    sample([str(rectangular), "--num-samples", "2", "--out", "x.npz"])
    assert np.load("x.npz")["arr_0"].shape == (2, 12, 20, 3)
