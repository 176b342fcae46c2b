"""The wheel has all that a user needs, away from the repository."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the package as its wheel installs it."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", folder, REPOSITORY], check=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.stat().st_size < 25_000_000
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


@pytest.mark.slow
def test_a_wheel_samples_trains_and_lists_in_an_empty_folder(installed, tmp_path):
    def ncsn(*arguments: str) -> str:
        command = [sys.executable, "-m", "ncsn", *arguments]
        environment = os.environ | {"PYTHONPATH": str(installed)}
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    assert f"Sampling 64 from {installed}/ncsn/checkpoints/digits.safetensors" in ncsn("sample")
    assert "Trained 2 steps." in ncsn("train", "--config", "digits", "--trainer.max_steps", "2", "--samples.count", "0")
    assert "Sampling 4 from checkpoints/digits/step=2.ckpt" in ncsn("sample", "--num-samples", "4")
    assert "toy/sliced" in ncsn("configs")
    assert f"{installed}/ncsn/checkpoints/fashion_mnist.safetensors" in ncsn("models")
    for name in ("cifar10", "fashion_mnist", "ncsn_mnist"):
        said = ncsn("sample", "--model", name, "--num-samples", "2", "--steps", "9")
        assert f"Sampling 2 from {installed}/ncsn/checkpoints/{name}.safetensors" in said
    assert {file.name for file in tmp_path.iterdir()} >= {"samples.png", "samples-2.png", "checkpoints"}
