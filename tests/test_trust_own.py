"""A class of the user's own is built if the user names it; and what else a file's text could reach."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import ncsn
import pytest
import torch
import yaml
from ncsn.cli.from_options import sampler_of
from ncsn.cli.main import main, sample
from ncsn.cli.options import parse
from ncsn.model.load import load, load_data
from ncsn.model.model_card import card, measured
from ncsn.model.plans import plan_class
from ncsn.model.pretrained import save_pretrained
from ncsn.networks import UNet
from ncsn.samplers import AnnealedLangevin, DPMSolver
from ncsn.score.diffusers import from_diffusers
from ncsn.training.module import ScoreModule
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from evil_settings import GOOD, good_module, named, write
from test_cli import SMALL, refusal, run_train

OWN = """
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any
import torch
from torch import nn, optim
from ncsn import AnnealedLangevin, Digits, Sampler, UNet
Path("imported").touch()

class Net(UNet):
    def __init__(self, channels: int, extra=None, **settings):
        super().__init__(channels, **settings)
        self.extra = extra

class Data(Digits):
    pass

class Adam(optim.Adam):
    pass

class Order(Sampler):
    def __init__(self, order: int = 1, more=None, act: Callable = torch.relu, scale: float = 2.0):
        self._order, self._more, self._act, self._scale = order, more, act, scale

    def __call__(self, score, x, sigmas):
        yield from (x for _ in sigmas)

class Inner(nn.Module):
    def __init__(self, network: UNet | None = None, path: Path = Path("x"), root: Path | str = ""):
        super().__init__()

Colour = Enum("Colour", ["RED", "BLUE"])

class Defaults(UNet):
    def __init__(
        self, channels: int, extra: Any = None, path: Path = Path("x"), act: Callable = torch.relu, opts: dict = None,
        norm: type[nn.Module] = nn.SiLU, dtype: torch.dtype = torch.float32, device: torch.device = torch.device("cpu"),
        colour: Colour = Colour.RED, table: dict = {"a": 1}, function: Callable = lambda x: x, **settings
    ):
        super().__init__(channels, **settings)
        self.kept = extra, path, act, opts, norm, dtype, device, colour, table

def function(**settings) -> nn.Module:
    return Net(**settings)

