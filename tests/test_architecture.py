"""Which way imports point: the table is the diagram."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ncsn"
THEORY = {"torch", "einops"}
SOLVER = {"likelihood": {"torchdiffeq"}, "foreign": {"diffusers"}}
FRAMEWORK = THEORY | {
    "lightning",
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

# module: the modules of the package that it may import
MAY_IMPORT = {
    "noise": set(),
    "networks": set(),
    "score": set(),
    "densities": {"noise"},
    "toys": {"densities"},
    "objectives": {"noise", "score", "densities"},
    "streams": set(),
    "optim": set(),
    "samplers": {"noise", "score", "streams"},
    "likelihood": {"noise", "score", "densities"},
    "guidance": {"noise", "score", "streams"},
    "foreign": {"score"},
    "data": {"densities", "errors", "files"},
    "storage": {
        *{"noise", "networks", "score", "densities", "toys", "objectives", "samplers", "optim"},
        *{"data", "errors", "files", "model"},
    },
    "model": {"noise", "score", "objectives", "samplers", "streams", "likelihood"},
    "module": {"model", "noise", "score", "objectives", "samplers", "streams", "storage", "memory"},
    "callbacks": {
        *{"noise", "score", "samplers", "data", "model", "module", "plots", "checkpoints", "errors"},
        *{"drawing", "evaluation", "processes"},
    },
    "checkpoints": {"storage", "data", "module"},
    "export": {"storage", "checkpoints", "errors", "options", "files", "module", "score", "processes"},
    "errors": set(),
    "processes": set(),
    "memory": set(),
    "resume": {"storage", "checkpoints", "data"},
    "training": {
        *{"module", "data", "callbacks", "checkpoints", "storage", "resume", "files", "errors", "processes"},
    },
    "compare": {"errors", "noise", "score", "densities", "networks", "objectives"},
    "advise": {"noise", "samplers", "data", "training", "errors"},
    "files": set(),
    "features": {"data", "errors", "evaluation", "files", "memory", "processes"},
    "evaluation": {"noise", "samplers", "likelihood", "data", "module", "files", "storage", "drawing"},
    "plots": {"score", "densities", "networks", "data", "module", "files"},
    "drawing": {
        *{"score", "samplers", "streams", "guidance", "data", "model", "module", "files", "processes", "memory"},
        *{"storage"},
    },
    "sampling": {
        *{"data", "module", "storage", "checkpoints", "plots", "errors", "options", "files", "processes"},
        *{"drawing", "evaluation"},
    },
    "evaluate": {
        *{"samplers", "data", "module", "storage", "checkpoints", "errors", "options", "files", "processes"},
        *{"drawing", "evaluation"},
    },
    "results": {"storage", "checkpoints", "errors", "files", "options", "processes", "evaluation"},
    "preflight": set(),
    "options": {"errors", "files"},
    "cli": {"errors", "options", "preflight", "training", "sampling"},
    "__init__": set(),
}
THEORY_MODULES = {
    "streams",
    "optim",
    "noise",
    "networks",
    "score",
    "densities",
    "toys",
    "objectives",
    "samplers",
    "guidance",
    "likelihood",
    "foreign",
}


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


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_one_way(file):
    module = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imports(file):
        root, _, rest = name.partition(".")
        if root == "ncsn":
            assert rest, f"{file.name} imports ncsn/__init__"
            assert rest.split(".")[0] in MAY_IMPORT[module] | {module}
        elif root not in sys.stdlib_module_names:
            assert root in (THEORY | SOLVER.get(module, set()) if module in THEORY_MODULES else FRAMEWORK)


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
        assert getattr(ncsn, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_name"):
        ncsn.no_such_name  # noqa: B018
