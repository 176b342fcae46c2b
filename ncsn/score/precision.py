"""The precision of what surrounds a network."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

__all__ = ["without_autocast"]


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which matrix products are not rounded to 16 bits by autocast."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()  # as on "meta"
