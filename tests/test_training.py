"""What does not fit together is refused before a run leaves anything behind."""

import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from ncsn.cli.train import settings
from ncsn.data import Digits
from ncsn.noise import GeometricSchedule
from ncsn.objectives import EDMScoreMatching, Objective
from ncsn.samplers import Heun
from ncsn.score import EDMDenoiser
from ncsn.training.checks import check_loss
from ncsn.training.failures import explained
from ncsn.training.module import ScoreModule
from ncsn.training.run import build, report, show_logs
from torch import nn

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


class Embedded(nn.Module):
    """A network that takes labels from 0 alone, and gives one channel for each class."""

    def __init__(self, rows: int, channels: int = 1) -> None:
        super().__init__()
        self.embedding, self.channels = nn.Embedding(rows, 1), channels

    def forward(self, x, c_noise, label):
        return (x + self.embedding(label).view(-1, 1, 1, 1)).expand(-1, self.channels, -1, -1)


@dataclass(frozen=True)
class Whole(Objective):
    """One loss for all examples."""

    def __call__(self, score, x, sigma):
        return score(x, sigma).square().mean()


def refused(network: nn.Module, objective: Objective, dropout: float = 0.1) -> str:
    """The reason for which the loss of a model of the digits is refused, or nothing."""
    schedule, names = GeometricSchedule(2.0, 0.05, 10), [str(digit) for digit in range(10)]
    parts = EDMDenoiser(network), schedule, objective, Heun()
    module = ScoreModule(*parts, shape=(1, 8, 8), class_names=names, label_dropout=dropout)
    data = Digits(batch_size=64, labels=True)
    data.setup()
    try:
        check_loss(module, data)
    except ValueError as error:
        return str(error)
    return ""


def test_a_trial_of_the_loss_finds_what_training_would():
    """Catches labels of no class, losses that are not one for each example, and outputs that would broadcast."""
    takes_all = r"model.denoiser.network: it does not take every label up to 9, and -1 for no class \(unless "
    assert re.match(takes_all, refused(Embedded(10), EDMScoreMatching()))
    assert refused(Embedded(10), EDMScoreMatching(), dropout=0.0) == ""
    assert re.match(takes_all, refused(Embedded(9), EDMScoreMatching(), dropout=0.0))
    one = "model.objective: expected a loss for each of 16 examples, got the shape ()"
    assert refused(Embedded(10), Whole(), dropout=0.0) == one
    keeps = r".*expected a network that keeps the shape \(16, 1, 8, 8\), got \(16, 3, 8, 8\) .Embedded."
    assert re.match(keeps, refused(Embedded(10, 3), EDMScoreMatching(), dropout=0.0))


def test_a_loss_without_noise_is_found_where_there_is_one(tmp_path, monkeypatch, capsys):
    # What is refused above is what has no loss, not a level of 0 as such.
    monkeypatch.chdir(tmp_path)
    run_train("--config", str(CONFIGS / "ratio_matching.yaml"), *SHORT, "--samples.count", "0")
    assert "Trained 3 steps." in capsys.readouterr().out


def test_a_logger_has_the_name_of_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--name", "mine", "--trainer.accelerator", "cpu", "--trainer.logger", "CSVLogger"]
    for more, folder in (([], "logs/mine"), (["--trainer.logger.name", "other"], "logs/other")):
        (logger,) = build(settings([*options, *more])).trainer.loggers
        assert logger.root_dir == folder


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
    run = SimpleNamespace(stop=SimpleNamespace(began=began), resumed_from=None, trainer=SimpleNamespace(world_size=1))
    with pytest.raises(ValueError, match="wrong") as raised:
        exec(compile("raise ValueError('wrong')", folder / "mine.py", "exec"))
    found = explained(run, raised.value)
    assert (type(found), str(found)) == (kind, message)


@pytest.mark.parametrize(
    "error",
    [
        torch.distributed.DistNetworkError("The client socket has failed to connect"),
        RuntimeError("[pair.cc:545] Read error [127.0.0.1]:9: Connection reset by peer"),
    ],
)
def test_a_process_that_is_lost_is_no_setting_and_no_bug(error):
    run = SimpleNamespace(stop=SimpleNamespace(began=True), resumed_from="a", trainer=SimpleNamespace(world_size=2))
    with pytest.raises(RuntimeError) as raised:
        raise error
    found = explained(run, raised.value)
    assert type(found) is OSError
    assert str(found).startswith("another process of the run has ended; go on with --ckpt_path last (")


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
