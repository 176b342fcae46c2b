"""Every configuration builds, and has the numbers that its source published."""

import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything
from PIL import Image

from ncsn.module import ScoreModule
from ncsn.training import build

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def built(name: str, *options: str, monkeypatch, folder: Path) -> ScoreModule:
    """What `train.py --config configs/NAME.yaml` would train."""
    config = next(file for file in CONFIGS if file.stem == name)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(config), "--trainer.accelerator", "cpu", *options])
    return build()


@pytest.fixture
def pictures(tmp_path):
    """A folder of a few pictures."""
    for i in range(4):
        Image.new("RGB", (40, 40), (i, 0, 0)).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("name", [file.stem for file in CONFIGS])
def test_every_config_builds_and_its_header_says_how_to_run_it(name, monkeypatch, pictures):
    options = ["--data.root", str(pictures)] if name == "image_folder" else []
    cli = built(name, *options, monkeypatch=monkeypatch, folder=pictures)
    assert cli.config.name == name
    file = next(file for file in CONFIGS if file.stem == name)
    assert f"configs/{name}.yaml" in file.read_text().split("name:")[0]
    assert cli.model.shape == cli.datamodule.shape
    x = torch.rand(1, *cli.model.shape)
    assert cli.model.losses(x, cli.model.schedule.sample(x)).shape == (1,)
    seed_everything(0)


@pytest.mark.parametrize(
    ("name", "sigma_max", "levels", "calls", "alpha", "rate", "decay"),
    [
        ("ncsn_mnist", 1, 10, 1000, 0.2, 1e-3, 0),
        ("ncsn_cifar10", 1, 10, 1000, 0.2, 1e-3, 0),
        ("ncsnv2_cifar10", 50, 232, 1161, 0.062, 1e-4, 0.999),
    ],
)
def test_the_papers_configs_are_the_papers(name, sigma_max, levels, calls, alpha, rate, decay, monkeypatch, tmp_path):
    cli = built(name, monkeypatch=monkeypatch, folder=tmp_path)
    sigmas = cli.model.schedule.sigmas()
    assert (sigmas[0].item(), len(sigmas)) == (sigma_max, levels)
    assert sigmas[-1].item() == pytest.approx(0.01)
    sampler = cli.model.sampler
    assert levels * sampler.steps + sampler.denoise == calls
    assert sampler.epsilon / sigmas[-1].item() ** 2 == pytest.approx(alpha)
    assert cli.model.configure_optimizers()["optimizer"].defaults["lr"] == rate
    assert cli.config_init.ema.decay == decay
    assert cli.datamodule.batch_size == 128
