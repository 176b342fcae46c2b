"""Settings that would run code if a loader let them, and the files that hold them."""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ncsn.model import checkpoint_file
from ncsn.model.model import DATA
from ncsn.model.pretrained import checksum
from ncsn.networks import UNet
from ncsn.noise import GeometricSchedule
from ncsn.objectives import DenoisingScoreMatching
from ncsn.samplers import AnnealedLangevin
from ncsn.score import EDMDenoiser
from ncsn.training.module import ScoreModule
from safetensors.torch import save

Settings = dict[str, Any]


def named(path: str, /, **arguments: Any) -> Settings:
    """Return the settings of an object."""
    return {"class_path": path, "init_args": arguments}


GOOD: Settings = {
    "model": {
        "denoiser": named(
            "ncsn.score.EDMDenoiser",
            network=named("ncsn.networks.UNet", channels=1, width=4, multipliers=[1], blocks=1),
            data_std=0.4,
        ),
        "schedule": named("ncsn.noise.GeometricSchedule", sigma_max=2.0, sigma_min=0.1, levels=3),
        "objective": named("ncsn.objectives.DenoisingScoreMatching", corruption=named("ncsn.GaussianNoise")),
        "sampler": named("ncsn.samplers.AnnealedLangevin", epsilon=1e-3, steps=1),
        "optimizer": named("torch.optim.Adam", lr=1e-3, betas=[0.9, 0.999], fused=None),
        "shape": [1, 8, 8],
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
    },
    "data": named("ncsn.data.Digits", batch_size=64, labels=False),
}
"""What a run of the training command leaves in a checkpoint."""
POINTS = named("ncsn.data.Points", density=named("ncsn.score.toys.Rings", std=0.1), count=100)
PLACES = {
    "denoiser": ("model", "denoiser"),
    "network": ("model", "denoiser", "init_args", "network"),
    "schedule": ("model", "schedule"),
    "objective": ("model", "objective"),
    "corruption": ("model", "objective", "init_args", "corruption"),
    "sampler": ("model", "sampler"),
    "data": ("data",),
    "density": ("data", "init_args", "density"),
}
"""Where the settings of an object stand, by the name of what it is."""
PATHS = """
torch.fx.graph_module.reduce_graph_module torch.nn.Linear torch.nn.Sequential torch.hub.load torch.load torch.jit.load
torch.utils.cpp_extension.load_inline os.system subprocess.Popen builtins.exec builtins.eval builtins.open this.s
antigravity.webbrowser json.loads pathlib.Path functools.partial turtle.Turtle idlelib.pyshell.main lib2to3.main.main
helper.Helper helper.function helper.Instance evilpackage.Helper evilpackage.part.Helper onpath.Helper helper
__main__.main sklearn.datasets.load_files torchvision.models.resnet18 torchmetrics.Metric yaml.unsafe_load
ncsn.cli.main.train
ncsn.samplers.langevin.torch.load ncsn.score.Denoiser ncsn.training.module.ScoreModule
ncsn.score.diffusers.DiffusersScore ncsn.model.load.load
ncsn..UNet ncsn.networks.UNet. .UNet UNet ncsn.networks.UNet.__init__ NCSN.networks.UNet
ncsn.networks.__builtins__.exec
"""
NAMES = PATHS.split()
"""Import paths that no file may have."""
FEW = (
    "torch.fx.graph_module.reduce_graph_module",
    "helper.Helper",
    "onpath.Helper",
    "antigravity.fly",
    "ncsn.cli.main.train",
)
TEXTS = ("this.s", "antigravity", "helper.Helper", "ncsn.networks.UNet", "{class_path: helper.Helper}")
OTHERS = {
    "ncsn.samplers.Ancestral": "sampler",
    "ncsn.noise.NoNoise": "schedule",
    "ncsn.score.toys.Rings": "density",
    "ncsn.data.Digits": "data",
    "torch.optim.Adam": "",
}
"""Classes of the table, and the place where they belong."""


class Evil(NamedTuple):
    """Settings that must be refused by what builds the `part` that is evil: model, data, root, optimizer.

    `json` is False for those that JSON cannot hold.
    """

    name: str
    part: str
    settings: Settings
    json: bool = True


