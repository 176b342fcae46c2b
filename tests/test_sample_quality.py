"""The score of a run's samples is that of its averaged weights, keeps the best of them, and changes nothing else."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from ncsn.data import Digits
from ncsn.evaluation.classifier import load_classifier
from ncsn.evaluation.extractors import extract_all, real_images
from ncsn.model.load import load, newest_checkpoint
from ncsn.noise import KarrasSchedule
from ncsn.noise.streams import Streams
from ncsn.samplers import DPMSolver, EulerMaruyama
from ncsn.training.callbacks import EMA, BestCheckpoint, SampleGrid, SampleQuality

from test_callbacks import Copies, averaged, events
from test_cli import REPOSITORY, SMALL, refusal, run_train, train_small
from test_metrics import by_square_root
from test_module import small_module, small_trainer
from test_sampling import CONFIGS, SHORT

FEATURES = "checkpoints/features_digits.safetensors"
SCORED = ["--quality.features", FEATURES, "--quality.count", "70", "--quality.levels", "4", "--samples.count", "0"]
FIGURE = "val/frechet_distance"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """One for all tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def curve(folder) -> dict[int, float]:
    """What was logged of the score after how many steps; Lightning counts them from 0."""
    return {point.step + 1: point.value for point in events(folder).Scalars(FIGURE)}


def by_hand(module, count, levels, sampler) -> float:
    """The distance of the first samples of seed 0 to the training images."""
    sigmas = module.schedule.sigmas()
    ladder = KarrasSchedule(sigmas.max().item(), sigmas.min().item(), levels).sigmas()
    data, extractor = Digits(), load_classifier(FEATURES)
    data.setup()
    model = getattr(module.eval(), "model", module)
    drawn = extract_all(extractor, model.sample(count, sampler=sampler, sigmas=ladder).split(50))
    return by_square_root(drawn.features, extract_all(extractor, real_images(data)).features)


def test_the_averaged_weights_are_scored_in_batches_of_any_size(tmp_path):
    found = []
    for size in (30, 250):
        logger = TensorBoardLogger(tmp_path, name=f"run{size}", default_hp_metric=False)
        validation = {"check_val_every_n_epoch": None, "val_check_interval": 3, "limit_val_batches": 1}
        torch.manual_seed(0)
        copies, module = Copies(), small_module(optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.02))
        score = SampleQuality(FEATURES, count=70, sampler=EulerMaruyama(), levels=5, batch_size=size)
        callbacks = [copies, score, EMA(0.5)]
        small_trainer(tmp_path, max_steps=6, callbacks=callbacks, logger=logger, **validation).fit(
            module, Digits(batch_size=64)
        )
        found.append(curve(logger.log_dir))
    assert list(found[0]) == [3, 6]
    trained = small_module()
    torch.nn.utils.vector_to_parameters(averaged(copies.weights, 0.5), trained.parameters())
    expected = by_hand(trained, 70, 5, EulerMaruyama())
    assert found[1][6] == pytest.approx(expected, rel=1e-3)
    raw = small_module()
    torch.nn.utils.vector_to_parameters(copies.weights[-1], raw.parameters())
    assert by_hand(raw, 70, 5, EulerMaruyama()) != pytest.approx(expected, rel=5e-3)  # five times as far as that
    assert found[0] == pytest.approx(found[1], rel=1e-2)


def test_a_run_is_the_same_to_the_bit_with_and_without_it(tmp_path):
    ends, losses = [], []
    for name, options in (("with", SCORED), ("without", ["--samples.count", "0"])):
        folder = tmp_path / name
        folder.mkdir()
        train_small(folder, *options, "--trainer.max_steps", "9", "--trainer.log_every_n_steps", "1")
        ends.append(torch.load(folder / "checkpoints/small/step=9.ckpt", weights_only=True))
        logged = events(folder / "logs/small/version_0")
        losses.append([(p.step, p.value) for tag in ("train/loss", "val/loss") for p in logged.Scalars(tag)])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 9 + 2
    for weights in ("state_dict", "current_model_state"):
        assert ends[0][weights].keys() == ends[1][weights].keys()  # nothing of the extractor is in it
        assert all(torch.equal(value, ends[1][weights][name]) for name, value in ends[0][weights].items())


def test_the_best_is_kept_and_the_run_goes_on_from_the_newest(tmp_path, monkeypatch, capsys):
    values = iter([5.0, 3.0, 4.0, 2.0])
    monkeypatch.setattr("ncsn.training.callbacks.quality.frechet", lambda features, reference: next(values))
    train_small(tmp_path, *SCORED, "--trainer.max_steps", "12")
    monkeypatch.chdir(tmp_path)
    folder = Path("checkpoints/small")
    assert {file.name for file in folder.iterdir()} == {"best.ckpt", "step=10.ckpt", "step=12.ckpt"}
    best = torch.load(folder / "best.ckpt", weights_only=True)
    assert best["global_step"] == 8
    assert curve("logs/small/version_0") == {4: 5, 8: 3, 12: 4}
    later = (folder / "step=12.ckpt").stat().st_mtime + 100
    os.utime(folder / "best.ckpt", (later, later))
    assert newest_checkpoint("checkpoints") == folder / "step=12.ckpt"
    run_train("--config", "small.yaml", "--ckpt_path", "last", *SCORED, "--trainer.max_steps", "16")
    assert "Resuming from checkpoints/small/step=12.ckpt" in capsys.readouterr().out
    assert torch.load(folder / "best.ckpt", weights_only=True)["global_step"] == 16
    assert not list(folder.glob(".*"))  # written as durably as the others
    load(folder / "best.ckpt")


