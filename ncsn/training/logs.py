"""TensorBoard's logs of a run that a full disk does not end."""

import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger

__all__ = ["PatientLogger"]

PAUSE = 30
"""Seconds after which a new file is tried."""


class PatientLogger(TensorBoardLogger):
    """Lightning's logger, which says where it cannot write, lets the run go on, and goes on in another file.

    `failure` is the error of the last figure that was lost, or None.
    """

    events: "PatientEvents | None" = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        fresh = self._experiment is None
        writer = super().experiment
        if fresh and writer.file_writer is not None:
            self.events = writer.file_writer.event_writer = PatientEvents(
                writer.file_writer.event_writer
            )
        return writer

    @property
    def failure(self) -> OSError | None:
        return None if self.events is None else self.events.failure


class PatientEvents:
    """TensorBoard's writer of a file, or of another one where that could not be written any more."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer
        self.failure: OSError | None = None
        self.broken_at: float | None = None
        threading.excepthook = _say_nothing_of_the_disk

    def get_logdir(self) -> str:
        return str(self.writer.get_logdir())

    def add_event(self, event: Any) -> None:
        if self.broken_at is not None and time.monotonic() - self.broken_at < PAUSE:
            return
        with self._patience():
            if self.broken_at is not None:
                self.writer = type(self.writer)(self.get_logdir())
                self.broken_at = None
            self.writer.add_event(event)

    def flush(self) -> None:
        if self.broken_at is None:
            with self._patience():
                self.writer.flush()

    def close(self) -> None:
        with self._patience():
            self.writer.close()

    def reopen(self) -> None:
        self.writer.reopen()

    @contextmanager
    def _patience(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.broken_at = time.monotonic()
            self.failure = OSError(f"cannot write the log in {self.get_logdir()}: {error}")
            warnings.warn(
                f"figures are not logged, and the run goes on: {self.failure}", stacklevel=4
            )


def _say_nothing_of_the_disk(ended: threading.ExceptHookArgs) -> None:
    """Leave out the traceback of a thread that could not write: the one that it writes for is told, and says so."""
    if not issubclass(ended.exc_type, OSError):
        threading.__excepthook__(ended)