def changed(name: str, place: tuple[Any, ...], value: Any, json: bool = True, part: str = "") -> Evil:
    """Change one setting of the good ones."""
    settings = deepcopy(GOOD)
    if place[:3] == PLACES["density"]:
        settings["data"] = deepcopy(POINTS)
    inside: Any = settings
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    if not part:
        part = next((key for key in ("_instantiator", "optimizer") if key in place), place[0])
    return Evil(f"{name} at {' '.join(map(str, place))}"[:150], part, settings, json)


def at(place: tuple[str, ...]) -> Any:
    """Return the good settings at a place."""
    inside: Any = {"model": GOOD["model"], "data": POINTS if place == PLACES["density"] else GOOD["data"]}
    for key in place:
        inside = inside[key]
    return inside


def evil_settings(marker: Path) -> Iterator[Evil]:
    """Yield evil settings, the same ones every time, which would leave the file `marker` behind if they ran."""
    block = f"open({str(marker)!r}, 'w')"
    graph = {"body": {"_code": "def forward(self,x):return x"}, "import_block": block}
    reduced = named("torch.fx.graph_module.reduce_graph_module", **graph)
    touch = {"command": f"touch {marker}", "args": ["touch", str(marker)]}
    laughs: list[Any] = []
    for _ in range(40):
        laughs = [laughs, laughs]
    deep: Any = named("ncsn.GaussianNoise")
    for _ in range(100):
        deep = named("ncsn.objectives.Weighted", objective=deep)
    for kind, place in PLACES.items():
        good = at(place)
        for path in NAMES if kind in ("network", "sampler", "data") else FEW:
            yield changed(path, place, named(path, **(graph if "graph" in path else {})))
        for path in ("subprocess.Popen", "os.system"):
            yield changed(path, place, named(path, **touch))
        for text in TEXTS:
            yield changed(f"text {text}", place, text)
        for path in (path for path, belongs in OTHERS.items() if belongs != kind):
            yield changed(f"kind {path}", place, named(path))
        yield changed("dict_kwargs", place, good | {"dict_kwargs": {"network": reduced}})
        yield changed("__class__", place, good | {"__class__": "helper.Helper"})
        yield changed("no class", place, {"init_args": good["init_args"]})
        yield changed("class is a list", place, {"class_path": ["helper", "Helper"]})
        yield changed("dotted class", place, {"class_path.x": "helper.Helper"} | good)
        yield changed("arguments are a text", place, good | {"init_args": "this.s"})
        for key in ("network.class_path", "__init__", "__class__", "self", "label", "log_prob", "args", "*", ""):
            yield changed(f"argument {key}", (*place, "init_args", key), "this.s")
        if place[0] == "model":
            yield changed("dotted", ("model", f"{kind}.class_path"), "helper.Helper")
            yield changed("dotted object", ("model", f"{kind}.init_args.x"), reduced)
    network = PLACES["denoiser"] + ("init_args",)
    yield changed("as reported", network, {"network.class_path": reduced["class_path"], "network.init_args": graph})
    yield changed("beside", network, at(network) | {"network.init_args.body": graph})
    yield changed("dotted network", ("model", "denoiser.init_args.network"), reduced)
    for key, value in {
        "shape": "this.s",
        "cooldown": reduced,
        "compile": "this.s",
        "label_dropout": named("helper.Helper"),
        "evil": reduced,
        "callbacks": [named("helper.Helper")],
        "denoiser ": reduced,
        "__class__": "helper.Helper",
    }.items():
        yield changed("model", ("model", key), value)
    yield changed("laughs", ("model", "warmup"), laughs, json=False)
    yield changed("tensor", ("model", "warmup"), torch.ones(2), json=False)
    yield changed("huge", ("model", "warmup"), 2**70)
    yield changed("long", ("model", "warmup"), "9" * 10_000)
    yield changed("deep", PLACES["objective"], deep)
    for key, value in {"levels": "helper.x", "sigma_max": [1.0], "sigma_min": None}.items():
        yield changed("type", (*PLACES["schedule"], "init_args", key), value)
    for key, value in {"width": "8", "multipliers": "this.s", "blocks": True, "attention": [reduced]}.items():
        yield changed("type", (*PLACES["network"], "init_args", key), value)
    for key, value in {"epsilon": "this.s", "steps": 1.5, "denoise": 1}.items():
        yield changed("type", (*PLACES["sampler"], "init_args", key), value)
    mala = {"epsilon": 1e-3, "steps": 1}
    for value in (
        "this.s",
        "helper.function",
        "ncsn.densities.Gaussian.log_prob",
        reduced,
        named("helper.Helper"),
    ):
        mala_named = named("ncsn.samplers.MetropolisAdjustedLangevin", log_prob=value, **mala)
        yield changed(f"log_prob {value}", PLACES["sampler"], mala_named)
        explicit = named("ncsn.objectives.ExplicitScoreMatching", target=value)
        yield changed(f"target {value}", PLACES["objective"], explicit)
        yield changed(f"energy {value}", PLACES["denoiser"], named("ncsn.score.EnergyScore", energy=value))
        gaussian = named("ncsn.score.densities.Gaussian", mean=value, std=value)
        yield changed(f"mean {value}", PLACES["density"], gaussian)
        yield changed(f"optimiser {value}", ("model", "optimizer"), value)
        yield changed(f"rate {value}", ("model", "optimizer"), named("torch.optim.Adam", lr=value))
        yield changed(f"instantiator {value}", ("model", "_instantiator"), value)
    for path in (*NAMES[:16], *FEW, "ncsn.networks.UNet", "torch.optim.Optimizer", "torch.optim.lr_scheduler.LambdaLR"):
        yield changed(path, ("model", "optimizer"), named(path, **touch))
    for key in ("lr.class_path", "params", "defaults", "__class__", "hook"):
        yield changed(key, ("model", "optimizer", "init_args", key), "helper.Helper")
    yield changed("beside", ("model", "optimizer", "dict_kwargs"), {"x": "helper.Helper"})
    yield changed("dotted", ("model", "optimizer.class_path"), "helper.Helper")
    root = str(marker.with_name("made"))
    for path in ("MNIST", "FashionMNIST", "CIFAR10"):
        yield changed(f"root of {path}", ("data",), named(f"ncsn.data.{path}", root=root), part="root")
    yield changed("root of pictures", ("data",), named("ncsn.data.ImageFolder", root=root, size=8), part="root")
    yield changed("data is a list", ("data",), [named("helper.Helper")])
    for key in (1, None, True, 1.5, ("network",), b"network"):
        for place in (
            ("model",),
            PLACES["denoiser"],
            (*PLACES["sampler"], "init_args"),
            (*PLACES["data"], "init_args"),
        ):
            yield changed(f"key {key!r}", (*place, key), "this.s", json=False)


