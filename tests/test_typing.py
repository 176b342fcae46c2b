"""The package as a type checker sees it from outside, in a project of somebody else's."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import ncsn
import pytest

PACKAGE = Path(__file__).parent.parent / "ncsn"
RIGHT = """
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import assert_type

import ncsn
from ncsn.score import Score

model = ncsn.load("checkpoints/digits.safetensors")
assert_type(model, ncsn.Model)
images = model.sample(64, seed=0)
assert_type(images, Tensor)
assert_type(model.score(images, 0.1), Tensor)
assert_type(model.denoise(images, torch.tensor(0.1)), Tensor)
assert_type(model.log_prob(images), Tensor)
assert_type(ncsn.load("digits"), ncsn.Model)
exact: Score = ncsn.Gaussian(torch.zeros(4), torch.tensor(1.0)).score
assert_type(ncsn.score.tweedie(exact, images, torch.tensor(0.1)), Tensor)
foreign: Score = ncsn.from_diffusers("folder")


@dataclass(frozen=True)
class Still(ncsn.Sampler):
    grey: float = 0.5

    def __call__(self, score: Score, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
        for _ in sigmas:
            yield torch.full_like(x, self.grey)


*_, x = Still()(exact, images, ncsn.GeometricSchedule(5, 0.05, 40).sigmas())
assert_type(x, Tensor)
"""
WRONG = """
import ncsn

model = ncsn.load(3)
model.sample("64")
model.denoise(model.sample(1), "0.1")
ncsn.no_such_name
ncsn.UNet(chanels=1)
count: int = model.log_prob(model.sample(1))
"""


def checked(folder: Path, program: str) -> list[str]:
    """The lines of `mypy --strict` on a program in `folder`, with the package where libraries are."""
    (folder / "program.py").write_text(program)
    shutil.copytree(PACKAGE, folder / "site" / "ncsn", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(folder / "cache"), "program.py"],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder / "site")},
    )
    assert not ran.stderr, ran.stderr
    return ran.stdout.splitlines()


@pytest.mark.slow
def test_a_strict_project_checks_against_the_package_and_its_mistakes_are_found(tmp_path):
    assert checked(tmp_path, RIGHT) == ["Success: no issues found in 1 source file"]
    lines = checked(tmp_path, WRONG)
    assert {int(line.split(":")[1]) for line in lines if ": error: " in line} == {4, 5, 6, 7, 8, 9}


def test_the_names_that_checkers_see_are_those_that_there_are():
    """`__init__.py` reads them from the stub: all that a user can have is in it, under the name that is given there."""
    stub = (PACKAGE / "__init__.pyi").read_text()
    pairs = re.findall(r"^from [\w.]+ import (\w+) as (\w+)$", stub, re.MULTILINE)
    assert [name for name, _ in pairs] == [name for _, name in pairs]
    assert sorted(name for name, _ in pairs) == dir(ncsn)
    assert len(pairs) == len(stub.strip().splitlines()) - 2
    assert (PACKAGE / "py.typed").is_file()


def test_the_nouns_are_there_as_modules_as_soon_as_the_package_is():
    code = "import ncsn; print(ncsn.score.tweedie, ncsn.samplers.Ancestral, ncsn.noise.KarrasSchedule)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert not ran.stderr
    assert ran.stdout.count("ncsn.") == 2