instance = Net(1, width=4, multipliers=[1], blocks=1)
"""
FEATURES = Path(__file__).parent.parent / "checkpoints" / "features_digits.safetensors"
NET = {"channels": 1, "width": 4, "multipliers": [1], "blocks": 1}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with `own.py`, which leaves a file `imported`, and a module that fails."""
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "fails.py").write_text("import no_such_module_as_this")
    (tmp_path / "wrong.py").write_text("raise KeyError('two\\nlines')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("own", None)


def file_of(network: dict | None = None, data: dict | None = None, **model: object) -> Path:
    """Write the good checkpoint, with some of its settings replaced."""
    if network is not None:
        model["denoiser"] = named("ncsn.score.EDMDenoiser", network=network, data_std=0.4)
    settings = {"model": GOOD["model"] | model, "data": GOOD["data"] if data is None else data}
    return write(settings, good_module().state_dict(), Path("a.ckpt"))


def test_a_trusted_class_is_built_and_draws():
    file = file_of(named("own.Net", **NET, extra=[1, "a", None]))
    module = load(file, trust=["own.Net", "own.NotNamed"])
    assert type(module.denoiser.network).__name__ == "Net"
    assert module.denoiser.network.extra == [1, "a", None]
    assert torch.equal(module.sample(2), load(file_of()).sample(2))
    save_pretrained(module, "folder")
    assert type(load("folder", trust=["own.Net"]).denoiser.network).__name__ == "Net"
    file = file_of(named("own.Net", **NET))
    assert type(load(file, raw=True, trust="own.Net").denoiser.network).__name__ == "Net"
    assert type(ScoreModule.load_from_checkpoint(file, trust=("own.Net",)).denoiser.network).__name__ == "Net"


@pytest.mark.parametrize(
    "trust", [(), ["own"], ["own.Network"], "own.Network", ["Net"], ["own.Net "], ["*"], ["own.*"]]
)
def test_nothing_is_imported_unless_its_very_name_is_trusted(trust):
    with pytest.raises(ValueError, match=r"denoiser\.network: own\.Net is not a class of this package; if it is yours"):
        load(file_of(named("own.Net", **NET)), trust=trust)
    assert not Path("imported").exists()


def test_nothing_is_imported_that_the_file_does_not_name():
    load(file_of(), trust=["own.Net"])
    with pytest.raises(ValueError, match="got an unexpected keyword argument 'evil'"):
        load(file_of(evil=1), trust=["own.Net"])
    assert not Path("imported").exists()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("own.Data", r"own\.Data is not a subclass of Module"),
        ("own.function", r"own\.function is not a subclass of Module"),
        ("own.instance", r"own\.instance is not a subclass of Module"),
        ("own.Missing", r"own\.Missing cannot be imported: module 'own' has no attribute 'Missing'"),
        (
            "gone.Net",
            r"gone\.Net cannot be imported: No module named 'gone'; put it next to the command, or its folder on",
        ),
        ("gone.deep.Net", r"gone\.deep\.Net cannot be imported: No module named 'gone'"),
        ("fails.Net", r"fails\.Net cannot be imported: No module named 'no_such_module_as_this'"),
        ("wrong.Net", r"wrong\.Net cannot be imported"),
        ("os.system", r"os\.system is not a subclass of Module"),
        ("nodots", r"'?nodots'? cannot be imported"),
    ],
)
def test_what_is_trusted_must_be_a_class_of_the_right_kind(path, message):
    with pytest.raises(ValueError, match=rf"denoiser\.network: {message}") as refused:
        load(file_of(named(path)), trust=[path])
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"extra": {"class_path": "own.Inner"}}, r"network\.extra: expected a plain value, got {'class_path': 'own"),
        ({"width": "8"}, r"network\.width: expected int, got '8'"),
        ({"dropout": None}, r"network\.dropout: expected float, got None"),
        ({"classes": True}, r"network\.classes: expected int, got True"),
        ({"multipliers": ["a"]}, r"network\.multipliers: expected Sequence\[int\], got \['a'\]"),
    ],
)
def test_arguments_of_a_base_class_keep_their_types(arguments, message):
    with pytest.raises(ValueError, match=message):
        load(file_of(named("own.Net", **(NET | arguments))), trust=["own.Net"])


def test_defaults_that_no_file_can_hold_are_trained_with_and_loaded():
    config = yaml.safe_load(SMALL)
    network = config["model"]["denoiser"]["init_args"]["network"]
    network["class_path"] = "own.Defaults"
    Path("run.yaml").write_text(yaml.safe_dump(config))
    with pytest.warns(UserWarning, match="serialize"):
        run_train("--config", "run.yaml", "--trainer.max_steps", "1", "--samples.count", "0")
    (file,) = Path("checkpoints/small").glob("step=*.ckpt")
    kept = load(file, trust=["own.Defaults"]).denoiser.network.kept
    assert kept[:4] == (None, Path("x"), torch.relu, None)
    assert kept[4:7] == (torch.nn.SiLU, torch.float32, torch.device("cpu"))
    assert (kept[7].name, kept[8]) == ("RED", {"a": 1})
    file = file_of(named("own.Defaults", **NET, extra=[1, "a"]))
    assert load(file, trust=["own.Defaults"]).denoiser.network.kept[0] == [1, "a"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("act", "torch.tanh"),
        ("act", "os.system"),
        ("path", "y"),
        ("opts", {}),
        ("norm", "torch.nn.ReLU"),
        ("dtype", "x"),
        ("colour", "BLUE"),
        ("table", {"a": 2}),
        ("function", None),
        ("act", "helper.f"),
        ("act", "torch."),
        ("act", ""),
    ],
)
def test_other_values_than_such_a_default_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"network\.{name}: expected "):
        load(file_of(named("own.Defaults", **NET, **{name: value})), trust=["own.Defaults"])


