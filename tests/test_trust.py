"""A stranger's file runs nothing: classes are looked up in a table, and arguments are checked first."""

import re
import sys
import typing
from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ncsn.cli.main import sample
from ncsn.model import checkpoint_file
from ncsn.model.classes import ALL_ROOMS, classes
from ncsn.model.load import load, load_data, save_safetensors
from ncsn.model.plans import Plan, build, fitted, plan_class
from ncsn.model.renamed import updated
from ncsn.objectives import Weighted
from ncsn.samplers import Euler, Heun, Sampler
from ncsn.training.module import ScoreModule
from ncsn.training.run import build as build_run
from PIL import Image
from torch import Tensor, nn

from evil_settings import GOOD, PLACES, at, changed, evil_settings, good_module, named, write
from watched import among_helpers, attack, control, in_library

CONFIGS = sorted((Path(__file__).parent.parent / "configs").rglob("*.yaml"))
WEIGHTS = good_module().state_dict()


@pytest.fixture
def marker(tmp_path):
    """A file that helpers leave in the working folder when they run; none has run yet."""
    with among_helpers(tmp_path / "here") as marker:
        yield marker
    for name in ("helper", "evilpackage", "onpath"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("start", "kind"), list(enumerate((".ckpt", ".safetensors", ""))))
def test_evil_files_are_refused_and_nothing_is_imported(marker, start, kind):
    evils = list(enumerate(evil_settings(marker)))
    assert len(evils) > 300
    some = evils[start::24] + [(i, evil) for i, evil in evils if evil.name.startswith("as reported")]
    files, _, refused = attack(some, [kind], marker, in_library)
    assert refused > files / 2


def test_weights_to_start_from_are_read_and_nothing_else_of_their_file(marker):
    """Classes that their file names are not even looked up, and it may hold no code."""
    evils = [evil for evil in evil_settings(marker) if evil.json][::24]
    files = [write(evil.settings, WEIGHTS, Path(f"{i}.ckpt")) for i, evil in enumerate(evils)]
    assert len(files) > 10
    for file in files:
        module = good_module(weights=file)
        assert all(torch.equal(weight, WEIGHTS[name]) for name, weight in module.state_dict().items())
    torch.save({"state_dict": nn.Linear(1, 1), "hyper_parameters": {}}, "code.ckpt")
    with pytest.raises(ValueError, match=r"^model\.weights: code\.ckpt holds code, which is not run"):
        good_module(weights="code.ckpt")
    assert not marker.exists()


def test_a_file_does_not_name_another_to_start_from(tmp_path):
    content = {"hyper_parameters": GOOD["model"], "subclass_parameters": {"weights": "/no/such/file"}}
    checkpoint_file.write({**content, "state_dict": WEIGHTS, "global_step": 1}, tmp_path / "a.ckpt")
    assert ScoreModule.load_from_checkpoint(tmp_path / "a.ckpt").denoiser.data_std == 0.4


def test_the_watch_sees_a_trusted_helper_run(marker):
    control(marker)


def test_evil_files_are_the_same_every_time(marker):
    assert [evil.name for evil in evil_settings(marker)] == [evil.name for evil in evil_settings(marker)]


@pytest.mark.parametrize("place", PLACES)
def test_a_class_is_found_by_each_of_its_names(tmp_path, place):
    found = classes(ALL_ROOMS)[at(PLACES[place])["class_path"]]
    names = [name for name, other in classes(ALL_ROOMS).items() if other is found]
    assert {f"ncsn.{found.__name__}", f"{found.__module__}.{found.__name__}"} <= set(names)
    for name in names:
        file = write(changed("", (*PLACES[place], "class_path"), name).settings, WEIGHTS, tmp_path / "a.ckpt")
        assert load(file).shape == (1, 8, 8)
        assert type(load_data(file)).__name__ == ("Points" if place == "density" else "Digits")


@pytest.mark.parametrize("found", sorted(set(classes(ALL_ROOMS).values()), key=lambda found: found.__name__))
def test_every_argument_of_the_table_is_declared(found):
    """An argument without a type takes any plain value, which is for the user's own classes alone."""
    for name, parameter in signature(found).parameters.items():
        assert parameter.kind is Parameter.POSITIONAL_OR_KEYWORD or found.__module__.startswith("torch")
        assert parameter.kind is not Parameter.VAR_KEYWORD
        assert parameter.annotation is not Parameter.empty, name


