"""What `ncsn advise` prints is a configuration, and its warnings are of what is far off."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from ncsn.cli.advise import examples, moments_of, scalar
from ncsn.cli.main import main
from ncsn.data import Digits, ImageFolder
from ncsn.noise import (
    Distance,
    GeometricSchedule,
    KarrasSchedule,
    LogNormalSchedule,
    NoiseSchedule,
    NoNoise,
    langevin_step_size,
)
from ncsn.samplers import AnnealedLangevin, ConsistentAnnealed, DPMSolver, Langevin
from ncsn.samplers.advice import advise, objections
from ncsn.training.run import build
from PIL import Image

from test_cli import SMALL, refusal

CONFIGS = Path(__file__).parent.parent / "configs"
NCSNV2 = GeometricSchedule(50, 0.01, 232), AnnealedLangevin(6.2e-6, 5)


def run(*options: str) -> None:
    """`ncsn advise OPTIONS` in this process and folder."""
    main(["advise", *options, "--trainer.accelerator", "cpu"])


def built(*options: str):
    """What `train.py OPTIONS` would train."""
    return build([*options, "--trainer.accelerator", "cpu"]).model


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """A small configuration on digits, in a folder that is made the current one."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    return Path("small.yaml")


def test_what_is_printed_is_a_configuration_that_builds_and_is_not_objected_to(small, capsys):
    run("--config", "small.yaml")
    out = capsys.readouterr().out
    Path("advised.yaml").write_text(out)
    settings = yaml.safe_load(out)["model"]
    model = built("--config", "small.yaml", "--config", "advised.yaml")
    assert model.schedule == GeometricSchedule(**settings["schedule"]["init_args"])
    assert model.sampler == AnnealedLangevin(**settings["sampler"]["init_args"])
    assert model.schedule.sigma_max == 4.81  # Digits: the largest distance is 4.814
    assert model.schedule.sigma_min == 0.01
    assert model.sampler.epsilon == pytest.approx(
        langevin_step_size(model.schedule.sigmas(), model.sampler.steps), rel=1e-2
    )
    Path("checkpoints/small").mkdir(parents=True)
    Path("checkpoints/small/step=7.ckpt").touch()  # of a run by these settings, which is no reason not to ask
    run("--config", "small.yaml", "--config", "advised.yaml")
    again = capsys.readouterr()
    assert yaml.safe_load(again.out)["model"] == settings
    assert "warning" not in again.err


def test_each_number_has_its_reason_above_it(small, capsys):
    run("--config", "small.yaml")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    for name, reason in {
        "sigma_max": "Technique 1: the largest distance between two examples, 4.814",
        "sigma_min": "2.55 of 255 grey levels: invisible",
        "levels": "Technique 2",
        "epsilon": "Technique 4",
        "steps": "T, the fewest published: 66 NFE; 6 in your settings",
    }.items():
        above = lines[next(i for i, line in enumerate(lines) if line.strip().startswith(f"{name}:")) - 1]
        assert above.strip().startswith("# ")
        assert reason in above


def test_settings_far_off_are_warned_of_with_their_factors(small, capsys):
    run("--config", "small.yaml", "--model.schedule.sigma_max", "20", "--model.sampler.epsilon", "1.5e-2")
    err = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[:2] for line in err] == [
        ["warning", "model.schedule.sigma_max"],
        ["warning", "model.schedule.levels"],
        ["warning", "model.sampler.epsilon"],
    ]
    assert "20 is 4.2 times the largest distance, 4.814" in err[0]
    assert "overshoots" in err[2]


def test_points_are_advised_on_too(small, capsys):
    options = ["--config", str(CONFIGS / "toy/denoising.yaml"), "--data.count", "600"]
    run(*options)
    out = capsys.readouterr().out
    Path("advised.yaml").write_text(out)
    schedule = built(*options, "--config", "advised.yaml").schedule
    assert 5 < schedule.sigma_max < 8
    assert schedule.sigma_min == 0.1


def test_standard_output_of_the_command_is_yaml_alone(tmp_path):
    for i in range(8):
        Image.new("RGB", (8, 8), (30 * i, 0, 0)).save(tmp_path / f"{i}.png")
    data = ["--data.root", str(tmp_path), "--data.size", "8", "--data.batch_size", "2"]
    command = [sys.executable, "-m", "ncsn", "advise", "--config", str(CONFIGS / "image_folder.yaml"), *data]
    ran = subprocess.run([*command, "--trainer.accelerator", "cpu"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    settings = yaml.safe_load(ran.stdout)["model"]
    assert settings["schedule"]["class_path"] == "ncsn.noise.LogNormalSchedule"
    assert settings["schedule"]["init_args"]["mean"] == -1.5
    assert all(line.startswith("warning: ") for line in ran.stderr.splitlines() if line)
    assert "sigma_max: 50 is" in ran.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--config: none given"),
        (["--config", "none.yaml"], "none.yaml"),
        (["--config", "small.yaml", "--model.schedule.levels", "0"], "got levels=0"),
        (["--config", "small.yaml", "--model.sampler.epsilon", "1"], "got epsilon=1"),
        (["--config", "small.yaml", "--data.batch_size", "5000"], "batch_size is 5000"),
    ],
)
def test_a_wrong_setting_is_answered_in_one_line(small, capsys, options, message):
    status, line = refusal(capsys, lambda: run(*options))
    assert status == 2
    assert message in line


