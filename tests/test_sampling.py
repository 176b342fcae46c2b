"""What `sample.py` draws of toys and of hidden units, and how it denoises."""

import math
import re
from pathlib import Path

import pytest
import torch
from ncsn.cli.main import main
from ncsn.data import BinaryDigits, Digits, Points, pixel_grid, to_unit
from ncsn.evaluation.grids import save_grid
from ncsn.model.checkpoint_file import write
from ncsn.model.load import load, load_data
from ncsn.networks import MLP, RBM
from ncsn.noise import GeometricSchedule, NoNoise
from ncsn.objectives import (
    CorruptionScoreMatching,
    DenoisingScoreMatching,
    EDMScoreMatching,
    ImplicitScoreMatching,
    LaplaceNoise,
    RatioMatching,
    Weighted,
)
from ncsn.samplers import AnnealedLangevin, Gibbs
from ncsn.score import EDMDenoiser, EnergyScore, tweedie
from ncsn.score.toys import TwoMoons
from ncsn.training.module import ScoreModule
from PIL import Image

from test_cli import REPOSITORY, pixels, refusal, run_train, sample, train_small

CONFIGS = Path(__file__).parent.parent / "configs" / "toy"
SHORT = ["--trainer.max_steps", "3", "--trainer.val_check_interval", "2", "--trainer.accelerator", "cpu"]
SHORT += ["--samples.count", "16"]