def good_module(**settings: Any) -> ScoreModule:
    """Return a module as `GOOD` describes it, and as settings of training say."""
    torch.manual_seed(0)
    denoiser = EDMDenoiser(UNet(1, width=4, multipliers=(1,), blocks=1), data_std=0.4)
    parts = GeometricSchedule(2.0, 0.1, 3), DenoisingScoreMatching(), AnnealedLangevin(1e-3, 1)
    return ScoreModule(denoiser, *parts, (1, 8, 8), **settings)


def write(settings: Settings, weights: dict[str, Any], file: Path) -> Path:
    """Write a whole file with the right checksum: a .ckpt, a .safetensors, or a pretrained folder."""
    content = {"hyper_parameters": settings["model"], DATA: settings["data"]}
    if file.suffix == ".ckpt":
        checkpoint_file.write(
            {**content, "state_dict": weights, "current_model_state": weights, "global_step": 1}, file
        )
        return file
    text = json.dumps(content)
    if file.suffix == ".safetensors":
        about = {"format": "pt", "ncsn": text, "sha256": checksum(text, weights)}
        file.write_bytes(save(weights, metadata=about))
    else:
        file.mkdir()
        write(GOOD, weights, file / "model.safetensors")
        (file / "config.json").write_text(text)
    return file
