"""What the package does not do, wherever it is; and the releases that it refuses."""

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

tomllib = pytest.importorskip("tomllib")  # of Python 3.11
REPOSITORY = Path(__file__).parent.parent
SOURCES = [*(REPOSITORY / "ncsn").rglob("*.py"), REPOSITORY / "train.py", REPOSITORY / "sample.py"]
NEVER = (
    r"weights_only\s*=\s*(False|None)",
    r"^\s*(import|from) (pickle|dill|cloudpickle|joblib|shelve|marshal)\b",
    r"pickle\.loads?\(",
    r"yaml\.(load|full_load|unsafe_load)\(",
    r"UnsafeLoader|FullLoader",
    r"torch\.hub",
    r"allow_pickle\s*=\s*True",
    r"\b(eval|exec)\(",
    r"shell\s*=\s*True",
    r"add_safe_globals",
)
MAY = {"inception.py": (r"torch\.hub",)}
"""Its weights are fetched by their hash."""
BAD = {
    "lightning": ["2.6.2", "2.6.3", "2.6.5"],
    "torch": ["2.5.1", "2.9.1"],
    "pyyaml": ["5.3.1"],
    "pillow": ["9.5.0", "12.2.0"],
}


@pytest.mark.parametrize("pattern", NEVER)
def test_nowhere(pattern):
    for file in SOURCES:
        if pattern not in MAY.get(file.name, ()):
            found = re.search(pattern, file.read_text(), re.MULTILINE)
            # `model.eval()` is another thing.
            assert found is None or file.read_text()[found.start() - 1] == ".", f"{file.name}: {found}"


def test_torch_load_is_called_in_one_place_and_with_weights_only():
    calls = {file.name: re.findall(r"torch\.load\([^)]*\)", file.read_text()) for file in SOURCES}
    assert {name: found for name, found in calls.items() if found} == {
        "checkpoint_file.py": ['torch.load(path, map_location="cpu", weights_only=True)']
    }


def test_releases_that_are_known_to_be_bad_are_refused():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    requirements = [Requirement(line) for line in project["dependencies"]]
    here = [one for one in requirements if one.marker is None or one.marker.evaluate()]
    needed = {one.name: one.specifier for one in here}
    for name, releases in BAD.items():
        assert not list(needed[name].filter(releases)), name
    assert all(re.search(">=", str(specifier)) for specifier in needed.values())


def unaudited(found: list[dict], installed: Iterable[str]) -> set[str]:
    """The installed packages that an audit says nothing of; this one is on no list of known faults."""
    audited = {canonicalize_name(one["name"]) for one in found if "vulns" in one}
    return set(map(canonicalize_name, installed)) - audited - {"ncsn"}


def test_an_audit_of_a_part_is_told_from_one_of_all():
    found = [{"name": "Pillow", "vulns": []}, {"name": "torch", "skip_reason": "not on PyPI"}]
    assert unaudited(found, ["ncsn", "pillow", "torch", "typing_extensions"]) == {"torch", "typing-extensions"}
    assert unaudited(found, ["ncsn", "pillow"]) == set()
    assert unaudited([], ["pillow"]) == {"pillow"}


@pytest.mark.slow
def test_nothing_that_is_installed_has_a_known_fault():
    if find_spec("pip_audit") is None:
        pytest.skip("pip-audit is not installed; `pip install -e '.[audit]'` does that")
    command = [sys.executable, "-m", "pip_audit", "--local", "--format", "json", "--progress-spinner", "off"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = json.loads(ran.stdout)["dependencies"] if ran.stdout else []
    audited = {one["name"]: one["vulns"] for one in found if "vulns" in one}
    # pip brings the others, and is not used after that.
    assert {name: faults for name, faults in audited.items() if faults and name != "pip"} == {}
    installed = {one.name for one in distributions()}
    left = unaudited(found, installed)
    reason = (ran.stderr.splitlines() or ["?"])[-1]
    if left:
        pytest.skip(f"{len(left)} of {len(installed)} packages were not audited ({reason}): {', '.join(sorted(left))}")
