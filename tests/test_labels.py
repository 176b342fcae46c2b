"""Classes: which number each has, where their names are kept, and of which class a sample is."""

import contextlib
import io
import json
import re
import shutil
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from ncsn.cli.main import sample
from ncsn.data import ImageFolder
from ncsn.model.checkpoint_file import read, write
from ncsn.model.labels import Labels, numbered_names
from ncsn.model.load import load
from ncsn.model.model import Model
from ncsn.model.model_card import card
from ncsn.model.pretrained import save_safetensors
from ncsn.model.settings import rebuilt_model
from ncsn.networks import UNet
from ncsn.noise import GeometricSchedule
from ncsn.samplers import Heun
from ncsn.score import EDMDenoiser
from ncsn.training.run import announce
from PIL import Image

from test_cli import refusal, run_train, train_small
from test_drawing import Classes

NAMES = ["2", "10", "cat"]
OPTIONS = ["--data", "ImageFolder", "--data.root", "images", "--data.size", "8", "--data.channels", "1"]
OPTIONS += ["--data.batch_size", "4", "--data.labels", "true", "--samples.count", "0", "--trainer.max_steps"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, str]:
    """A folder in which a model of three classes was trained, and what the run said."""
    folder, out = tmp_path_factory.mktemp("run"), io.StringIO()
    for grey, name in enumerate(NAMES):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("L", (8, 8), 80 * grey + number).save(folder / "images" / name / f"{number}.png")
    with contextlib.redirect_stdout(out):
        train_small(folder, *OPTIONS, "1")
    return folder, out.getvalue()


@pytest.fixture
def here(run, tmp_path, monkeypatch) -> Path:
    """A copy of that folder, made the current one."""
    shutil.copytree(run[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def model(classes=3, **settings):
    denoiser = EDMDenoiser(UNet(1, width=8, multipliers=(1,), blocks=1, classes=classes))
    for weight in denoiser.parameters():  # the last layer begins as zero
        torch.nn.init.normal_(weight, std=0.1)
    return Model(denoiser, GeometricSchedule(2, 0.1, 3), Heun(), (1, 2, 2), **settings)


def test_a_run_says_which_class_has_which_number(run):
    assert "\n3 classes: 0 = 2, 1 = 10, 2 = cat; samples are of each in turn\n" in run[1]
    assert numbered_names([*map(str, range(30))]).endswith("18 = 18, 19 = 19, ...")


def test_a_class_named_as_a_word_of_the_option_is_said_to_be_reached_by_its_number(capsys):
    announced = Mock(resumed_from=None)
    announced.model = Mock(parameters=list, model=model(class_names=["all", "cat", "none"]), shape=(1, 2, 2))
    announced.datamodule.splits = {"train": []}
    announced.trainer = Mock(loggers=[], num_devices=1, num_nodes=1, max_steps=1, max_epochs=None)
    announce(announced)
    said = re.findall("--label .*", capsys.readouterr().out)
    assert said == [
        "--label all is each class in turn; the class of this name is --label 0",
        "--label none is no class; the class of this name is --label 2",
    ]


def test_the_names_are_those_of_the_checkpoint_and_not_of_the_folder_of_today(here, monkeypatch, capsys):
    (here / "images/cat").rename(here / "images/dog")
    words = []
    monkeypatch.setattr(
        "ncsn.cli.sample.captioned_grid", lambda x, given, *_: words.extend(given) or x[0].expand(3, -1, -1)
    )
    file = "checkpoints/small/step=1.ckpt"
    sample([file, "--num-samples", "2", "--label", "cat", "--captions"])
    assert "of class 2 = cat\n" in capsys.readouterr().out
    assert words == ["0: cat", "1: cat"]
    assert load(file).class_names == NAMES
    assert "\nIts labels are 0 = 2, 1 = 10, 2 = cat.\n" in card(load(file), "", "small")
    status, line = refusal(capsys, lambda: sample([file, "--label", "catt"]))
    assert (status, line.endswith("got catt; did you mean 'cat'?")) == (2, True), line


def test_a_run_goes_on_with_the_classes_that_it_began_with(here, capsys):
    more = ["--config", "small.yaml", *OPTIONS, "2", "--ckpt_path", "last"]
    (here / "images/cat").rename(here / "images/dog")
    status, line = refusal(capsys, lambda: run_train(*more))
    expected = "the classes of data: ['2', '10', 'dog'], but ['2', '10', 'cat'] in checkpoints/small/step=1.ckpt"
    assert (status, expected in line) == (2, True), line


def test_classes_that_an_earlier_version_numbered_as_text_keep_their_numbers(here, capsys):
    """A checkpoint of it has no names, and its examples have labels in the order of text."""
    names, file = ["10", "2", "cat"], Path("checkpoints/small/step=1.ckpt")
    content = read(file)
    data = ImageFolder("images", 8, 1, 4, labels=True, class_names=names)
    data.setup()
    del content["run"]["classes"], content["run"]["config"]["data"]["init_args"]["class_names"]
    del content["hyper_parameters"]["class_names"], content["format"]
    content["run"]["fingerprint"] = data.fingerprint()
    write(content, file)
    assert load(file).labels.names == ["0", "1", "2"]
    more = ["--config", "small.yaml", *OPTIONS, "2", "--ckpt_path", "last"]
    status, line = refusal(capsys, lambda: run_train(*more))
    assert (status, '; give --data.class_names ["10", "2", "cat"]' in line) == (2, True), line
    run_train(*more, "--data.class_names", json.dumps(names))
    assert load("checkpoints/small/step=2.ckpt").class_names == names


@pytest.mark.parametrize(
    ("label", "number"),
    [("1", 0), (1, 1), ("2", 1), ("10", 2), (2, 2), ("0", 0), ("none", -1), (-1, -1), (np.int64(2), 2)],
)
def test_text_is_a_name_before_it_is_a_number_and_a_number_is_one(label, number):
    labels = Labels(["1", "2", "10"])
    assert labels.of(label, range(4)).tolist() == [number] * 4
    assert labels.described(label) == ("no class" if number < 0 else f"class {number} = {labels.names[number]}")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("3", "got 3$"),
        (3, "got 3$"),
        (-2, "got -2"),
        (1.5, "got 1.5"),
        ([0, 3], "got 3$"),
        ([0, 1, 2], r"expected 2 integers, got torch.int64 \(3,\)"),
        (
            "hoise",
            r"expected `all`, `none` or a class \(0 = cat, 1 = dog, 2 = house\), got hoise; did you mean 'house'",
        ),
        (torch.tensor([0, 3]), r"expected classes from -1 to 2, got \[0, 3\]"),
        (torch.tensor([0, 1, 2]), r"expected 2 integers, got torch.int64 \(3,\)"),
        (torch.tensor([0.0, 1.0]), r"expected 2 integers, got torch.float32 \(2,\)"),
    ],
)
def test_a_class_that_is_not_there_is_refused(label, message):
    with pytest.raises(ValueError, match=f"label: .*{message}"):
        Labels(["cat", "dog", "house"]).of(label, range(2))


