"""Lightning plugins that write checkpoints atomically and read them without pickle."""

import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from ncsn.model.checkpoint_file import read, write

__all__ = ["DurableCheckpointIO", "PatientCheckpointIO"]


class DurableCheckpointIO(TorchCheckpointIO):
    """Atomic writes and safe reads of checkpoints, by `ncsn.model.checkpoint_file`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, *_: Any, **__: Any) -> None:
        # A GPU keeps weights in another layout, which files do not depend on.
        write(apply_to_collection(checkpoint, Tensor, Tensor.contiguous), Path(path))

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        return read(path)


class PatientCheckpointIO(DurableCheckpointIO):
    """Checkpoint files of a run that continues with a warning if the disk is full.

    `failure` is the error of the last attempt, or None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failure: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, *_: Any, **__: Any) -> None:
        try:
            super().save_checkpoint(checkpoint, path)
        except OSError as error:
            self.failure = error
            warnings.warn(f"no checkpoint was written, and the run goes on: {error}", stacklevel=2)
        else:
            self.failure = None

    def remove_checkpoint(self, path: Any) -> None:
        if self.failure is None:  # otherwise its replacement was not written
            super().remove_checkpoint(path)
