"""Where a resumed run continues, against what Lightning's own counters say after each batch."""

import pytest
from lightning.pytorch import Callback, seed_everything
from ncsn.data import Digits
from ncsn.training.callbacks import EMA, Checkpoint
from ncsn.training.resume import Resume, is_finished, position_after

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


@pytest.mark.parametrize(("step", "complete", "finished"), [(9, False, False), (10, False, False), (10, True, True)])
def test_a_run_is_finished_once_its_last_validation_is(step, complete, finished):
    assert is_finished({"global_step": step, "complete": complete}, 10) == finished
    assert is_finished({"global_step": step}, 10) == (step == 10)  # of an earlier version
    assert is_finished({"global_step": 11, "complete": complete}, 10)
