"""What does not fit together is refused before a run leaves anything behind."""

import re

import pytest

from test_cli import refusal, run_train
from test_sampling import CONFIGS, SHORT

NO_NOISE = ["--model.schedule", "ncsn.noise.NoNoise"]
LANGEVIN = [
    "--model.sampler",
    "ncsn.samplers.Langevin",
    "--model.sampler.epsilon",
    "1e-3",
    "--model.sampler.steps",
    "1",
]
PLAIN = ["--model.objective", "ncsn.objectives.ImplicitScoreMatching"]
NO_LOSS = r"error: model: its loss on the data is \[nan, nan\]; is a noise level 0 \(model.schedule\)\?"
OF_DIGITS = r"error: model: it has no loss on this data, examples of shape \(1, 8, 8\): "


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "ratio_matching",
            ["--data", "ncsn.data.Digits"],
            r"error: model.objective: RatioMatching expects data of zeros and ones \(data\)",
        ),
        (
            "denoising",
            ["--data", "ncsn.data.Digits"],
            OF_DIGITS + r"expected x of shape \(B, 64\), got shape=\(16, 1, 8, 8\) .MLP.",
        ),
        (
            "denoising",
            [*NO_NOISE, *LANGEVIN],
            NO_LOSS,
        ),
        (
            "implicit",
            [*NO_NOISE, *LANGEVIN],
            NO_LOSS,
        ),
        (
            "implicit",
            [*NO_NOISE, *LANGEVIN, *PLAIN],
            NO_LOSS,
        ),
        (
            "implicit",
            NO_NOISE,
            r"error: expected a lowest noise level above 0 \(Langevin works at 0\), got sigma=0\.0 .AnnealedLangevin.",
        ),
        (
            "denoising",
            ["--model.objective", "ncsn.objectives.RatioMatching"],
            "error: RatioMatching takes a log-probability, which EDMDenoiser does not give; make the "
            "denoiser an EnergyScore",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_one_line(tmp_path, monkeypatch, capsys, name, options, message):
    monkeypatch.chdir(tmp_path)
    status, line = refusal(capsys, lambda: run_train("--config", str(CONFIGS / f"{name}.yaml"), *SHORT, *options))
    assert status == 2
    assert re.fullmatch(message, line), line
    assert not list(tmp_path.iterdir())


def test_a_loss_without_noise_is_found_where_there_is_one(tmp_path, monkeypatch, capsys):
    # What is refused above is what has no loss, not a level of 0 as such.
    monkeypatch.chdir(tmp_path)
    run_train("--config", str(CONFIGS / "ratio_matching.yaml"), *SHORT, "--samples.count", "0")
    assert "Trained 3 steps." in capsys.readouterr().out