def test_the_best_has_the_averaged_weights_that_were_scored(tmp_path):
    train_small(tmp_path, *SCORED, "--trainer.max_steps", "4")
    one, best = (load(tmp_path / f"checkpoints/small/{name}.ckpt") for name in ("step=4", "best"))
    assert all(torch.equal(value, best.state_dict()[name]) for name, value in one.state_dict().items())
    value = curve(tmp_path / "logs/small/version_0")[4]
    assert value == pytest.approx(by_hand(best, 70, 4, DPMSolver(eta=1.0)), rel=1e-3)


def test_a_model_with_labels_is_scored_and_shown_in_every_class_in_turn():
    model, quality = small_module(classes=10).model, SampleQuality(FEATURES, count=70, levels=4, batch_size=25)
    for weight in model.parameters():  # the last layer begins as zero
        torch.nn.init.normal_(weight, std=0.1)
    seen, turn = quality.seen(model, range(3, 70, 2)), torch.arange(70) % 10
    sigmas = KarrasSchedule(2.0, 0.05, 4).sigmas()
    x = model.sample(70, label=turn, sampler=DPMSolver(eta=1.0), sigmas=sigmas)[3::2]
    torch.testing.assert_close(seen, extract_all(load_classifier(FEATURES), [x]).features, rtol=1e-3, atol=1e-3)
    grid = SampleGrid(count=12)
    shown, _ = grid.sampled(model, [10])
    with Streams(grid.seed, range(12)):
        *_, x = model.trajectory(model.start(12), turn[:12])
    assert torch.equal(shown, x)


def test_without_features_it_is_off(tmp_path):
    train_small(tmp_path, "--samples.count", "0", "--trainer.max_steps", "4")
    assert {file.name for file in (tmp_path / "checkpoints/small").iterdir()} == {"step=4.ckpt"}
    assert FIGURE not in events(tmp_path / "logs/small/version_0").Tags()["scalars"]


def test_samples_that_diverge_have_no_score_and_do_not_end_the_run(tmp_path):
    options = ["--quality.sampler", "test_drawing.Fading", "--quality.sampler.until", "2"]
    with pytest.warns(UserWarning, match="samples at step 4 diverged, and have no score"):
        train_small(tmp_path, *SCORED, *options)
    assert curve(tmp_path / "logs/small/version_0") == {4: math.inf}


@pytest.mark.parametrize(
    ("key", "state"),
    [("BestCheckpoint", {"lowest": 2.0}), ("BestCheckpoint{'mode': 'min'}", {"best_model_score": torch.tensor(2.0)})],
    ids=["of today", "of an earlier version"],
)
def test_the_lowest_distance_is_known_again_if_the_best_checkpoint_is_there(tmp_path, key, state):
    best = BestCheckpoint(tmp_path)
    best.on_load_checkpoint(None, None, {"callbacks": {key: state}})
    assert best.lowest == math.inf  # the best is gone: the next one is the best
    (tmp_path / "best.ckpt").touch()
    best.on_load_checkpoint(None, None, {"callbacks": {"EMA": {}, key: state}})
    assert best.lowest == 2


def test_points_have_no_features(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--config", str(CONFIGS / "denoising.yaml"), *SHORT, "--quality.features", FEATURES]
    assert refusal(capsys, lambda: run_train(*options)) == (2, "error: quality.features: Points has no images")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_it_is_on_in_the_recipes_by_the_shipped_features(name):
    text = (REPOSITORY / "configs" / f"{name}.yaml").read_text()
    assert f"quality:\n  features: checkpoints/features_{name}.safetensors\n" in text
    assert (REPOSITORY / "checkpoints" / f"features_{name}.safetensors").is_file()


@pytest.mark.slow
def test_two_processes_log_the_score_of_one(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    command = [sys.executable, str(REPOSITORY / "train.py"), "--config", "small.yaml", *SCORED]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_steps", "8"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    logged = curve(tmp_path / "logs/small/version_0")
    assert list(logged) == [4, 8]
    module = load(tmp_path / "checkpoints/small/step=8.ckpt")
    assert logged[8] == pytest.approx(by_hand(module, 70, 4, DPMSolver(eta=1.0)), rel=1e-3)
    best = torch.load(tmp_path / "checkpoints/small/best.ckpt", weights_only=True)
    assert best["global_step"] == min(logged, key=logged.get)
