import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from io import BytesIO
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from ncsn.cli.errors import exit_on_signals
from ncsn.data import BinaryDigits, Digits, pixel_grid
from ncsn.networks import RBM, AutoencoderEnergy
from ncsn.noise import GeometricSchedule, NoNoise
from ncsn.objectives import DenoisingScoreMatching, RatioMatching
from ncsn.samplers import AnnealedLangevin, Gibbs
from ncsn.score import EnergyScore, NCSNDenoiser
from ncsn.training.callbacks import (
    EMA,
    Checkpoint,
    DenoisingStrips,
    GracefulStop,
    LossPerLevel,
    RunProgress,
    RunStopped,
    SampleGrid,
    Throughput,
)
from ncsn.training.module import ScoreModule
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torchvision.transforms.functional import pil_to_tensor

from test_module import small_module, small_trainer


class Copies(Callback):
    """Keeps the weights after each step."""

    def on_train_start(self, trainer, pl_module):
        self.weights = [weights(pl_module)]

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights.append(weights(pl_module))


def weights(module):
    return torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])


def saved(path, key):
    checkpoint = torch.load(path, weights_only=True)
    return torch.cat([checkpoint[key][name].flatten() for name, _ in small_module().named_parameters()])


def fit(folder, *callbacks, steps=5, **settings):
    module = small_module()
    trainer = small_trainer(folder, max_steps=steps, callbacks=list(callbacks), enable_checkpointing=True, **settings)
    trainer.fit(module, Digits(batch_size=64))
    return trainer, module


def averaged(copies, decay):
    average = copies[1]
    for step, current in enumerate(copies[2:], start=1):
        d = min(decay, (1 + step) / (10 + step))
        average = d * average + (1 - d) * current
    return average


class Shared(nn.Module):
    """A network with a layer that it has twice."""

    def __init__(self):
        super().__init__()
        layer = nn.Conv2d(1, 1, 3, padding=1)
        self.layers = nn.ModuleList([layer, layer])

    def forward(self, x, c_noise, label=None):
        return self.layers[1](self.layers[0](x))