@pytest.mark.parametrize(
    ("label", "classes"),
    [
        (None, [0, 1, 2, 0, 1]),
        ("all", [0, 1, 2, 0, 1]),
        ("dog", [1] * 5),
        (2, [2] * 5),
        ("none", [-1] * 5),
        (torch.tensor([2, -1, 0, 0, 1]), [2, -1, 0, 0, 1]),
        (["house", "none", 0, "cat", 1], [2, -1, 0, 0, 1]),
        (np.array([2, -1, 0, 0, 1]), [2, -1, 0, 0, 1]),
        (torch.tensor([2, 1, 0, 0, 1], dtype=torch.uint8), [2, 1, 0, 0, 1]),
    ],
)
def test_a_model_samples_every_class_in_turn_or_that_which_is_asked_for(label, classes):
    named, classes = model(class_names=["cat", "dog", "house"]), torch.tensor(classes)
    assert torch.equal(named.sample(5, label=label), named.sample(5, label=classes))
    drawn = named.sample(5, label=label, sampler=Classes())
    torch.testing.assert_close(drawn[:, 0, 0, 0], (classes + 1) / 10)
    *_, x = named.trajectory(named.start(5), label, Classes())
    torch.testing.assert_close(x[:, 0, 0, 0], (classes + 1) / 10)
    *_, x = named.trajectories([4, 2], 0, None, Classes())
    torch.testing.assert_close(x[:, 0, 0, 0], torch.tensor([2, 3]) / 10)  # by the index, not the place in the batch


def test_a_given_example_is_of_no_class_unless_one_is_named():
    named, x = model(class_names=["cat", "dog", "house"]), torch.rand(2, 1, 2, 2)
    log_prob = partial(named.log_prob, x, tolerance=0.1)
    for call in (partial(named.score, x, 0.5), partial(named.denoise, x, 0.5), log_prob):
        assert torch.equal(call(), call(torch.tensor([-1, -1])))
        assert torch.equal(call("dog"), call(torch.tensor([1, 1])))
        assert not torch.equal(call("dog"), call())


def test_a_model_that_never_saw_no_class_is_not_asked_for_it():
    always, x = model(label_dropout=0.0), torch.rand(2, 1, 2, 2)
    assert torch.equal(always.sample(4), always.sample(4, label=torch.tensor([0, 1, 2, 0])))
    always.score(x, 0.5, 1)
    message = "label: none, but the model was trained with label_dropout 0; give a class"
    for call in (partial(always.sample, 2, 0, "none"), partial(always.score, x, 0.5), partial(always.log_prob, x)):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match=r"label: expected classes from 0 to 2, got \[0, -1\]"):
        always.sample(2, label=torch.tensor([0, -1]))
    with pytest.raises(ValueError, match="guidance: 2, but the model was trained with label_dropout 0"):
        always.guidance(2)


def test_a_file_says_whether_its_model_knows_no_class(here, capsys):
    content = read("checkpoints/small/step=1.ckpt")
    assert rebuilt_model(content, "").labels.dropped
    content["hyper_parameters"]["label_dropout"] = 0.0
    save_safetensors(rebuilt_model(content, ""), "always.safetensors")
    status, line = refusal(capsys, lambda: sample(["always.safetensors", "--label", "none"]))
    assert (status, "--label: none, but the model was trained with label_dropout 0" in line) == (2, True), line


def test_names_are_as_many_as_the_classes_of_the_network():
    with pytest.raises(ValueError, match="expected a name for each of 3 classes, got 2 class_names"):
        model(class_names=["cat", "dog"])
    assert model(classes=0).classes == 0
    assert model(classes=0).sample(2, label="none").shape == (2, 1, 2, 2)
    with pytest.raises(ValueError, match="label: 1, but the model was trained without labels"):
        model(classes=0).sample(2, label=1)
