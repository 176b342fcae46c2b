"""What does not fit together is refused before a run leaves anything behind."""

import re
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from ncsn.data import Digits
from ncsn.training.checks import check_loss
from ncsn.training.run import explained, report, show_logs

from test_cli import refusal, run_train
from test_module import small_module
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
            "ratio_matching",
            ["--model.objective", "Weighted", "--model.objective.objective", "RatioMatching"],
            r"error: model.objective: Weighted by a power of the noise level, which is 0 \(model.schedule\), learns "
            "nothing; take its objective alone",
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


def test_a_trial_of_the_loss_leaves_the_dropout_of_training_on():
    module, data = small_module(), Digits(batch_size=64)
    data.setup()
    check_loss(module, data)
    assert all(part.training for part in module.modules())


def test_a_loss_without_noise_is_found_where_there_is_one(tmp_path, monkeypatch, capsys):
    # What is refused above is what has no loss, not a level of 0 as such.
    monkeypatch.chdir(tmp_path)
    run_train("--config", str(CONFIGS / "ratio_matching.yaml"), *SHORT, "--samples.count", "0")
    assert "Trained 3 steps." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("folder", "began", "kind", "message"),
    [
        (Path(lightning.__file__).parent, False, ValueError, "trainer: wrong"),
        (Path(lightning.__file__).parent, True, ValueError, "trainer: wrong"),
        (Path(torch.__file__).parent, False, ValueError, "trainer: wrong"),
        (Path(torch.__file__).parent, True, RuntimeError, "training failed"),
        (Path("/home/me/lightning"), False, RuntimeError, "training failed"),
        (Path("/home/me/lightning/torch"), True, RuntimeError, "training failed"),
    ],
)
def test_an_error_of_ones_own_code_is_not_blamed_on_the_trainer(folder, began, kind, message):
    """Also of code in a folder named as the library: a wrong setting is told in one line, without the traceback."""
    run = SimpleNamespace(stop=SimpleNamespace(began=began), resumed_from=None)
    with pytest.raises(ValueError, match="wrong") as raised:
        exec(compile("raise ValueError('wrong')", folder / "mine.py", "exec"))
    found = explained(run, raised.value)
    assert (type(found), str(found)) == (kind, message)


def test_only_logs_of_tensorboard_are_opened_by_it(capsys):
    show_logs(SimpleNamespace(loggers=[TensorBoardLogger("logs", "a", version=0), CSVLogger("logs", "b", version=1)]))
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["Logs:        logs/a/version_0  (tensorboard --logdir logs/a)", "Logs:        logs/b/version_1"]


@pytest.mark.parametrize(("signal", "last"), [(None, "Sample: .* ncsn sample "), (15, "Resume: .* --ckpt_path last$")])
def test_a_run_ends_with_how_to_sample_or_after_a_signal_how_to_resume(tmp_path, capsys, signal, last):
    (tmp_path / "step=3.ckpt").touch()
    trainer = SimpleNamespace(global_step=3, loggers=[])
    report(SimpleNamespace(trainer=trainer, folder=tmp_path, stop=SimpleNamespace(signal=signal)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == ["Trained 3 steps.", f"Checkpoint:  {tmp_path / 'step=3.ckpt'}"]
    assert re.match(last, lines[-1]), lines
