import threading

import pytest
from ncsn.training import logs
from ncsn.training.logs import PatientLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def test_a_full_disk_costs_figures_and_not_the_run(tmp_path, monkeypatch):
    def full(event):
        raise OSError(28, "No space left on device")

    logger = PatientLogger(tmp_path, name="run", default_hp_metric=False)
    logger.log_metrics({"loss": 1.0}, 1)
    assert logger.failure is None
    monkeypatch.setattr(logger.events.writer, "add_event", full)
    with pytest.warns(UserWarning, match=r"figures are not logged, and the run goes on: .*run.*No space left"):
        logger.log_metrics({"loss": 2.0}, 2)
    for step in (3, 4):  # it is not tried again at once
        logger.log_metrics({"loss": step}, step)
    monkeypatch.setattr(logs, "PAUSE", 0)
    for step in (5, 6):
        logger.log_metrics({"loss": step}, step)
    logger.finalize("success")
    assert "No space left" in str(logger.failure)  # which is what the run ends with
    assert len(list(tmp_path.rglob("events*"))) == 2
    points = EventAccumulator(logger.log_dir).Reload().Scalars("loss")
    assert sorted((point.step, point.value) for point in points) == [(1, 1), (5, 5), (6, 6)]


def test_a_thread_that_could_not_write_has_no_traceback_and_another_has(tmp_path, capsys):
    PatientLogger(tmp_path, name="run").log_metrics({"loss": 1.0}, 1)

    def fails(error):
        raise error

    for error in (OSError("the disk"), ValueError("a mistake")):
        thread = threading.Thread(target=fails, args=(error,))
        thread.start()
        thread.join()
    said = capsys.readouterr().err
    assert "a mistake" in said
    assert "the disk" not in said
