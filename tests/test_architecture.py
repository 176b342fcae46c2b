"""Which way imports point: the table is the diagram."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.house import House

PACKAGE = Path(__file__).parent.parent / "ncsn"
THEORY = {"torch", "einops"}
EXTRA = {"likelihood": {"torchdiffeq"}, "diffusers": {"diffusers"}}
FRAMEWORK = THEORY | {
    "lightning",
    "lightning_utilities",
    "torchvision",
    "torchmetrics",
    "torch_fidelity",
    "safetensors",
    "jsonargparse",
    "rich",
    "PIL",
    "numpy",
    "sklearn",
    "matplotlib",
    "yaml",
}

# room: the rooms that it may import, each lower in the house
MAY_IMPORT = {
    "noise": set(),
    "networks": {"noise"},
    "score": {"noise"},
    "objectives": {"noise", "score"},
    "samplers": {"noise", "score"},
    "data": {"score"},
    "model": {"noise", "networks", "score", "objectives", "samplers", "data"},
    "evaluation": {"noise", "networks", "score", "samplers", "data", "model"},
    "training": {"noise", "score", "objectives", "samplers", "data", "model", "evaluation"},
    "cli": {"noise", "score", "samplers", "data", "model", "evaluation", "training"},
}
THEORY_ROOMS = {"noise", "networks", "score", "objectives", "samplers"}


def imports(file: Path) -> set[str]:
    """The dotted names that `file` imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            names.add(node.module)
    return names


def test_the_house_has_ten_rooms():
    rooms = {path.stem for path in PACKAGE.iterdir() if not path.name.startswith("__") and path.suffix != ".typed"}
    assert rooms == set(MAY_IMPORT)


def test_the_floors_are_few_and_there_is_no_circle():
    floors = House(PACKAGE.parent).floors()
    assert floors.keys() == MAY_IMPORT.keys()
    assert max(floors.values()) <= 8


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("*/**/*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_one_way(file):
    room = file.relative_to(PACKAGE).parts[0]
    for name in imports(file):
        root, _, rest = name.partition(".")
        if root == "ncsn":
            assert rest, f"{file.name} imports ncsn/__init__"
            assert rest.split(".")[0] in MAY_IMPORT[room] | {room}
        elif root not in sys.stdlib_module_names:
            assert root in (THEORY | EXTRA.get(file.stem, set()) if room in THEORY_ROOMS else FRAMEWORK)


def test_the_theory_runs_with_torch_alone():
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"lightning", "torchvision", "jsonargparse", "PIL", "rich", "torchmetrics"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import ncsn, ncsn.networks, ncsn.noise, ncsn.objectives, ncsn.samplers, ncsn.score
from ncsn import AnnealedLangevin, DenoisingScoreMatching, EDMDenoiser, GeometricSchedule, UNet
from ncsn import Model
model = Model(EDMDenoiser(UNet(1, width=8)), GeometricSchedule(1, 0.1, 3), AnnealedLangevin(1e-3, 1), (1, 8, 8))
ncsn.save_safetensors, ncsn.load("checkpoints/digits.safetensors").sample(1)
try:
    ncsn.ScoreModule
except ModuleNotFoundError:
    print("well")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert ran.stdout == "well\n", ran.stderr


def test_public_names_resolve_and_are_listed():
    import ncsn

    assert set(ncsn.__all__) <= set(dir(ncsn))
    for name in ncsn.__all__:
        assert getattr(ncsn, name).__name__.removeprefix("ncsn.") == name
    with pytest.raises(AttributeError, match="no_such_name"):
        ncsn.no_such_name  # noqa: B018