def trained(name: str, folder: Path, *options: str) -> Path:
    """A checkpoint of a few steps of configs/toy/NAME.yaml, trained in `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_train("--config", str(CONFIGS / f"{name}.yaml"), *SHORT, *options)
    return folder / "checkpoints" / f"toy_{name}" / "step=3.ckpt"


@pytest.fixture(scope="module")
def moons(tmp_path_factory) -> Path:
    return trained("implicit", tmp_path_factory.mktemp("moons"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    return train_small(tmp_path_factory.mktemp("digits"))


@pytest.mark.parametrize("name", sorted(file.stem for file in CONFIGS.glob("*.yaml")))
def test_every_toy_trains_and_is_drawn(name, tmp_path, monkeypatch, capsys):
    steps = "sampler.sweeps" if name == "ratio_matching" else "sampler.steps"
    checkpoint = trained(name, tmp_path, f"--model.{steps}", "1")
    monkeypatch.chdir(tmp_path)
    sample([str(checkpoint), "--num-samples", "30"])
    assert "Wrote samples.png" in capsys.readouterr().out
    picture = pixels("samples.png")
    assert picture.shape[1] > 350
    assert picture.shape[2] > 1000
    assert picture.float().std() > 20


def test_a_figure_shows_the_data_the_samples_and_both_fields(moons, monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr("ncsn.cli.sample.save_figure", lambda figure, file: figures.append(figure))
    monkeypatch.chdir(tmp_path)
    sample([str(moons), "--num-samples", "50", "--seed", "4"])
    data, samples, *fields = figures[0].axes
    assert torch.tensor(samples.lines[0].get_xydata()).shape == (50, 2)
    drawn = torch.tensor(data.lines[0].get_xydata(), dtype=torch.float32)
    held_out = load_data(moons)
    held_out.setup()
    assert torch.equal(drawn, held_out.splits["val"].values[:50])
    ladder, module = load(moons).schedule.sigmas(), load(moons)
    for ax, sigma in zip(fields, ladder[[20, 39]], strict=True):
        assert f"{sigma:.2g}" in ax.get_title()
        exact, learned = ax.collections
        x = torch.tensor(exact.XY, dtype=torch.float32)
        for quiver, score in ((exact, TwoMoons().score), (learned, module.denoiser.score)):
            arrows = torch.tensor([quiver.U, quiver.V]).T.float()
            truth = score(x, sigma).detach()
            assert (torch.nn.functional.cosine_similarity(arrows, truth) > 0.999).all()


def test_a_checkpoint_says_what_it_was_trained_on(moons, digits, tmp_path):
    data = load_data(moons)
    assert isinstance(data, Points)
    assert isinstance(data.density, TwoMoons)
    assert isinstance(load_data(digits), Digits)
    content = torch.load(moons, weights_only=True)
    assert content["datamodule_hyper_parameters"]["class_path"] == "ncsn.data.Points"
    content["datamodule_hyper_parameters"]["init_args"]["density"] = {"class_path": "subprocess.Popen"}
    write(content, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"data\.density: subprocess\.Popen is not a class of this package"):
        load_data(tmp_path / "evil.ckpt")
    del content["datamodule_hyper_parameters"]
    write(content, tmp_path / "silent.ckpt")
    with pytest.raises(ValueError, match="does not say what it was trained on"):
        load_data(tmp_path / "silent.ckpt")


def test_what_has_no_picture_is_refused(moons, tmp_path, monkeypatch, capsys):
    content = torch.load(moons, weights_only=True)
    content["datamodule_hyper_parameters"] = {"class_path": "ncsn.data.Digits", "init_args": {}}
    write(content, tmp_path / "other.ckpt")
    monkeypatch.chdir(tmp_path)
    status, line = refusal(capsys, lambda: sample(["other.ckpt", "--num-samples", "2"]))
    assert status == 2
    assert "has examples of shape (2,), of which there is no image" in line


def test_a_machine_of_binary_digits_is_made_of_its_parts(tmp_path):
    options = ["--model.objective", "ncsn.objectives.PseudoLikelihood", "--model.sampler.sweeps", "1"]
    module = load(trained("ratio_matching", tmp_path, *options))
    assert isinstance(module.denoiser.energy, RBM)
    assert isinstance(module.schedule, NoNoise)
    *_, x = module.trajectory(module.start(3), sampler=Gibbs(1))
    assert x.shape == (3, 1, 8, 8)
    assert ((x == 0) | (x == 1)).all()


def test_binary_digits_are_the_digits_above_the_middle():
    binary, grey = BinaryDigits(), Digits()
    for data in (binary, grey):
        data.setup()
    for split in ("train", "val"):
        x, of = to_unit(binary.splits[split].values), to_unit(grey.splits[split].values)
        assert torch.equal(x, (of > 0.5).float())


@pytest.mark.parametrize(
    ("objective", "sampler"),
    [(RatioMatching(), Gibbs(1)), (DenoisingScoreMatching(), Gibbs(1)), (RatioMatching(), AnnealedLangevin(1e-3, 1))],
)
def test_what_takes_a_log_probability_needs_an_energy(objective, sampler):
    with pytest.raises(ValueError, match="takes a log-probability, which EDMDenoiser does not give"):
        ScoreModule(EDMDenoiser(MLP(2)), GeometricSchedule(1, 0.1, 3), objective, sampler, (2,))


def test_an_energy_takes_no_label():
    score = EnergyScore(lambda x, sigma: (x**2).sum(1) / 2)
    x = torch.randn(3, 2)
    torch.testing.assert_close(score.score(x, torch.tensor(1.0)), -x)
    torch.testing.assert_close(score.log_prob(x, torch.tensor(1.0)), -(x**2).sum(1) / 2)
    with pytest.raises(ValueError, match="an energy takes no label"):
        score.score(x, torch.tensor(1.0), torch.zeros(3))


LAPLACE = [
    *("--model.objective", "ncsn.objectives.CorruptionScoreMatching"),
    *("--model.objective.corruption", "ncsn.objectives.LaplaceNoise"),
    *("--model.sampler", "AnnealedLangevin", "--model.sampler.denoise", "false"),
    *("--model.sampler.epsilon", "auto", "--model.sampler.steps", "1"),
]


def test_other_noise_than_gaussian_has_no_exact_field(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("ncsn.cli.sample.save_figure", lambda figure, file: figures.append(figure))
    checkpoint = trained("denoising", tmp_path, *LAPLACE)
    monkeypatch.chdir(tmp_path)
    sample([str(checkpoint), "--num-samples", "20"])
    ladder = load(checkpoint).schedule.sigmas()
    for ax, sigma in zip(figures[0].axes[2:], ladder[[20, 39]], strict=True):
        assert ax.get_title() == f"learned score, sigma = {sigma:.2g}"
        assert len(ax.collections) == 1


def test_what_assumes_gaussian_noise_is_refused_to_a_model_of_other_noise(tmp_path, noisy_digits, monkeypatch, capsys):
    checkpoint = str(train_small(tmp_path, *LAPLACE, "--trainer.max_steps", "1", "--samples.count", "0"))
    monkeypatch.chdir(tmp_path)
    image, config = noisy_digits[0], str(tmp_path / "small.yaml")
    features = str(REPOSITORY / "checkpoints/features_digits.safetensors")
    refused = {
        "Tweedie's formula": ["denoise", image, "--model", checkpoint, "--sigma", "0.3"],
        "ncsn restore": ["restore", image, "--blur", "1", "--noise", "0.1", "--model", checkpoint],
        "ncsn interpolate": ["interpolate", *noisy_digits[:2], "--model", checkpoint],
        "Euler()": ["sample", checkpoint, "--sampler", "Euler"],
        "DPMSolver(eta=0.0)": ["evaluate", checkpoint, "--features", features, "--sampler", "DPMSolver"],
        "--to program: the posterior mean": ["export", checkpoint, "--to", "program"],
        "ncsn advise": ["advise", "--config", config, *LAPLACE],
    }
    before = sorted(tmp_path.rglob("*"))
    for name, command in refused.items():
        capsys.readouterr()
        assert refusal(capsys, lambda command=command: main(command)) == (
            2,
            f"error: {name} assumes Gaussian noise, and the model was trained on other noise (model.objective); "
            "sample with AnnealedLangevin and denoise: false",
        )
    assert sorted(tmp_path.rglob("*")) == before
    main(["sample", checkpoint, "--num-samples", "2"])


@pytest.mark.parametrize(
    ("objective", "gaussian"),
    [
        (DenoisingScoreMatching(), True),
        (CorruptionScoreMatching(LaplaceNoise()), False),
        (Weighted(Weighted(CorruptionScoreMatching(LaplaceNoise()))), False),
        (Weighted(ImplicitScoreMatching()), True),
        (EDMScoreMatching(), True),
    ],
)
def test_a_model_says_whether_its_noise_was_gaussian(objective, gaussian):
    module = ScoreModule(EDMDenoiser(MLP(2)), GeometricSchedule(1, 0.1, 3), objective, AnnealedLangevin(1e-3, 1), (2,))
    assert module.model.gaussian_noise is gaussian


def test_a_sampler_of_probabilities_does_not_walk_a_score(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = [str(digits), "--sampler", "ncsn.samplers.Gibbs", "--sampler.sweeps", "1"]
    with pytest.raises(SystemExit, match="2"):
        sample(options)
    out, err = capsys.readouterr()
    assert out == ""  # before anything is said to be drawn
    assert err == (
        "error: Gibbs takes a log-probability, which EDMDenoiser does not give; make the denoiser an EnergyScore\n"
    )
    assert not list(tmp_path.iterdir())


def test_pictures_are_few_and_points_many(moons, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sample([str(digits)])
    assert pixels("samples.png").shape == pixel_grid(torch.zeros(64, 1, 8, 8)).shape


@pytest.fixture
def noisy_digits(tmp_path) -> list[str]:
    """Files of digits with noise of a width of 0.3."""
    data = Digits()
    data.setup()
    clean = to_unit(data.splits["val"].values[:3])
    for i, x in enumerate(clean + 0.3 * torch.randn_like(clean)):
        Image.fromarray((x[0].clamp(0, 1) * 255).round().to(torch.uint8).numpy()).save(tmp_path / f"{i}.png")
    return [f"{i}.png" for i in range(3)]


def test_pictures_are_denoised_by_tweedie_at_the_level_given(digits, noisy_digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["denoise", *noisy_digits, "--model", str(digits), "--sigma", "0.3", "--batch-size", "2"])
    given = to_unit(torch.stack([pixels(file) for file in noisy_digits]))
    with torch.no_grad():
        clean = tweedie(load(digits).denoiser.score, given, torch.tensor(0.3))
    expected = torch.stack([given, clean], dim=1).flatten(0, 1)
    assert torch.equal(pixels("denoised.png"), pixel_grid(expected, columns=2 * math.ceil(math.sqrt(1.5))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["0.png"], "arguments are required: --sigma"),
        (["0.png", "--sigma", "abc"], "--sigma"),
        (["0.png", "--sigma", "9"], "--sigma: expected 0.1 to 2, the model's levels, got 9"),
        (["0.png", "--sigma", "0"], "--sigma: expected .* got 0"),
        (["0.png", "--sigma", "nan"], "--sigma: expected .* got nan"),
        (["no.png", "--sigma", "0.2"], "cannot read no.png as an image"),
        (["a.txt", "--sigma", "0.2"], "cannot read a.txt as an image"),
        (["0.png", "--sigma", "0.2", "--sampler.steps", "3"], "unrecognized arguments: --sampler.steps"),
        (["0.png", "--sigma", "0.2", "--out", "a.gif"], "--out: expected a .png file, got a.gif"),
        (["--sigma", "0.2"], "IMAGE"),
    ],
)
def test_a_wrong_wish_to_denoise_is_answered_in_one_line(
    digits, noisy_digits, tmp_path, monkeypatch, capsys, options, message
):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("not a picture")
    status, line = refusal(capsys, lambda: main(["denoise", "--model", str(digits), *options]))
    assert status == 2
    assert re.search(message, line), line
    assert not Path("denoised.png").exists()


def test_points_are_not_denoised_as_pictures(moons, noisy_digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, line = refusal(capsys, lambda: main(["denoise", "0.png", "--model", str(moons), "--sigma", "1"]))
    assert (status, "expected a model of images" in line) == (2, True)


def test_a_grid_has_the_columns_asked_for(tmp_path):
    save_grid(torch.zeros(6, 1, 32, 32), tmp_path / "grid.png", columns=6)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (6 * 34 + 2, 36)
