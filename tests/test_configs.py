"""Every configuration builds, and has the numbers that its source published."""

import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from ncsn.cli.main import main
from ncsn.cli.train import from_config
from ncsn.model.load import load, load_data
from ncsn.model.shipped import config_file
from ncsn.noise import GeometricSchedule, LogNormalSchedule, langevin_step_size, num_levels
from ncsn.objectives import DenoisingScoreMatching
from ncsn.samplers import AnnealedLangevin
from ncsn.score import NCSNDenoiser
from ncsn.training.module import ScoreModule
from ncsn.training.run import build
from PIL import Image

CONFIGS = sorted((Path(__file__).parent.parent / "configs").rglob("*.yaml"))


def built(name: str, *options: str, monkeypatch, folder: Path) -> ScoreModule:
    """What `train.py --config configs/NAME.yaml` would train."""
    config = next(file for file in CONFIGS if file.stem == name)
    monkeypatch.chdir(folder)
    return build(["--config", str(config), "--trainer.accelerator", "cpu", *options])


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
    file = next(file for file in CONFIGS if file.stem == name)
    folder = "toy/" if file.parent.name == "toy" else ""
    assert cli.config.name == (folder + name).replace("/", "_")
    assert f"configs/{folder}{name}.yaml" in file.read_text().split("name:")[0]
    assert cli.model.shape == cli.datamodule.shape
    x = torch.rand(1, *cli.model.shape).round()  # binary, which is in the range of every set
    assert cli.model.losses(x, cli.model.schedule.sample(x)).shape == (1,)
    seed_everything(0)


def test_the_command_for_a_gpu_is_accepted_and_learns_faster_from_larger_batches(monkeypatch, tmp_path):
    header = Path(config_file("digits")).read_text().split("name:")[0].replace("\\\n#", "")
    (command,) = re.findall(r"ncsn train --config configs/digits.yaml (--.*)", header)
    plain = built("digits", monkeypatch=monkeypatch, folder=tmp_path)
    given = built("digits", *command.split(), monkeypatch=monkeypatch, folder=tmp_path)
    larger = given.datamodule.batch_size / plain.datamodule.batch_size
    rates = [cli.model.configure_optimizers()["optimizer"].defaults["lr"] for cli in (given, plain)]
    assert larger == 4
    assert rates[0] / rates[1] == pytest.approx(larger**0.5)
    assert given.trainer.max_steps / plain.trainer.max_steps == 1 / 2


@pytest.mark.parametrize(
    ("name", "sigma_max", "levels", "calls", "alpha", "rate", "steps", "decay", "flip", "dequantise"),
    [
        ("ncsn_cifar10", 1, 10, 1000, 0.2, 1e-3, 200_000, 0, True, True),
        ("ncsnv2_cifar10", 50, 232, 1161, 0.062, 1e-4, 300_000, 0.999, True, False),
    ],
)
def test_the_papers_configs_are_the_papers(
    name, sigma_max, levels, calls, alpha, rate, steps, decay, flip, dequantise, monkeypatch, tmp_path
):
    cli = built(name, monkeypatch=monkeypatch, folder=tmp_path)
    sigmas = cli.model.schedule.sigmas()
    assert (sigmas[0].item(), len(sigmas)) == (sigma_max, levels)
    assert sigmas[-1].item() == pytest.approx(0.01)
    sampler = cli.model.sampler
    assert levels * sampler.steps + sampler.denoise == calls
    assert sampler.epsilon / sigmas[-1].item() ** 2 == pytest.approx(alpha)
    optimizer = cli.model.configure_optimizers()["optimizer"]
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.defaults["lr"] == rate
    assert cli.trainer.max_steps == steps
    assert cli.parts.ema.decay == decay
    assert (cli.datamodule.batch_size, cli.datamodule.flip, cli.datamodule.dequantise) == (128, flip, dequantise)


@pytest.mark.parametrize(("name", "sigma_max"), [("ncsn_mnist", 16.9), ("ncsn_fashion_mnist", 22.5)])
def test_ncsn_for_a_cpu_has_the_levels_the_loss_and_the_sampler_of_its_papers(name, sigma_max, monkeypatch, tmp_path):
    """Technique 1 gives sigma_max (test_advise finds it in the images), and Technique 2 the number of levels."""
    cli = built(name, monkeypatch=monkeypatch, folder=tmp_path)
    levels = num_levels(sigma_max, 0.01, dimension=28 * 28)
    assert cli.model.schedule == GeometricSchedule(sigma_max, 0.01, levels)
    assert cli.model.objective == DenoisingScoreMatching()
    assert cli.model.sampler == AnnealedLangevin(steps=1)
    assert isinstance(cli.model.denoiser, NCSNDenoiser)
    assert cli.parts.ema.decay > 0