def test_a_class_that_is_declared_takes_its_subclasses_alone():
    kinds, trust = (torch.nn.Module,), ["own.Inner", "own.Net"]
    plan = plan_class(named("own.Inner", network=named("own.Net", channels=1)), kinds, "x", trust)
    assert issubclass(plan.arguments["network"].made, UNet)
    assert plan_class(named("own.Inner", root="a"), kinds, "x", trust).arguments == {"root": "a"}
    for wrong in ({"network": named("ncsn.MLP", features=2)}, {"path": "y"}, {"path": named("ncsn.UNet")}):
        with pytest.raises(ValueError, match=r"^x\.(network: ncsn\.MLP is not a subclass of|path: expected Path)"):
            plan_class(named("own.Inner", **wrong), kinds, "x", trust)


def test_the_option_is_repeated_or_has_commas_and_leaves_the_checkpoints_alone():
    options = parse("sample", ["--trust", "a.B", "--trust", "c.D, e.F ", "x.ckpt", "y.ckpt"])
    assert options.trust == ["a.B", "c.D", "e.F"]
    assert options.checkpoints == [Path("x.ckpt"), Path("y.ckpt")]
    assert parse("sample", ["x.ckpt"]).trust == []


def test_the_commands_take_the_option(capsys, monkeypatch):
    file = file_of(named("own.Net", **NET), data=named("own.Data"))
    draw = [str(file), "--device", "cpu", "--num-samples", "1"]
    status, line = refusal(capsys, lambda: sample(draw))
    assert (status, "--trust own.Net" in line) == (2, True)
    sample([*draw, "--trust", "own.Net"])
    capsys.readouterr()
    sample([str(file), "--show-settings", "--trust", "own.Net,own.Data"])
    assert yaml.safe_load(capsys.readouterr().out)["data"]["class_path"] == "own.Data"
    status, line = refusal(capsys, lambda: sample([str(file), "--show-settings", "--trust", "own.Net"]))
    assert (status, "data: own.Data is not a class" in line) == (2, True)
    main(["export", str(file), "--to", "folder", "--out", "out", "--trust", "own.Net"])
    assert "trained on `own.Data`" in Path("out/README.md").read_text()


