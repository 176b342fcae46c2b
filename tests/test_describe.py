"""Parts that were made in Python describe themselves: what is saved of them is built again, or they are refused."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

import ncsn
import numpy as np
import pytest
import torch
from ncsn import samplers
from ncsn.model.describe import described, settings_of
from ncsn.model.load import load
from ncsn.model.model import Model
from ncsn.model.plans import build, plan_class
from ncsn.model.pretrained import save_pretrained, save_safetensors
from ncsn.networks import MLP, RBM, AutoencoderEnergy, UNet
from ncsn.noise import GeometricSchedule, KarrasSchedule, LogNormalSchedule, NoNoise
from ncsn.samplers import Heun, Sampler
from ncsn.score import EDMDenoiser, EnergyScore, NCSNDenoiser
from ncsn.score.toys import Rings
from PIL import Image
from torch import nn

SCHEDULE = GeometricSchedule(2.0, 0.1, 4)


class Net(nn.Module):
    """A network of one's own, some of whose arguments it does not use."""

    def __init__(self, width: int, act: Callable = torch.relu, root: Path | str = "", extra=None, flag: bool = False):
        super().__init__()
        self.width, self.act, self.root, self.extra, self.flag = width, act, root, extra, flag
        self.layer = nn.Linear(4, 4, bias=flag)

    def forward(self, x, c_noise, label=None):
        return self.act(self.layer(x))


class Wider(Net):
    def __init__(self, *args, more: float = 1.0, **others):
        super().__init__(*args, **others)
        self.more = more


class Forgetful(nn.Module):
    def __init__(self, width: int = 3):
        super().__init__()
        self.layer = nn.Linear(width, 1)


class Doubled(nn.Module):
    def __init__(self, width: int = 3):
        super().__init__()
        self.width = 2 * width


class Resized(nn.Module):
    """Its attribute is not what its weights were made with."""

    def __init__(self, width: int = 3):
        super().__init__()
        self.width, self.layer = 7, nn.Linear(width, 1)


class Positional(nn.Module):
    def __init__(self, *sizes: int):
        super().__init__()
        self.sizes = sizes


@dataclass(frozen=True)
class Stepped(Sampler):
    sizes: tuple[float, ...] = (1.0,)

    def __call__(self, score, x, sigmas):
        yield from (x for _ in sigmas)


