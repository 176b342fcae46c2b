"""What the measurements of a GPU share: settings, timing, results, and runs of the configurations."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import ROOT
from benchmarks.within import Row
from ncsn.data import DataModule
from ncsn.data.examples import HeldExamples
from ncsn.model.files import atomic_write
from ncsn.noise.streams import Streams
from ncsn.training.run import Run, build

__all__ = ["Bench", "batch_of", "built", "flops", "loss_of"]

BATCHES = {"cifar10_hour": 512, "mnist": 128, "digits": 64}
TOY_NETWORK = {"width": "8", "blocks": "1", "attention": "[]"}


@dataclass
class Bench:
    """The settings of all parts, and the results so far."""

    folder: Path
    out: Path
    toy: bool
    results: Row = field(default_factory=lambda: {"data": {}})

    def __post_init__(self) -> None:
        self.device = torch.device("cpu" if self.toy else "cuda")
        self.batches = {"mnist": 4} if self.toy else BATCHES
        self.rounds, self.steps = (1, 1) if self.toy else (3, 8)  # timed, and steps in each

    def save(self) -> None:
        """Write the results so far."""
        with atomic_write(self.out / "gpu.json") as file:
            file.write_text(json.dumps(self.results, indent=1))

    def wait(self) -> None:
        """Wait for the device."""
        if not self.toy:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the seconds of a call, with those of the device."""
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    def median(self, work: Callable[[], object], calls: int = 1) -> float:
        """Return the median seconds of a call, over rounds of some calls, after a round of warm-up."""
        seconds = [
            self.seconds(lambda: [work() for _ in range(calls)]) for _ in range(1 + self.rounds)
        ]
        return statistics.median(seconds[1:]) / calls

    def training_row(self, batch: int, flop: float, first: float, seconds: float) -> Row:
        """Return the columns of a training step of `seconds`, with `flop` for each example."""
        row = {"images/s": batch / seconds, "first step, s": first}
        peak = (self.results.get("peaks") or [{}])[0].get("TFLOP/s")
        if peak is not None:
            row["of the peak"] = flop * batch / seconds / (1e12 * peak)
        return row if self.toy else row | {"GiB": torch.cuda.max_memory_allocated() / 2**30}

    def timed_steps(self, step: Callable[[], None], batch: int, flop: float) -> Row:
        """Call a training step, and return its columns."""
        return self.training_row(batch, flop, self.seconds(step), self.median(step, self.steps))


def built(bench: Bench, config: str, name: str = "run", **model: str) -> Run:
    """Return a run of a configuration, with settings of the model by their last names."""
    network = TOY_NETWORK if bench.toy else {}
    settings = {
        "config": ROOT / "configs" / f"{config}.yaml",
        "name": "_".join([config, name, *model.values()]),
        **{f"model.denoiser.network.{name}": value for name, value in network.items()},
        **{f"model.{name}": value for name, value in model.items()},
        "model.warmup": 0,
        "model.cooldown": 0,
        "data.batch_size": bench.batches[config],
        "samples.count": 0,
        "quality.features": "null",
        "trainer.accelerator": bench.device.type,
        "trainer.devices": 1,
        "trainer.enable_progress_bar": "false",
        "trainer.limit_val_batches": 0,
        "trainer.max_steps": 1_000_000,
    }
    if config != "digits":
        settings["data.root"] = bench.folder
    run = build([f"--{name}={value}" for name, value in settings.items()])
    present = is_present(run.datamodule)
    bench.results["data"][config] = "its own" if present else "random images"
    if not present:
        use_random_images(run.datamodule)
    run.datamodule.setup()
    return run


def is_present(data: DataModule) -> bool:
    """Return True if the data is there, without a download."""
    data.downloads = False
    try:
        data.prepare_data()
    except (OSError, ValueError):
        return False
    return True


def use_random_images(data: DataModule) -> None:
    """Replace the data by random images of its shape."""
    pixels = torch.randint(256, (10_000, *data.shape), dtype=torch.uint8)
    examples = HeldExamples(pixels, torch.zeros(len(pixels), dtype=torch.long))
    data.splits = {"train": examples, "val": examples}
    data.prepare_data = lambda: None  # type: ignore[method-assign]


def batch_of(run: Run, device: torch.device) -> Tensor:
    """Return a batch of training images."""
    data: Any = run.datamodule
    x: Tensor = data.on_after_batch_transfer(data.splits["train"][range(data.batch_size)], 0)[0]
    return x.to(device)


def loss_of(run: Run, x: Tensor) -> Tensor:
    """Return the training loss, with the random numbers of a training step."""
    with run.trainer.precision_plugin.forward_context(), Streams(0, range(len(x)), x.device):
        return run.model.losses(x, run.model.schedule.sample(x)).mean()


def flops(loss: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Return the FLOP of a training example, forward and backward."""
    # Nothing is compiled while operations are counted, and a failure would end it for good.
    with patch.object(Streams, "compiles", False), FlopCounterMode(display=False) as counter:
        loss(x[:1]).backward()
    return float(counter.get_total_flops())