@pytest.mark.parametrize(
    ("optimizer", "part"),
    [
        ({"class_path": "os.system", "init_args": {"command": "touch marker"}}, "os.system is not a subclass"),
        ({"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "marker"]}}, "model.optimizer"),
        ({"class_path": "builtins.exec"}, "builtins.exec is not a subclass of torch.optim.Optimizer"),
        ({"class_path": "own.function"}, "model.optimizer"),
    ],
)
def test_a_configuration_has_an_optimiser_and_nothing_else_in_its_place(capsys, optimizer, part):
    config = yaml.safe_load(SMALL)
    config["model"]["optimizer"] = optimizer
    Path("run.yaml").write_text(yaml.safe_dump(config))
    status, line = refusal(capsys, lambda: run_train("--config", "run.yaml"))
    assert (status, part in line) == (2, True), line
    assert not Path("marker").exists()
    assert not Path("checkpoints").exists()


def test_an_optimiser_is_printed_if_it_is_one_of_torchs_or_trusted(capsys):
    sample([str(file_of(optimizer=named("ncsn.MuonAdam", lr=0.01, betas=[0.9, 0.99]))), "--show-settings"])
    shown = yaml.safe_load(capsys.readouterr().out)["model"]["optimizer"]
    assert shown == named("ncsn.MuonAdam", lr=0.01, betas=[0.9, 0.99])
    file = file_of(optimizer=named("own.Adam", lr=0.01))
    status, line = refusal(capsys, lambda: sample([str(file), "--show-settings"]))
    assert (status, "optimizer: own.Adam is not a class of this package" in line) == (2, True)
    assert load(file).classes == 0
    assert not Path("imported").exists()
    sample([str(file), "--show-settings", "--trust", "own.Adam"])
    assert "own.Adam" in capsys.readouterr().out


@pytest.mark.parametrize("shape", [[-1, -8, 8], [1, 0, 8]])
def test_each_side_of_an_example_is_at_least_1(shape):
    with pytest.raises(ValueError, match=r"expected sides of at least 1 .*, got shape=\("):
        load(file_of(shape=shape))


def test_one_refusal_names_all_classes_that_are_not_known(capsys):
    network = named("own.Net", **NET)
    file = file_of(network, sampler=named("own.Order"), optimizer=named("own.Adam"), data=named("own.Data"))
    with pytest.raises(
        ValueError, match=r'--trust own\.Net,own\.Order \(in Python, trust=\["own.Net", "own.Order"\]\)$'
    ):
        load(file)
    with pytest.raises(ValueError, match=r"sampler: .* if it is yours and you trust it: --trust own\.Order \(in"):
        load(file, trust=["own.Net"])
    status, line = refusal(capsys, lambda: sample([str(file), "--show-settings", "--trust", "own.Order"]))
    assert (status, "--trust own.Net,own.Adam,own.Data (in Python" in line) == (2, True)
    with pytest.raises(ValueError, match=r"os\.system is not a class of this package$"):
        load(file_of(named("os.system"), sampler=named("own.Order")))


def test_what_is_not_plain_of_an_optimiser_is_left_out():
    assert (
        "optimizer" not in load(file_of(optimizer={"class_path": "x.Y", 1: torch.ones(1)})).settings["hyper_parameters"]
    )


@pytest.mark.parametrize("path", ["ncsn.data.MNIST", "ncsn.FashionMNIST", "ncsn.CIFAR10", "ncsn.data.ImageFolder"])
def test_no_folder_is_made_because_a_file_names_it(capsys, path):
    more = {"size": 8} if path.endswith("Folder") else {}
    file = file_of(data=named(path, root="made/here", **more))
    with pytest.raises(ValueError, match=r"data\.root: there is no folder 'made/here', and none is made"):
        load_data(file)
    status, line = refusal(capsys, lambda: sample([str(file), "--num-samples", "1", "--nearest", "1"]))
    assert (status, "put the data there" in line) == (2, True)
    with pytest.raises(ValueError, match=r"the settings in .* are invalid: .*too long"):
        load_data(file_of(data=named(path, root="a" * 1000, **more)))
    assert not Path("made").exists()
    file = file_of(data=named(path, root="made/here", **more))
    Path("made/here").mkdir(parents=True)
    if not more:
        data = load_data(file)
        with pytest.raises(ValueError, match=r"is not in .*made/here, and nothing is downloaded .* --data CONFIG"):
            data.prepare_data()
        assert not list(Path("made/here").iterdir())


def test_a_file_does_not_choose_what_reading_its_data_costs(capsys, monkeypatch):
    Path("pictures").mkdir()
    for i in range(2):
        Image.new("L", (8, 8)).save(f"pictures/{i}.png")
    folder = {"root": "pictures", "size": 9, "channels": 1}
    file = file_of(data=named("ncsn.data.ImageFolder", **folder, memory=1e9, workers=1000, skip_broken=True))
    data = load_data(file)
    assert (data.memory, data.workers, data.skip_broken) == (4.0, 2, True)
    with pytest.raises(ValueError, match=r"data\.root: '/' is the whole disk"):
        load_data(file_of(data=named("ncsn.data.ImageFolder", **(folder | {"root": "/"}))))
    file = file_of(data=named("ncsn.data.ImageFolder", **folder))
    monkeypatch.setattr(ncsn.data.ImageFolder, "setup", lambda *_: pytest.fail("it was read"))
    status, line = refusal(capsys, lambda: main(["evaluate", str(file)]))
    assert (status, "of shape (1, 9, 9), but a.ckpt draws examples of shape (1, 8, 8)" in line) == (2, True)


def test_a_file_name_stays_in_its_comment(capsys):
    file = file_of().rename("a\nmodel: {evil: 1}\x1b\u2028.ckpt")
    sample([str(file), "--show-settings"])
    out = capsys.readouterr().out
    assert out.startswith("# a\\nmodel: {evil: 1}\\x1b\\u2028.ckpt, step 1\ndata:")
    assert set(yaml.safe_load(out)) == {"data", "model"}


@pytest.mark.parametrize("word", ["a\nb", "\x1b[31mDigits", "a b", "", "`a`"])
def test_features_say_in_one_word_what_they_were_trained_on(word):
    with safe_open(FEATURES, framework="pt") as opened:
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        about = opened.metadata() | {"trained_on": word}
    save_file(weights, "f.safetensors", about)
    with pytest.raises(ValueError, match=r"^features: .*\(trained_on is not the name of a class\)$"):
        ncsn.load_classifier("f.safetensors")


def test_text_of_a_report_stays_in_its_place_on_the_model_card():
    evil = "a\n# b | `c` [d](http://e) \x1b[31m <b>"
    counts = {"judged": 1, "reference": 1, "floor": 1}
    samples = {"weights": "w", "sampler": evil, "levels": 2, "sigma_max": 1.0, "sigma_min": 0.1, "seeds": [0]}
    report = {"judged": evil, "data": evil, "features": evil, "counts": counts, "floor": {evil: 1.0}}
    report |= {"figures": {evil: [1.0]}, "bits_per_dim": None, "samples": samples | {"cost": {"NFE": 2}}}
    text = measured(report, "w")
    assert not set("\x1b[]<>#") & set(text.replace("[0]", "").replace("# b", ""))
    assert "\n# b" not in text
    assert text.count("`") == 2
    assert [line.count("|") for line in text.splitlines()[:4]] == [4, 4, 4, 0]
    with pytest.raises(ValueError, match=r"of other weights: a # b ' 'c' .*$") as refused:
        measured(report, "v")
    assert str(refused.value).isprintable()
    report["samples"]["seeds"] = [evil]
    with pytest.raises(ValueError, match="not a report of this version"):
        measured(report, "w")


def test_lightnings_loader_is_not_used():
    for kind in (ncsn.Digits, ncsn.MNIST):
        with pytest.raises(ValueError, match=r"load_from_checkpoint: not available; use ncsn\.load"):
            kind.load_from_checkpoint(file_of())


def test_the_parser_gets_the_sampler_and_not_its_text():
    settings = named("ncsn.samplers.AnnealedLangevin", epsilon=1e-3, steps=1)
    settings = {"hyper_parameters": {"sampler": settings | {"x.y": "this.s"}}}
    module = SimpleNamespace(sampler=AnnealedLangevin(1e-3, 5), settings=settings)
    assert sampler_of(module, []) is module.sampler
    assert sampler_of(module, ["--sampler.steps=3"]) == AnnealedLangevin(1e-3, 3)
    assert sampler_of(module, ["--sampler=DPMSolver"]) == DPMSolver()


def test_a_sampler_that_is_not_a_dataclass_is_named_with_all_of_its_settings():
    module = load(file_of(sampler=named("own.Order", order=3, more=[1, 2])), trust=["own.Order"])
    with pytest.raises(ValueError, match=r"^--sampler.scale: name the class too"):
        sampler_of(module, ["--sampler.scale=0.5"])
    assert sampler_of(module, ["--sampler=own.Order", "--sampler.order=2"])._order == 2
    assert sampler_of(module, ["--sampler=DPMSolver"]) == DPMSolver()


def test_text_of_a_file_stays_in_its_place_on_the_model_card():
    text = "```\n# [a link](http://x)\n```` and `` more ```"
    settings = {"hyper_parameters": GOOD["model"], "datamodule_hyper_parameters": named(f"a`b\n{text}", root=text)}
    model = good_module().model
    model.settings = settings
    made = card(model, "load", "name")
    fence = "`" * 5
    before, inside, after = made.split(f"\n{fence}")
    assert yaml.safe_load(inside.removeprefix("yaml\n"))["data"]["init_args"]["root"] == text
    assert "a link" not in before + after
    assert "trained on" not in made


@pytest.mark.parametrize("change", [{"_class_name": "FluxPipeline"}, {"quantization_config": {"a": 1}}])
def test_diffusers_imports_nothing_for_another_configuration(change):
    Path("config.json").write_text(json.dumps({"_class_name": "UNet2DModel"} | change))
    with pytest.raises(ValueError, match="is not the configuration of a plain UNet2DModel"):
        from_diffusers(".")
    Path("config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is not the configuration of a plain UNet2DModel"):
        from_diffusers(".")