def test_the_published_settings_come_out_for_the_published_distances():
    for sigma_max, dimension, levels, steps, epsilon in (
        (50, 3 * 32**2, 232, 5, 6.18e-6),
        (90, 3 * 64**2, 500, 5, 3.34e-6),
        (348, 3 * 256**2, 2311, 3, 8.93e-7),
    ):
        own = GeometricSchedule(sigma_max, 0.01, levels), AnnealedLangevin(epsilon, steps)
        advice = advise(Distance(sigma_max, sigma_max), dimension, True, *own)
        assert advice.schedule == own[0]
        assert advice.sampler.steps == steps
        assert advice.sampler.epsilon == pytest.approx(epsilon, rel=2e-3)
        assert not list(objections(Distance(sigma_max, sigma_max), dimension, *own))


@dataclass(frozen=True)
class OneLevel(NoiseSchedule):
    """A schedule of one's own, which has no ladder to set."""

    def sigmas(self):
        return torch.ones(1)

    def sample(self, x):
        raise NotImplementedError


def test_what_is_not_of_the_ladder_is_kept():
    distance = Distance(50, 60)
    advice = advise(distance, 3072, True, LogNormalSchedule(mean=-1, rho=7), AnnealedLangevin(1e-7, 1, denoise=False))
    assert (advice.schedule.mean, advice.schedule.rho) == (-1, 100)  # Karras's own ladder is far from geometric
    assert not advice.sampler.denoise
    assert "between 50 and 60" in advice.reasons["sigma_max"]
    for schedule in (NoNoise(), OneLevel()):
        advice = advise(distance, 3072, True, schedule, Langevin(0.1, 7))
        assert (advice.schedule, advice.sampler.steps) == (GeometricSchedule(50, 0.01, 232), 5)


def test_a_sampler_that_goes_with_the_level_needs_no_levels_that_overlap():
    few = GeometricSchedule(50, 0.01, 20)
    assert not list(objections(Distance(50, 50), 3072, few, DPMSolver(eta=2)))
    for sampler in (AnnealedLangevin("auto", 5), ConsistentAnnealed(1e-5)):
        assert any("levels: 20 is" in line for line in objections(Distance(50, 50), 3072, few, sampler))
    assert advise(Distance(50, 50), 3072, True, few, Langevin(1e-5, 1)).sampler.steps == 5
    assert advise(Distance(17, 17), 784, True, few, Langevin(1e-5, 1)).sampler.steps == 11


def test_another_sampler_is_kept_with_its_levels():
    few = GeometricSchedule(50, 0.01, 20)
    advice = advise(Distance(17, 17), 784, True, few, DPMSolver(eta=2))
    assert (advice.schedule, advice.sampler) == (GeometricSchedule(17, 0.01, 20), DPMSolver(eta=2))


def test_a_step_size_of_auto_is_kept_with_its_steps():
    few = GeometricSchedule(20, 0.02, 20)
    advice = advise(Distance(17, 17), 784, True, few, AnnealedLangevin("auto", 1))
    assert (advice.schedule, advice.sampler) == (GeometricSchedule(17, 0.01, 101), AnnealedLangevin("auto", 1))
    assert "Technique 2" in advice.reasons["levels"]


def test_the_moments_of_the_data_are_printed_as_settings(small, capsys):
    sampler = ("--model.sampler", "DPMSolver", "--model.sampler.eta", "1")
    run("--config", "small.yaml", *sampler)
    out = capsys.readouterr().out
    Path("advised.yaml").write_text(out)
    settings = yaml.safe_load(out)["model"]
    data = Digits()
    data.setup()
    pixels = data.splits["train"].values.double() / 255
    assert settings["denoiser"]["init_args"]["data_mean"] == pytest.approx(pixels.mean().item(), abs=5e-4)
    assert settings["denoiser"]["init_args"]["data_std"] == pytest.approx(pixels.std().item(), abs=5e-4)
    assert "sampler" not in settings
    model = built("--config", "small.yaml", *sampler, "--config", "advised.yaml")
    assert model.denoiser.data_std == settings["denoiser"]["init_args"]["data_std"]
    assert model.sampler == DPMSolver(eta=1)