def test_a_shared_weight_is_averaged_and_saved_under_each_of_its_names(tmp_path):
    def shared(steps, **settings):
        torch.manual_seed(0)
        module, ema = small_module(), EMA(0.9)
        module.denoiser = NCSNDenoiser(Shared())
        module.optimizer = partial(torch.optim.Adam, lr=0.1)
        callbacks = [ema, Checkpoint(tmp_path, every=5)]
        trainer = small_trainer(tmp_path, max_steps=steps, callbacks=callbacks, enable_checkpointing=True)
        trainer.fit(module, Digits(batch_size=64), **settings)
        return torch.load(tmp_path / f"step={steps}.ckpt", weights_only=True)

    whole = shared(10)
    for checkpoint in (whole, torch.load(tmp_path / "step=5.ckpt", weights_only=True)):
        for weights in (checkpoint["state_dict"], checkpoint["current_model_state"]):
            first, second = (weights[f"denoiser.network.layers.{i}.weight"] for i in range(2))
            assert torch.equal(first, second)
        assert not torch.equal(first, checkpoint["state_dict"]["denoiser.network.layers.0.weight"])
    resumed = shared(10, ckpt_path=tmp_path / "step=5.ckpt", weights_only=True)
    for name, weight in whole["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][name], weight)


def test_a_file_is_validated_with_its_average_which_the_next_file_holds(tmp_path):
    trainer, module = fit(tmp_path, EMA(0.9), Checkpoint(tmp_path, every=5), steps=5)
    average = saved(tmp_path / "step=5.ckpt", "state_dict")
    trainer.validate(module, Digits(), ckpt_path=tmp_path / "step=5.ckpt", weights_only=True, verbose=False)
    assert torch.equal(weights(module), average)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    assert torch.equal(saved(tmp_path / "after.ckpt", "state_dict"), average)


@pytest.mark.parametrize(("decay", "steps"), [(0.2, 7), (0.999, 7), (0.99, 55)])
def test_ema_is_the_moving_average_and_is_what_a_checkpoint_holds(tmp_path, decay, steps):
    copies = Copies()
    _, module = fit(tmp_path, copies, EMA(decay), Checkpoint(tmp_path, every=steps), steps=steps)
    expected = averaged(copies.weights, decay)
    torch.testing.assert_close(weights(module), expected, rtol=1e-5, atol=1e-6)
    path = tmp_path / f"step={steps}.ckpt"
    torch.testing.assert_close(saved(path, "state_dict"), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(saved(path, "current_model_state"), copies.weights[-1])
    assert (expected - copies.weights[-1]).abs().max() > 1e-5


def test_the_average_is_in_the_layout_of_the_weights_for_which_torch_has_one_kernel():
    ema, module = EMA(), small_module()
    ema.setup(None, module, "fit")
    module.to(memory_format=torch.channels_last)
    assert any(not weight.is_contiguous() for weight in module.parameters())
    before = weights(module)
    ema.on_fit_start(None, module)
    assert [a.stride() for a in ema.average] == [w.stride() for w in module.parameters()]
    assert not any(a.requires_grad for a in ema.average)
    assert torch.equal(torch.cat([a.flatten() for a in ema.average]), before)


@pytest.mark.parametrize("batch", [lambda x, _: x, lambda x, _: (x,), lambda x, label: (x, label)])
def test_batches_may_be_images_alone_for_every_callback(batch, tmp_path):
    class Plain(Digits):
        def on_after_batch_transfer(self, *given):
            return batch(*super().on_after_batch_transfer(*given))

    strips, speed, folder = DenoisingStrips(3), Throughput(), tmp_path / "logs"
    settings = {"logger": TensorBoardLogger(folder), "log_every_n_steps": 2, "callbacks": [strips, speed]}
    settings |= {"check_val_every_n_epoch": None, "val_check_interval": 4, "max_steps": 4}
    small_trainer(tmp_path, **settings).fit(small_module(), Plain(batch_size=64, labels=True))
    events = EventAccumulator(str(next(folder.glob("*/*")))).Reload()
    assert len(events.Images("denoising")) == 1
    assert len(events.Scalars("images/s")) == 2


def test_a_checkpoint_saved_after_the_end_has_both_sets_of_weights(tmp_path):
    copies = Copies()
    trainer, _ = fit(tmp_path, copies, EMA(0.5), Checkpoint(tmp_path))
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    for key in ("state_dict", "current_model_state"):
        torch.testing.assert_close(saved(tmp_path / "after.ckpt", key), saved(tmp_path / "step=5.ckpt", key))


class FailsInValidation(Callback):
    def on_validation_batch_end(self, trainer, *_):
        if trainer.global_step == 4:
            raise RuntimeError("on purpose")


class SavesOnException(Callback):
    def __init__(self, path):
        self.path = path

    def on_exception(self, trainer, *_):
        trainer.save_checkpoint(self.path)


def test_weights_are_in_their_places_after_a_validation_that_failed(tmp_path):
    copies, path = Copies(), tmp_path / "failed.ckpt"
    validation = {"check_val_every_n_epoch": None, "val_check_interval": 4}
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(tmp_path, copies, FailsInValidation(), EMA(0.5), SavesOnException(path), **validation)
    torch.testing.assert_close(saved(path, "state_dict"), averaged(copies.weights, 0.5))
    torch.testing.assert_close(saved(path, "current_model_state"), copies.weights[-1])


@pytest.mark.parametrize(("decay", "steps"), [(0.5, 25), (0.999, 50)])  # at the end of an epoch
def test_resuming_goes_on_with_both_sets_of_weights(tmp_path, decay, steps):
    before, after, module = Copies(), Copies(), small_module()
    fit(tmp_path / "a", before, EMA(decay), Checkpoint(tmp_path / "a", every=steps), steps=steps)
    callbacks = [after, EMA(decay), Checkpoint(tmp_path / "b")]
    trainer = small_trainer(tmp_path, max_steps=steps + 3, callbacks=callbacks, enable_checkpointing=True)
    path = tmp_path / "a" / f"step={steps}.ckpt"
    trainer.fit(module, Digits(batch_size=64), ckpt_path=path, weights_only=True)
    torch.testing.assert_close(after.weights[0], saved(path, "current_model_state"))
    expected = averaged(before.weights + after.weights[1:], decay)
    found = saved(tmp_path / "b" / f"step={steps + 3}.ckpt", "state_dict")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (found - saved(path, "state_dict")).abs().max() > 1e-5


STUCK = """
import os, sys, time
from contextlib import suppress
from pathlib import Path
from ncsn.training.callbacks import Checkpoint, GracefulStop, RunStopped
from test_callbacks import StopsAt, fit

class Stuck(StopsAt):
    def on_train_batch_end(self, trainer, *rest):
        super().on_train_batch_end(trainer, *rest)
        if trainer.global_step == self.step:
            for _ in range(int(sys.argv[3])):
                os.kill(os.getpid(), int(sys.argv[2]))
            time.sleep(int(sys.argv[4]))

checkpoint = Checkpoint(Path(sys.argv[1]), every=100)
with suppress(RunStopped):
    fit(Path(sys.argv[1]), Stuck(2), GracefulStop(checkpoint), checkpoint, steps=50)
"""


def stuck(folder, number, more, seconds):
    """Exit status of a run that is sent 1 + more signals in its second step, which then takes so many seconds."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", STUCK, *map(str, (folder, int(number), more, seconds))]
    return subprocess.run(command, env=environment, capture_output=True).returncode


@pytest.mark.parametrize(
    "number", [signal.SIGINT, *(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGTERM, signal.SIGHUP))]
)
def test_a_third_signal_ends_the_run_at_once(tmp_path, number):
    began = time.monotonic()
    assert stuck(tmp_path, number, 2, 60) == 128 + number
    assert time.monotonic() - began < 55
    assert not list(tmp_path.glob("*.ckpt"))


def test_a_command_and_a_run_that_nohup_started_go_on_after_sighup(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with exit_on_signals():
            checkpoint = Checkpoint(tmp_path)
            fit(tmp_path, StopsAt(2, signal.SIGHUP), GracefulStop(checkpoint), checkpoint, steps=4)
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert [file.name for file in tmp_path.glob("*.ckpt")] == ["step=4.ckpt"]


@pytest.mark.slow
def test_a_second_signal_waits_until_the_step_is_saved(tmp_path):
    assert stuck(tmp_path, signal.SIGTERM, 1, 2) == 0  # the training command exits with 143
    assert torch.load(tmp_path / "step=2.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.parametrize("steps", [7, 6, 25, 31])
def test_the_newest_checkpoints_are_kept_and_one_of_the_exact_end(tmp_path, steps):
    fit(tmp_path, EMA(), Checkpoint(tmp_path, every=3, keep=2), steps=steps)
    before = (steps - 1) // 3 * 3
    assert {file.name for file in tmp_path.glob("*.ckpt")} == {f"step={before}.ckpt", f"step={steps}.ckpt"}
    assert torch.load(tmp_path / f"step={steps}.ckpt", weights_only=True)["global_step"] == steps


class StopsAt(Callback):
    def __init__(self, step, number=signal.SIGINT):
        self.step, self.number = step, number

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


def test_a_signal_ends_the_run_at_a_step_with_a_checkpoint_of_it(tmp_path):
    before, checkpoint = signal.getsignal(signal.SIGINT), Checkpoint(tmp_path, every=100)
    stop = GracefulStop(checkpoint)
    with pytest.raises(RunStopped):
        fit(tmp_path, StopsAt(4), stop, EMA(), checkpoint, steps=50)
    assert (checkpoint.saved, stop.signal) == (4, signal.SIGINT)
    assert [file.name for file in tmp_path.glob("*.ckpt")] == ["step=4.ckpt"]
    assert signal.getsignal(signal.SIGINT) is before


def events(folder):
    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()


def grid_of(module, weights_):
    """The grid of a module with the given weights."""
    torch.nn.utils.vector_to_parameters(weights_, module.parameters())
    return pixel_grid(module.eval().model.sample(4, seed=0))


def test_grids_are_drawn_with_the_averaged_weights_to_tensorboard_and_to_disk(tmp_path, monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)  # of another test, whose order of the data it is
    logger = TensorBoardLogger(tmp_path, name="run", default_hp_metric=False)
    validation = {"check_val_every_n_epoch": None, "val_check_interval": 3, "limit_val_batches": 1, "logger": logger}
    copies, rate = Copies(), 0.02
    torch.manual_seed(0)
    module = small_module(optimizer=lambda parameters: torch.optim.Adam(parameters, lr=rate))
    callbacks = [copies, SampleGrid(4), EMA(0.9)]
    small_trainer(tmp_path, max_steps=9, callbacks=callbacks, **validation).fit(module, Digits(batch_size=64))
    grids = events(logger.log_dir).Images("samples")
    assert [grid.step for grid in grids] == [3, 6, 9]
    drawn = pil_to_tensor(Image.open(tmp_path / "run" / "version_0" / "samples" / "step=0000009.png"))
    assert torch.equal(pil_to_tensor(Image.open(BytesIO(grids[-1].encoded_image_string))), drawn)
    right, wrong = (grid_of(small_module(), w).int() for w in (averaged(copies.weights, 0.9), copies.weights[-1]))
    assert (drawn - right).abs().max() <= 1
    assert (drawn - wrong).abs().max() > 20


class Spoilt(Callback):
    """Makes the gradient of one step NaN."""

    def __init__(self, step):
        self.step = step

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == self.step:
            next(pl_module.parameters()).grad.fill_(torch.nan)


def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing(tmp_path):
    copies = Copies()
    _, module = fit(tmp_path, copies, Spoilt(2), EMA(0.5), Checkpoint(tmp_path), steps=5)
    assert torch.equal(copies.weights[2], copies.weights[3])
    assert not torch.equal(copies.weights[3], copies.weights[4])
    assert module.skipped_steps == 1
    assert weights(module).isfinite().all()


class LossOf(ScoreModule):
    """Its loss is not finite at some steps, though its gradient is."""

    bad: tuple[int, ...] = ()

    def losses(self, x, sigma, label=None):
        losses = super().losses(x, sigma, label)
        return (
            losses + torch.inf
            if self.trainer.training and self.trainer.fit_loop.total_batch_idx in self.bad
            else losses
        )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_with_a_loss_that_is_not_finite_changes_nothing(tmp_path, accumulate):
    module, copies = small_module(kind=LossOf), Copies()
    module.bad = (2 * accumulate,)
    trainer = small_trainer(tmp_path, max_steps=5, callbacks=[copies], accumulate_grad_batches=accumulate)
    trainer.fit(module, Digits(batch_size=64))
    states = [copies.weights[0], *copies.weights[accumulate::accumulate]]
    assert [torch.equal(one, other) for one, other in pairwise(states)] == [False, False, True, False, False]
    assert (module.skipped_steps, module.skipped_in_a_row) == (1, 0)


def test_twenty_bad_steps_in_a_row_end_the_run_with_its_good_weights_kept(tmp_path):
    module = small_module(kind=LossOf)
    module.bad = (*range(3, 10), *range(11, 40))
    callbacks = [EMA(), Checkpoint(tmp_path, every=2)]
    settings = {"callbacks": callbacks, "enable_checkpointing": True, "log_every_n_steps": 4}
    trainer = small_trainer(tmp_path, max_steps=99, **settings)
    # Steps 12 to 40 are bad, and the run looks at every fourth.
    with pytest.raises(FloatingPointError, match=r"not finite in 21 steps in a row, up to step 32: lower model"):
        trainer.fit(module, Digits(batch_size=64))
    assert module.skipped_steps == 28
    content = torch.load(tmp_path / "step=30.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in content["state_dict"].values())
    assert content["skipped_steps"] == [26, 19]


def test_samples_that_diverged_are_not_shown_as_black(tmp_path):
    class Diverges(SampleGrid):
        def on_validation_epoch_end(self, trainer, pl_module):
            next(pl_module.parameters()).data.fill_(torch.nan)
            super().on_validation_epoch_end(trainer, pl_module)

    logger = TensorBoardLogger(tmp_path, name="run", default_hp_metric=False)
    validation = {"check_val_every_n_epoch": None, "val_check_interval": 3, "limit_val_batches": 1, "logger": logger}
    with pytest.warns(UserWarning, match="samples at step 3 diverged"):
        fit(tmp_path, Diverges(4), EMA(0.5), steps=3, **validation)
    assert not list(tmp_path.rglob("*.png"))


def test_the_averaged_weights_are_validated_during_a_run_and_after_it(tmp_path):
    class Seen(Callback):
        def __init__(self):
            self.weights = []

        def on_validation_batch_end(self, trainer, pl_module, *_):
            self.weights.append(weights(pl_module))

    copies, seen = Copies(), Seen()
    validation = {"check_val_every_n_epoch": None, "val_check_interval": 5, "limit_val_batches": 1}
    trainer, module = fit(tmp_path, copies, seen, EMA(0.5), Checkpoint(tmp_path), **validation)
    trainer.validate(module, Digits(), verbose=False)
    trainer.validate(module, Digits(), verbose=False)
    assert len(seen.weights) == 3
    for one in seen.weights:
        torch.testing.assert_close(one, averaged(copies.weights, 0.5))


def test_loss_per_level_adds_up_to_the_loss(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="run", default_hp_metric=False)
    callbacks = [LossPerLevel(bins=5), Throughput()]
    fit(tmp_path, *callbacks, steps=6, logger=logger, log_every_n_steps=2, limit_val_batches=0)
    scalars = events(logger.log_dir)
    tags = [tag for tag in scalars.Tags()["scalars"] if tag.startswith("loss_per_level/")]
    assert tags == sorted(tags)
    assert len(tags) == 5
    named = [float(tag.split("=")[1]) for tag in tags]
    assert named == pytest.approx(GeometricSchedule(2.0, 0.05, 10).sigmas().flip(0)[1::2].tolist(), abs=5e-5)
    # A fresh network has a loss of 1/2 per dimension at every level.
    for tag in tags:
        curve = scalars.Scalars(tag)
        assert [point.step for point in curve] == [2, 4, 6]
        assert curve[0].value == pytest.approx(0.5, rel=0.2)
    for tag in ("train/gradient_norm", "train/loss", "images/s"):
        assert [point.value > 0 for point in scalars.Scalars(tag)] == [True] * 3


def test_the_first_step_which_may_compile_does_not_count_in_the_images_per_second(monkeypatch):
    times, logged = iter([100.0, 101.0]), []
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    module = SimpleNamespace(log=lambda name, value, prog_bar: logged.append((name, value)))
    steps = {"accumulate_grad_batches": 1, "log_every_n_steps": 2, "world_size": 1}
    throughput = Throughput()
    throughput.on_train_start()
    for step in (1, 2):
        trainer = SimpleNamespace(**steps, global_step=step, is_last_batch=False)
        throughput.on_train_batch_end(trainer, module, None, [torch.zeros(64)], step - 1)
    assert logged == [("images/s", 64.0)]


def test_the_bar_ends_full(tmp_path):
    bar = RunProgress()
    fit(tmp_path, bar, steps=7, enable_progress_bar=True, limit_val_batches=0)
    (task,) = bar.progress.tasks
    assert (task.completed, task.total) == (7, 7)


def test_without_a_terminal_the_bar_is_a_line_now_and_then(tmp_path, capsys):
    fit(tmp_path, RunProgress(), steps=7, enable_progress_bar=True, log_every_n_steps=1, limit_val_batches=0)
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert len(shown) == 1
    assert re.fullmatch(r"step 1 of 7  train/loss 0\.\d+.*", shown[0])


def test_the_line_of_a_run_without_an_end_names_none(tmp_path, capsys):
    settings = {"max_epochs": -1, "max_time": {"seconds": 1}, "log_every_n_steps": 1, "limit_val_batches": 0}
    fit(tmp_path, RunProgress(), steps=-1, enable_progress_bar=True, **settings)
    assert re.search(r"^step 1  train/loss 0\.\d+", capsys.readouterr().out, re.M)


def test_a_loss_curve_is_of_the_level_that_it_is_named_by(tmp_path):
    schedule, levels = GeometricSchedule(2.0, 0.05, 10), LossPerLevel(10)
    levels.on_fit_start(None, small_module())
    logs = schedule.sigmas().flip(0).log()
    assert torch.bucketize(logs, levels.edges).tolist() == list(range(10))
    assert [float(tag.split("=")[1]) for tag in levels.tags] == pytest.approx(logs.exp().tolist(), abs=5e-5)


@pytest.mark.parametrize(("mine", "theirs", "both"), [(None, 15, 15), (2, None, 2), (None, None, None)])
def test_ranks_end_together_at_the_next_step_at_which_they_ask(mine, theirs, both):
    stop = GracefulStop(Checkpoint())
    stop.signal = mine
    together = SimpleNamespace(
        reduce=lambda value, reduce_op: {"max": torch.maximum}[reduce_op](value, torch.tensor(theirs or 0)),
        root_device="cpu",
    )
    trainer = SimpleNamespace(
        world_size=2,
        global_step=9,
        accumulate_grad_batches=1,
        is_last_batch=False,
        strategy=together,
        should_stop=False,
    )
    stop.on_train_batch_end(trainer, None, None, None, 8)
    assert not stop.stopping
    trainer.global_step = 10
    stop.on_train_batch_end(trainer, None, None, None, 9)
    assert (stop.signal, stop.stopping, stop.checkpoint.due) == (both, both is not None, both is not None)


@pytest.mark.parametrize(
    ("schedule", "objective", "energy", "tag"),
    [
        (GeometricSchedule(0.5, 0.5, 1), DenoisingScoreMatching(), AutoencoderEnergy(64, 8), "sigma=000.5000"),
        (NoNoise(), RatioMatching(), RBM(64, 8), "sigma=000.0000"),
    ],
    ids=["one level", "no noise"],
)
def test_a_ladder_of_one_level_is_one_curve_named_by_it(tmp_path, schedule, objective, energy, tag):
    logger = TensorBoardLogger(tmp_path, name="run", default_hp_metric=False)
    sampler = Gibbs(1) if isinstance(objective, RatioMatching) else AnnealedLangevin(1e-3, 1)
    module = ScoreModule(EnergyScore(energy), schedule, objective, sampler, shape=(1, 8, 8))
    settings = {"max_steps": 4, "logger": logger, "log_every_n_steps": 2, "limit_val_batches": 0}
    small_trainer(tmp_path, callbacks=[LossPerLevel()], **settings).fit(module, BinaryDigits(batch_size=64))
    scalars = events(logger.log_dir)
    assert [name for name in scalars.Tags()["scalars"] if "level" in name] == [f"loss_per_level/{tag}"]
    curve = scalars.Scalars(f"loss_per_level/{tag}")
    assert [point.step for point in curve] == [2, 4]
    assert all(0 < point.value < 1000 for point in curve)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: EMA(1.0), "expected 0 <= decay < 1, got decay=1.0"),
        (lambda: Checkpoint(every=0), "every=0"),
        (lambda: Checkpoint(keep=0), "keep=0"),
        (lambda: SampleGrid(-1), "count=-1"),
        (lambda: SampleGrid(10**9), "count from 0 to 10,000, got count=1000000000"),
        (lambda: DenoisingStrips(-1), "count=-1"),
        (lambda: LossPerLevel(0), "bins=0"),
    ],
)
def test_impossible_settings_are_refused(make, field):
    with pytest.raises(ValueError, match=field):
        make()