@pytest.mark.parametrize(
    ("part", "arguments"),
    [
        (EDMDenoiser(UNet(3, 16, (1, 2), dropout=0.1), data_std=0.3), {"data_mean": 0.5, "data_std": 0.3}),
        (NCSNDenoiser(MLP(2, width=8, depth=2, classes=3)), {}),
        (EnergyScore(RBM(4, 3)), {}),
        (EnergyScore(AutoencoderEnergy(4, 3)), {}),
        (Heun(churn=2), {"churn": 2, "churn_min": 0.0, "inflation": 1.0}),
        (KarrasSchedule(5, 0.1, 10), {"sigma_max": 5, "sigma_min": 0.1, "levels": 10, "rho": 7.0}),
        (ncsn.Weighted(ncsn.CorruptionScoreMatching(ncsn.LaplaceNoise()), 1.0), {"power": 1.0}),
        (ncsn.ExplicitScoreMatching(Rings(0.2)), {}),
        (Net(3), {"width": 3, "root": "", "extra": None, "flag": False}),
        (Net(np.int64(3), root=Path("a/b"), extra=[1, (2.5, "c")]), {"root": "a/b", "extra": [1, [2.5, "c"]]}),
        (Wider(5, flag=True, more=np.float32(0.5)), {"width": 5, "flag": True, "more": 0.5}),
        (Stepped((3.0, 1.0)), {"sizes": [3.0, 1.0]}),
        (LogNormalSchedule(), {"std": 1.2}),
        (NoNoise(), {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_part_is_built_again_from_its_own_description(part, arguments):
    settings = described(part, "part")
    json.dumps(settings, allow_nan=False)
    assert {name: settings["init_args"][name] for name in arguments} == arguments
    trust = ["test_describe.Net", "test_describe.Wider", "test_describe.Stepped"]
    again = build(plan_class(settings, (type(part),), "part", trust))
    assert type(again) is type(part)
    assert described(again, "part") == settings
    if isinstance(part, nn.Module):
        again.load_state_dict(part.state_dict())


def local() -> nn.Module:
    class Local(nn.Module):
        pass

    return Local()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: Net(3, act=lambda x: x), r"network\.act: no file can hold <function <la.*; take a number, a"),
        (lambda: Net(3, extra=torch.ones(1)), r"network\.extra: no file can hold tensor\(\[1\.\]\)"),
        (lambda: Net("3"), r"network\.width: expected int, got '3'"),
        (Forgetful, r"network: Forgetful does not keep its argument width; set self\.width = width in its __init__$"),
        (Doubled, r"network: its attributes give another Doubled; keep each argument of __init__ as"),
        (Resized, r"network: its attributes give another Resized"),
        (lambda: Positional(1, 2), r"network: Positional takes \*args, which have no names"),
        (local, r"network: Local is defined inside a function; define it at the top of a file"),
    ],
)
def test_a_part_that_cannot_be_described_is_named_with_the_way_out(network, message, tmp_path):
    model = Model(NCSNDenoiser(network()), SCHEDULE, Heun(), (4,))
    with pytest.raises(ValueError, match=rf"^model\.denoiser\.{message}") as refused:
        save_safetensors(model, tmp_path / "a.safetensors")
    assert len(str(refused.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_data_made_in_python_is_described_by_all_of_its_arguments(tmp_path):
    for name in "ab":
        Image.new("L", (8, 4)).save(tmp_path / f"{name}.png")
    given = {"root": str(tmp_path), "size": [4, 8], "channels": 1, "batch_size": 1, "flip": False, "held_out": 0.5}
    settings = described(ncsn.ImageFolder(**given), "data")
    assert {name: settings["init_args"][name] for name in given} == given
    assert set(settings["init_args"]) == set(signature(ncsn.ImageFolder).parameters)
    assert build(plan_class(settings, (ncsn.ImageFolder,), "data", ())).shape == (1, 4, 8)
    points = ncsn.Points(Rings(0.2), count=7)
    again = build(plan_class(described(points, "data"), (ncsn.Points,), "data", ()))
    assert torch.equal(again.load()["train"].values, points.load()["train"].values)


def test_describing_a_part_draws_no_random_numbers():
    denoiser, before = NCSNDenoiser(MLP(2)), torch.random.get_rng_state()
    described(denoiser, "model.denoiser")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("gaussian", [True, False])
def test_a_model_made_in_python_is_published_and_samples_as_before(tmp_path, gaussian):
    sampler = samplers.AnnealedLangevin(1e-3, 2, denoise=False)  # which supposes no Gaussian noise
    model = Model(NCSNDenoiser(Net(3)), SCHEDULE, sampler, (4,), gaussian_noise=gaussian)
    save_pretrained(model, tmp_path / "folder")
    save_safetensors(model, tmp_path / "a.safetensors")
    for path in (tmp_path / "folder", tmp_path / "a.safetensors"):
        with pytest.raises(ValueError, match=r"--trust test_describe\.Net \(in Python"):
            load(path)
        again = load(path, trust=["test_describe.Net"])
        assert (again.sampler, again.schedule, again.gaussian_noise) == (sampler, SCHEDULE, gaussian)
        assert torch.equal(again.sample(3), model.sample(3))


def test_a_sampler_that_is_replaced_after_loading_is_the_one_that_is_saved(tmp_path):
    model = load(ncsn.model.shipped.SHIPPED_MODEL)
    model.sampler = samplers.Euler()
    save_safetensors(model, tmp_path / "a.safetensors")
    assert load(tmp_path / "a.safetensors").sampler == samplers.Euler()
    assert load(tmp_path / "a.safetensors").trained_on == model.trained_on
    model.sampler = samplers.MetropolisAdjustedLangevin(1e-3, 1, lambda x, sigma: x)
    with pytest.raises(ValueError, match=r"model\.sampler\.log_prob: no file can hold"):
        save_safetensors(model, tmp_path / "b.safetensors")


def test_a_part_that_is_changed_after_loading_is_saved_as_it_is(tmp_path):
    model = load(ncsn.model.shipped.SHIPPED_MODEL)
    model.denoiser.data_std, model.shape = 0.9, (1, 12, 12)
    save_safetensors(model, tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors")
    assert torch.equal(again.sample(2), model.sample(2))
    assert again.shape == (1, 12, 12)


def test_a_file_with_an_objective_says_by_it_alone_what_its_noise_is(tmp_path):
    model = load(ncsn.model.shipped.SHIPPED_MODEL)
    model.settings["hyper_parameters"]["gaussian_noise"] = True
    save_safetensors(model, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="multiple values for keyword argument 'gaussian_noise'"):
        load(tmp_path / "a.safetensors")


def changed_std(model):
    model.denoiser.data_std = 0.9


def changed_network(model):
    model.denoiser.network = Forgetful(3)


def changed_inside(model):
    model.denoiser.network.layer = nn.Linear(3, 1, bias=False)


def replaced(model):
    model.denoiser = NCSNDenoiser(model.denoiser.network)


@pytest.mark.parametrize("change", [None, changed_std, changed_network, changed_inside, replaced])
def test_a_part_that_does_not_describe_itself_is_saved_only_as_the_file_has_it(tmp_path, change):
    network = {"class_path": "test_describe.Forgetful", "init_args": {"width": 2}}
    settings = {"class_path": "ncsn.score.EDMDenoiser", "init_args": {"network": network, "data_std": 0.3}}
    parts = EDMDenoiser(Forgetful(2), data_std=0.3), SCHEDULE, Heun(), (2,)
    model = Model(*parts, settings={"hyper_parameters": {"denoiser": settings, "shape": [2]}})
    if change is None:
        assert settings_of(model)["hyper_parameters"]["denoiser"] == settings
        return
    change(model)
    with pytest.raises(ValueError, match=r"^model\.denoiser\.network: Forgetful does not keep its argument width"):
        save_safetensors(model, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