def test_the_moments_of_points_are_those_of_the_batch_as_a_whole():
    values = torch.tensor([[1.0, 3.0]] * 4096 + [[8.0, 8.0]] * 4096)
    assert moments_of(values) == {"data_mean": 5.0, "data_std": 3.08}  # the root of 9.5


def test_more_steps_are_advised_where_the_budget_has_them():
    steps = [
        advise(Distance(50, 50), 3072, True, NCSNV2[0], AnnealedLangevin(1e-5, steps)).sampler.steps
        for steps in (1, 2, 3, 4, 20)
    ]
    assert steps == [3, 3, 3, 4, 20]


@pytest.mark.parametrize(
    ("schedule", "sampler", "expected"),
    [
        (GeometricSchedule(26, 0.01, 232), Langevin(1, 1), None),
        (GeometricSchedule(24, 0.01, 232), Langevin(1, 1), "sigma_max: 24 is 0.48 of the largest distance, 50"),
        (GeometricSchedule(99, 0.01, 250), Langevin(1, 1), None),
        (GeometricSchedule(101, 0.01, 250), Langevin(1, 1), "sigma_max: 101 is 2 times the largest distance, 50"),
        (GeometricSchedule(50, 0.01, 117), Langevin(1, 1), None),
        (GeometricSchedule(50, 0.01, 115), Langevin(1, 1), "levels: 115 is 0.5 of the 232"),
        (NCSNV2[0], AnnealedLangevin(9.2e-6, 5), None),
        (NCSNV2[0], AnnealedLangevin(9.4e-6, 5), "epsilon: 9.4e-06 is 1.5 times the best for these levels, 6.18e-06"),
        (NCSNV2[0], AnnealedLangevin(4.0e-6, 5), "epsilon: 4e-06 is 0.65 times the best"),
        (NCSNV2[0], AnnealedLangevin(1.1e-4, 5), "above sigma_min^2 each step overshoots"),
        (NCSNV2[0], AnnealedLangevin("auto", 5), None),
        (KarrasSchedule(50, 0.01, 300), AnnealedLangevin("auto", 5), None),
        (KarrasSchedule(5, 0.02, 20), DPMSolver(3), None),
        (KarrasSchedule(101, 0.02, 20), DPMSolver(3), "sigma_max: 101 is 2 times the largest distance, 50"),
        (NoNoise(), Langevin(1, 1), "NoNoise has no noise levels"),
    ],
)
def test_what_is_objected_to(schedule, sampler, expected):
    found = list(objections(Distance(50, 50), 3072, schedule, sampler))
    assert len(found) == (expected is not None)
    assert all(expected in line for line in found)


@pytest.mark.parametrize("distance", [0.0, 0.009])
def test_data_that_hardly_differs_is_refused(distance):
    with pytest.raises(ValueError, match=r"no two examples are farther apart than"):
        advise(Distance(distance, distance), 12, True, *NCSNV2)


@pytest.mark.parametrize("value", [1e-5, 1.0, 6.18e-6, 100, 1e20, True, "text: with a colon"])
def test_a_scalar_is_read_back_as_it_was(value):
    read = yaml.safe_load(scalar(value))
    assert read == value
    assert type(read) is type(value)


def test_streamed_pictures_are_read_up_to_a_limit(tmp_path, monkeypatch):
    for i in range(40):
        Image.new("L", (4, 4), i).save(tmp_path / f"{i}.png")
    data = ImageFolder(str(tmp_path), size=4, channels=1, batch_size=2, memory=0)
    data.setup()
    values, of = examples(data)
    assert (len(values), of) == (38, "")
    monkeypatch.setattr("ncsn.cli.advise.READ_AT_MOST", 16 * 10)
    values, of = examples(data)
    assert values.shape == (10, 1, 4, 4)
    assert of == " of 10 out of 38"
    assert len(values[:, 0, 0, 0].unique()) == 10
    assert torch.equal(values, examples(data)[0])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sigma_max", "levels"), [("mnist", 16.9, 101), ("fashion_mnist", 22.5, 105)])
def test_real_pictures(name, sigma_max, levels, real_data, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sampler = ["--model.sampler", "AnnealedLangevin", "--model.sampler.epsilon", "auto", "--model.sampler.steps", "5"]
    run("--config", str(CONFIGS / f"{name}.yaml"), "--data.root", str(real_data), *sampler)
    ladder = yaml.safe_load(capsys.readouterr().out)["model"]["schedule"]["init_args"]
    assert (ladder["sigma_max"], ladder["sigma_min"], ladder["levels"]) == (sigma_max, 0.01, levels)
