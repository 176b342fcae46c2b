"""The words for a failed run: its setting, or the cause outside it."""

import re
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import lightning
import torch
from torch.distributed import DistError

from ncsn.data import FileImages
from ncsn.data.folder import BrokenImageError
from ncsn.model.load import numbered

if TYPE_CHECKING:
    from ncsn.training.run import Run

__all__ = ["explained"]

GO_ON = "go on with --ckpt_path last"
# What gloo and NCCL say of another process that is gone.
LOST = re.compile(
    r"Connection (reset|closed) by peer|Broken pipe|Failed to recv|remote process exited"
)


def explained(run: "Run", error: Exception) -> Exception | None:
    """Return the error of a run in the words of its settings; None if it stands as it is."""
    reason, last = " ".join(str(error).split()), run.resumed_from
    if isinstance(error, BrokenImageError):
        splits = run.datamodule.splits.values()
        found = [split.complaint() for split in splits if isinstance(split, FileImages)]
        broken = "; ".join(filter(None, found)) or reason
        way_on = f"; then {GO_ON} (--accept_changes true if images are missing)"
        return BrokenImageError(broken + (way_on if any(numbered(run.folder)) else ""))
    if run.trainer.world_size > 1 and (isinstance(error, DistError) or LOST.search(reason)):
        return OSError(f"another process of the run has ended; {GO_ON} ({reason[:100]})")
    file = traceback.extract_tb(error.__traceback__)[-1].filename
    libraries = {Path(lightning.__file__).parent, Path(torch.__file__).parent}
    libraries -= {Path(torch.__file__).parent} if run.stop.began else set()
    of_state = not run.stop.began or Path(torch.optim.__file__).parent in Path(file).parents
    is_lack = isinstance(error, (OSError, torch.OutOfMemoryError))
    if of_state and not is_lack and last is not None:
        way_out = "begin another run with --name"
        return ValueError(f"--ckpt_path: {last} cannot be resumed: {reason}; {way_out}")
    if not is_lack and libraries & set(Path(file).parents):
        return ValueError(f"trainer: {reason}")  # a setting that a library tries late
    if reason.startswith("DataLoader"):  # a killed worker, say, or a dead disk
        return OSError(f"data.workers: {error}")
    if isinstance(error, ValueError):  # of the user's own code, whose traceback is of use
        return RuntimeError("training failed")
    return None
