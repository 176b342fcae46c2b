"""What a training run shows and keeps: averaged weights, checkpoints, samples and their score, losses, speed."""

from ncsn.callbacks.checkpoints import BestCheckpoint, Checkpoint
from ncsn.callbacks.dashboard import Dashboard
from ncsn.callbacks.denoising import DenoisingStrips
from ncsn.callbacks.ema import EMA
from ncsn.callbacks.progress import LossPerLevel, RunProgress, Throughput
from ncsn.callbacks.samples import SampleGrid
from ncsn.callbacks.score import SampleScore
from ncsn.callbacks.stop import GracefulStop, RunStopped

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
    "SampleScore",
    "Throughput",
]