@pytest.mark.parametrize("name", ["cifar10_minutes", "cifar10_hour", "cifar10_day"])
def test_the_levels_for_a_gpu_are_edms_for_half_the_range(name):
    """Karras et al. (2022), Table 1, for images in [-1, 1]."""
    settings = yaml.safe_load(Path(config_file(name)).read_text())["model"]["schedule"]
    schedule = LogNormalSchedule(**settings["init_args"])
    assert (2 * schedule.sigma_min, 2 * schedule.sigma_max) == (0.002, 80)
    assert schedule.mean + math.log(2) == pytest.approx(-1.2, abs=1e-3)
    assert (schedule.std, schedule.levels, schedule.rho) == (1.2, 18, 7)


@pytest.mark.parametrize("name", ["cifar10_minutes", "cifar10_hour", "cifar10_day", "ncsn_cifar10", "ncsnv2_cifar10"])
def test_a_recipe_for_a_gpu_steps_and_samples_with_a_small_network(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for i in range(8):
        file = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (30 * i, 200 - i, 9)).save(file)
    labels = "labels: true" in Path(config_file(name)).read_text()
    folder = ["--data", "ImageFolder", "--data.root", "images", "--data.size", "32", "--data.batch_size", "4"]
    folder += ["--data.labels", "true"] * labels
    small = ["--model.denoiser.network.width", "8", "--trainer.max_steps", "2", "--trainer.val_check_interval", "1"]
    small += ["--model.sampler.steps", "1"] * (not labels)
    main(["train", "--config", name, *folder, *small, "--trainer.accelerator", "cpu", "--samples.count", "0"])
    model = load(f"checkpoints/{name}/step=2.ckpt")
    assert model.sample(2, steps=3).shape == (2, 3, 32, 32)
    assert model.classes == 2 * labels


def technique_4(sigma_max: float, sigma_min: float, levels: int, steps: int) -> float:
    """The epsilon that keeps the variance of the walk nearest to its level's (Song & Ermon, 2020, Technique 4)."""
    gamma = (sigma_max / sigma_min) ** (1 / (levels - 1))
    eta = torch.logspace(-4, -0.1, 100_000, dtype=torch.float64)
    q = 1 - eta
    k = 2 * eta / (1 - q**2)
    r = q ** (2 * steps) * (gamma**2 - k) + k
    return eta[(r - 1).abs().argmin()].item() * sigma_min**2


def test_the_package_computes_the_same_step_sizes():
    for sigma_max, levels, steps in ((50, 232, 5), (90, 500, 5), (348, 2311, 3), (1, 10, 100), (10, 90, 10)):
        ours = langevin_step_size(GeometricSchedule(sigma_max, 0.01, levels).sigmas(), steps)
        assert ours == pytest.approx(technique_4(sigma_max, 0.01, levels, steps), rel=2e-3)


def test_the_step_size_is_technique_4(monkeypatch, tmp_path):
    model = built("ncsnv2_cifar10", monkeypatch=monkeypatch, folder=tmp_path).model
    sigmas = model.schedule.sigmas()
    best = technique_4(sigmas[0].item(), sigmas[-1].item(), len(sigmas), model.sampler.steps)
    assert model.sampler.epsilon == pytest.approx(best, rel=0.02)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("digits", 20), ("mnist", 20), ("fashion_mnist", 20), ("image_folder", 40), ("cifar10", 35), ("cifar10_day", 35)],
)
def test_the_recipes_draw_in_few_calls_of_the_network(name, expected, monkeypatch, pictures):
    options = ["--data.root", str(pictures)] if name == "image_folder" else []
    model = built(name, *options, monkeypatch=monkeypatch, folder=pictures).model
    calls = 0

    def score(x, sigma):
        nonlocal calls
        calls += 1
        return -x

    for _ in model.sampler(score, model.model.start(1), model.schedule.sigmas()):
        pass
    assert calls == expected


def test_a_configuration_gives_the_module_and_the_data_to_python(tmp_path, monkeypatch):
    """The same as a run begins with: the weights by its seed, and data that checkpoints describe."""
    monkeypatch.chdir(tmp_path)
    module, data = from_config("digits", "--data.batch_size=32", "--seed_everything=3")
    assert isinstance(module, ScoreModule)
    assert (type(data).__name__, data.batch_size) == ("Digits", 32)
    run = build(["--config", config_file("digits"), "--seed_everything=3"])
    weights = zip(module.state_dict().values(), run.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False, limit_val_batches=0)
    trainer.fit(module, data)
    trainer.save_checkpoint("a.ckpt")
    with pytest.warns(UserWarning, match="has no checksum"):
        assert load_data("a.ckpt").batch_size == 32
    for given, message in (
        (["gone"], r"^--config: there is no file gone$"),
        (
            ["digits", "--data.batch_sizee=3"],
            r"^data: Option 'batch_sizee' is not accepted; did you mean 'batch_size'\?$",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            from_config(*given)
    with pytest.raises(TypeError, match=r"each a text, got \['--data.batch_size=3'\]$"):
        from_config("digits", ["--data.batch_size=3"])