@pytest.mark.parametrize("config", CONFIGS, ids=lambda file: file.stem)
def test_the_parts_of_every_config_are_saved_and_loaded_again(config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    arguments = ["--config", str(config), "--trainer.accelerator", "cpu"]
    if "UNet" in config.read_text():
        arguments += ["--model.denoiser.network.width", "8"]
    if config.stem == "image_folder":
        for number in range(2):
            Image.new("RGB", (40, 40)).save(f"data/{number}.png")
        arguments += ["--data.root", "data"]
    run = build_run(arguments)
    trained = run.model.model
    trained.settings["datamodule_hyper_parameters"] = dict(run.datamodule.hparams)
    save_safetensors(trained, "model.safetensors")
    content = {
        "hyper_parameters": dict(run.model.hparams),
        "datamodule_hyper_parameters": dict(run.datamodule.hparams),
        "state_dict": run.model.state_dict(),
    }
    checkpoint_file.write(content, Path("model.ckpt"))
    for file in ("model.safetensors", "model.ckpt"):
        module = load(file)
        assert repr(module.denoiser) == repr(run.model.denoiser)
        for part in ("schedule", "sampler"):
            assert getattr(module, part) == getattr(run.model, part)
        assert module.gaussian_noise is trained.gaussian_noise
        assert type(load_data(file)) is type(run.datamodule)
    sample(["model.ckpt", "--show-settings"])


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)
TYPES: dict[object, Callable[[object], bool]] = {
    bool: lambda value: isinstance(value, bool),
    int: lambda value: type(value) is int,
    float: lambda value: type(value) in (int, float),
    str: lambda value: isinstance(value, str),
    None: lambda value: value is None,
    typing.Literal[1, "auto"]: lambda value: value == "auto" or (type(value) is int and value == 1),
    int | None: lambda value: value is None or type(value) is int,
    float | typing.Literal["auto"]: lambda value: type(value) in (int, float) or value == "auto",
    Sequence[int]: lambda value: isinstance(value, (list, tuple)) and all(type(one) is int for one in value),
    tuple[float, ...]: lambda value: (
        isinstance(value, (list, tuple)) and all(type(one) in (int, float) for one in value)
    ),
    tuple[int, str]: lambda value: isinstance(value, (list, tuple)) and [type(one) for one in value] == [int, str],
    list[list[int]]: lambda value: (
        isinstance(value, (list, tuple))
        and all(isinstance(one, (list, tuple)) and all(type(two) is int for two in one) for one in value)
    ),
    Callable[[Tensor], Tensor]: lambda value: False,
    Tensor: lambda value: False,
    Path: lambda value: False,
    typing.Any: lambda value: True,
    nn.Module: lambda value: False,
    nn.Module | Callable[[Tensor], Tensor] | None: lambda value: value is None,
}


def as_lists(value: object) -> object:
    return [as_lists(one) for one in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("declared", TYPES, ids=str)
@settings(max_examples=60)
@given(value=PLAIN | st.lists(st.integers(0, 3)) | st.sampled_from(["auto", 1, True, [1, "a"]]))
def test_a_plain_value_fits_its_type_and_arrives_unchanged_or_is_refused(declared, value):
    try:
        got = fitted(value, declared, "setting", ())
        refusal = ""
    except ValueError as error:
        refusal = str(error)
    assert bool(refusal) != TYPES[declared](value)
    if refusal:
        assert re.fullmatch("setting: expected .*; only plain values are read from a file", refusal)
        return
    assert repr(as_lists(got)) == repr(as_lists(value))
    origin = typing.get_origin(declared)
    if origin in (tuple, list):
        assert type(got) is origin


@pytest.mark.parametrize("value", [2**63, "a" * 5000, [0] * 20_000, {1: 2}, b"a", {"a": torch.ones(1)}, {1, 2}, 1j])
def test_what_is_not_plain_or_too_much_is_refused(value):
    with pytest.raises(ValueError, match=r"^setting: "):
        fitted(value, typing.Any, "setting", ())


def test_a_plan_is_made_without_building(monkeypatch):
    monkeypatch.setattr(nn.Module, "__init__", lambda *_, **__: pytest.fail("built"))
    settings = named("ncsn.EDMDenoiser", network=named("ncsn.UNet"))
    with pytest.raises(ValueError, match=r"channels"):
        plan_class(settings, (nn.Module,), "denoiser", ())


def test_a_plan_describes_nested_objects():
    settings = named("ncsn.Weighted", objective=named("ncsn.ImplicitScoreMatching", probes=2), power=1)
    plan = plan_class(settings, (Weighted,), "objective", ())
    assert isinstance(plan.arguments["objective"], Plan)
    assert build(plan) == Weighted(build(plan.arguments["objective"]), 1)


@pytest.mark.parametrize(
    ("settings", "built"),
    [
        (named("ncsn.samplers.ProbabilityFlow"), Heun()),
        (named("ncsn.samplers.flow.ProbabilityFlow", order=1), Euler()),
        (named("ncsn.StochasticHeun", churn=5), Heun(churn=5)),
    ],
)
def test_names_of_earlier_versions_are_read(settings, built):
    assert build(plan_class(updated(settings), (Sampler,), "sampler", ())) == built
