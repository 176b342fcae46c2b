"""Lightning plugins that write checkpoints atomically and read them without pickle."""

import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import TorchCheckpointIO

from ncsn.model.checkpoint_file import read, write

__all__ = ["DurableCheckpointIO", "PatientCheckpointIO"]


class DurableCheckpointIO(TorchCheckpointIO):
    """Atomic writes and safe reads of checkpoints, by `ncsn.model.checkpoint_file`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        write(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class PatientCheckpointIO(DurableCheckpointIO):
    """Checkpoint files of a run that continues with a warning if the disk is full.

    `failure` is the error of the last attempt, or None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failure: OSError | None = None
        self.superseded: list[Path] = []

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        try:
            super().save_checkpoint(checkpoint, path, storage_options)
        except OSError as error:
            self.failure = error
            warnings.warn(f"no checkpoint was written, and the run goes on: {error}", stacklevel=2)
            return
        self.failure = None
        while self.superseded:
            super().remove_checkpoint(self.superseded.pop())

    def remove_checkpoint(self, path: Any) -> None:
        if self.failure is None:
            super().remove_checkpoint(path)
        else:  # its replacement was not written
            self.superseded.append(Path(path))
