"""Callbacks of training: weight averaging, checkpoints, samples, metrics, speed."""

from ncsn.training.callbacks.checkpoints import BestCheckpoint, Checkpoint
from ncsn.training.callbacks.dashboard import Dashboard
from ncsn.training.callbacks.denoising import DenoisingStrips
from ncsn.training.callbacks.ema import EMA
from ncsn.training.callbacks.progress import LossPerLevel, RunProgress, Throughput
from ncsn.training.callbacks.quality import SampleQuality
from ncsn.training.callbacks.samples import SampleGrid
from ncsn.training.callbacks.stop import GracefulStop, RunStopped

__all__ = [
    "EMA",
    "BestCheckpoint",
    "Checkpoint",
    "Dashboard",
    "DenoisingStrips",
    "GracefulStop",
    "LossPerLevel",
    "RunProgress",
    "RunStopped",
    "SampleGrid",
    "SampleQuality",
    "Throughput",
]
