"""Where a resumed run continues, against what Lightning's own counters say after each batch."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from ncsn.data import Digits
from ncsn.training.callbacks import EMA, Checkpoint
from ncsn.training.resume import Resume, check_resumed, check_state, is_finished, position_after, resumable

from test_callbacks import fit
from test_module import small_module, small_trainer


class Counters(Callback):
    """Keeps the state of the fit loop at the end of the last batch of each step, as a checkpoint would."""

    def __init__(self):
        self.at = {}

    def on_train_batch_end(self, trainer, *_):
        self.at.setdefault(trainer.global_step, trainer.fit_loop.state_dict())


@pytest.mark.parametrize(("batches", "accumulate"), [(25, 1), (4, 1), (7, 3), (6, 3), (2, 5)])
def test_the_counters_follow_from_the_step_alone(tmp_path, batches, accumulate):
    counters, per_epoch = Counters(), -(-batches // accumulate)
    settings = {"accumulate_grad_batches": accumulate, "limit_train_batches": batches}
    fit(tmp_path, counters, steps=2 * per_epoch + 1, **settings)
    steps = [step for step in counters.at if step > 0]
    assert steps == list(range(1, 2 * per_epoch + 2))
    for step in steps:
        progress, state = position_after(step, batches, accumulate).progress(), counters.at[step]
        validation = progress.pop("epoch_loop.val_loop.batch_progress")
        assert progress == {key: state[key] for key in progress}, f"after step {step}"
        assert validation.keys() == state["epoch_loop.val_loop.batch_progress"].keys()


class Validated(Callback):
    def __init__(self):
        self.seen = []

    def on_validation_end(self, trainer, *_):
        self.seen.append((trainer.global_step, trainer.current_epoch, trainer.callback_metrics["val/loss"].item()))


def validations(folder, steps, epochs, *callbacks, resumed_from=None):
    """The step, epoch and loss of each validation of a run."""
    seed_everything(0)
    module, validated = small_module(), Validated()
    callbacks = [EMA(), validated, Checkpoint(folder), *callbacks]
    settings = {"val_check_interval": 4, "limit_train_batches": 4, "check_val_every_n_epoch": epochs}
    settings |= {"enable_checkpointing": True, "limit_val_batches": 1}
    trainer = small_trainer(folder, max_steps=steps, callbacks=callbacks, **settings)
    trainer.fit(module, Digits(batch_size=64), ckpt_path=resumed_from, weights_only=True)
    return validated.seen


@pytest.mark.parametrize(
    ("epochs", "stopped", "again"), [(None, 4, [4, 8]), (None, 5, [8]), (1, 4, [4, 8]), (2, 4, [8]), (2, 8, [8])]
)
def test_a_validation_that_is_due_at_the_step_is_run_again(tmp_path, epochs, stopped, again):
    alone = validations(tmp_path / "alone", 9, epochs)
    validations(tmp_path / "a", stopped, epochs)
    resumed = validations(tmp_path / "b", 9, epochs, Resume(), resumed_from=tmp_path / f"a/step={stopped}.ckpt")
    assert [step for step, _, _ in alone] == ([8] if epochs == 2 else [4, 8])
    assert resumed == [seen for seen in alone if seen[0] in again]


@pytest.mark.parametrize(
    ("name", "value", "same"),
    [
        ("precision", None, "32-true"),
        ("precision", 32, "32-true"),
        ("precision", "bf16", "bf16-mixed"),
        ("gradient_clip_algorithm", None, "norm"),
        ("gradient_clip_val", None, 0.0),
        ("limit_train_batches", None, 1.0),
    ],
)
def test_a_setting_that_is_written_otherwise_is_the_same(name, value, same):
    then, now = (
        {"config": {"trainer": {name: each}}, "devices": 1, "fingerprint": "0" * 64, "classes": []}
        for each in (value, same)
    )
    assert check_resumed(now, {"run": then}, "a.ckpt") == check_resumed(then, {"run": now}, "a.ckpt") == []


def test_one_batch_is_not_all_of_them():
    then, now = (
        {"config": {"trainer": {"limit_train_batches": each}}, "devices": 1, "fingerprint": "0" * 64, "classes": []}
        for each in (1.0, 1)
    )
    with pytest.raises(ValueError, match=r"trainer.limit_train_batches: 1, but 1\.0 in a\.ckpt"):
        check_resumed(now, {"run": then}, "a.ckpt")


@pytest.mark.parametrize("key", ["model.augment", "ema.decay", "trainer.precision", "trainer.gradient_clip_val"])
def test_a_run_does_not_go_on_otherwise_without_being_told(key):
    def described(value):
        section, name = key.split(".")
        return {"config": {section: {name: value}}, "devices": 1, "fingerprint": "0" * 64, "classes": []}

    then, now = {"run": described("1")}, described("2")
    with pytest.raises(ValueError, match=f"{key}: 2, but 1 in a.ckpt; change it back, or go on with --accept_changes"):
        check_resumed(now, then, "a.ckpt")
    assert check_resumed(now, then, "a.ckpt", accept_changes=True) == [f"{key}: 1 -> 2"]


@pytest.mark.parametrize(("step", "complete", "finished"), [(9, False, False), (10, False, False), (10, True, True)])
def test_a_run_is_finished_once_its_last_validation_is(step, complete, finished):
    assert is_finished({"global_step": step, "complete": complete}, 10) == finished
    assert is_finished({"global_step": step}, 10) == (step == 10)  # of an earlier version
    assert is_finished({"global_step": 11, "complete": complete}, 10)


@pytest.fixture
def content():
    """What a file of the training command holds, with one weight for all."""
    one = {"a": torch.ones(1)}
    return {
        "global_step": 3,
        **dict.fromkeys(("state_dict", "current_model_state", "loops", "callbacks"), one),
        **{"optimizer_states": [one], "lr_schedulers": [one], "skipped_steps": [0, 0]},
        "run": {"config": one, "fingerprint": "a", "devices": 1},
    }


STRANGE = {
    "global_step": [0, 1.5, True, None],
    "current_model_state": [None, {}, [1]],
    "optimizer_states": [[], {}],
    "callbacks": [7],
    "skipped_steps": [7],
    "run": [7, {}],
    "run.config": [[], {}],
    "run.fingerprint": [7],
    "run.devices": ["x"],
}


@pytest.mark.parametrize("entry", STRANGE)
def test_an_entry_that_is_missing_or_of_another_kind_is_named(content, monkeypatch, entry):
    monkeypatch.setattr("ncsn.training.resume.read", lambda path: content)
    assert resumable(Path("a.ckpt")) is content
    *of_run, key = entry.split(".")
    place = content["run"] if of_run else content
    for value in STRANGE[entry]:
        place[key] = value
        with pytest.raises(ValueError, match=rf"--ckpt_path: a.ckpt has no {entry}\S* .* cannot be resumed; --model"):
            resumable(Path("a.ckpt"))


def state(module, **entries):
    weights = {name: weight.clone() for name, weight in module.state_dict().items()}
    kept = [{"state": {0: {"step": torch.ones(())}}}]
    return {"state_dict": weights, "current_model_state": dict(weights), "optimizer_states": kept} | entries


WEIGHTS = {
    "8 bits": (lambda weight: weight.to(torch.int8), r"is of another network: its .* torch.int8\), here it is \(.*"),
    "64 bits": (lambda weight: weight.double(), "of torch.float64, here it is torch.float32"),
    "another shape": (lambda weight: weight[None], r"is of another network: its .*"),
}


@pytest.mark.parametrize("entry", ["state_dict", "current_model_state"])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_a_run_does_not_have_are_refused_with_the_way_to_a_new_run(entry, kind):
    module, (change, message) = small_module(), WEIGHTS[kind]
    checkpoint = state(module)
    check_state(module, True, checkpoint, "a.ckpt")
    name = next(iter(checkpoint[entry]))
    checkpoint[entry][name] = change(checkpoint[entry][name])
    with pytest.raises(ValueError, match=f"a.ckpt .*{message}; give another --name, and --model.weights"):
        check_state(module, True, checkpoint, "a.ckpt")


@pytest.mark.parametrize("states", [{}, {"state": {}}, {"state": {0: {}, 1: {}}}, {"state": 7}, 7])
def test_an_optimiser_that_keeps_a_state_is_not_resumed_without_one(states):
    module = small_module()
    checkpoint = state(module, optimizer_states=[states])
    check_state(module, False, checkpoint, "a.ckpt")  # as plain SGD
    with pytest.raises(ValueError, match=r"a.ckpt has no state in its optimizer_states, .*; give another --name"):
        check_state(module, True, checkpoint, "a.ckpt")
