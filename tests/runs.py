"""Runs in folders of their own, and what they leave: for the experiments of `tests/reliability.py`.

torch is imported once: a run is a fork of this process.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ncsn.cli.sample
import ncsn.training.run  # noqa: F401
import torch
from ncsn.cli.errors import SIGNALS
from ncsn.cli.main import train
from ncsn.model import checkpoint_file
from ncsn.model.load import numbered
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

REPOSITORY = Path(__file__).parent.parent
CONFIG = """
name: run
seed_everything: 0
data: {class_path: ncsn.data.Digits, init_args: {batch_size: 256, dequantise: true}}
model:
  denoiser:
    class_path: ncsn.score.EDMDenoiser
    init_args:
      network: {class_path: ncsn.networks.UNet, init_args: {width: 4, multipliers: [1], blocks: 1, dropout: 0.1}}
  schedule: {class_path: ncsn.noise.GeometricSchedule, init_args: {sigma_max: 2, sigma_min: 0.1, levels: 6}}
  objective: {class_path: ncsn.objectives.EDMScoreMatching}
  sampler: {class_path: ncsn.samplers.AnnealedLangevin, init_args: {epsilon: 1.0e-3, steps: 1}}
  optimizer: {class_path: torch.optim.Adam, init_args: {lr: 2.0e-3}}
  warmup: 4
trainer:
  {max_steps: 18, val_check_interval: 4, limit_val_batches: 1, accelerator: cpu, log_every_n_steps: 1,
   enable_progress_bar: false}
samples: {count: 0}
ema: {decay: 0.9}
checkpoint: {every: 1}
"""
"""18 steps are three epochs of six batches."""
STATE = ("state_dict", "current_model_state", "optimizer_states", "averaging_state", "lr_schedulers", "skipped_steps")
STATE += ("global_step",)


class Folder:
    """A folder in which runs are started, as processes of their own."""

    def __init__(self, path: Path, config: str = CONFIG) -> None:
        self.path = path
        path.mkdir(parents=True)
        (path / "run.yaml").write_text(config)

    def start(self, *options: str, command: Callable[[], object] = train) -> int:
        """Start `train.py --config run.yaml OPTIONS` here, or another command; its process id."""
        sys.stdout.flush()
        # A signal that comes before the fork is ready for it would be answered as one to this process.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        process = os.fork()
        if process:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            return process
        status = 70
        try:
            os.chdir(self.path)
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
            sys.argv = [str(REPOSITORY / "train.py"), *options]
            if command is train:
                sys.argv[1:1] = ["--config", "run.yaml"]
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            command()
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def run(self, *options: str, command: Callable[[], object] = train) -> None:
        """Run to the end, which must be a good one."""
        status = ended(self.start(*options, command=command))
        assert status == 0, f"{self.path} ended with {status}: {self.errors()}"

    def go_on(self) -> list[str]:
        """The options with which a run is started again."""
        return ["--ckpt_path", "last"] if numbered(self.path / "checkpoints/run") else []

    def errors(self) -> str:
        """The end of what was written to standard error."""
        return (self.path / "err").read_text()[-2000:] if (self.path / "err").exists() else ""

    def final(self, step: int = 18) -> dict[str, object]:
        """All that a run goes on from, at its end."""
        content = checkpoint_file.read(self.path / f"checkpoints/run/step={step}.ckpt")
        return {key: content[key] for key in STATE} | {"ema": content["callbacks"]["EMA"]}

    def losses(self) -> dict[int, float]:
        """The training loss by step."""
        return self.logged()["train/loss"]

    def logged(self) -> dict[str, dict[int, float]]:
        """All scalars that are no matter of time, by name and step. A step that was logged twice has equal values."""
        logged: dict[str, dict[int, float]] = {}
        for version in (self.path / "logs/run").glob("version_*"):
            scalars = EventAccumulator(str(version), size_guidance={"scalars": 0}).Reload()
            for name in set(scalars.Tags()["scalars"]) - {"images/s"}:
                known = logged.setdefault(name, {})
                for point in scalars.Scalars(name):
                    assert known.setdefault(point.step, point.value) == point.value, f"{name} of step {point.step}"
        return logged


def ended(process: int) -> int:
    """The exit status of a process, once it has ended; minus the signal where one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def same(one: object, other: object) -> bool:
    """Whether nested values are equal, to the bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return isinstance(other, type(one)) and len(one) == len(other) and all(map(same, one, other))
    return one == other


def undisturbed(folder: Path, config: str = CONFIG, *options: str) -> tuple[Folder, float]:
    """A run that was left alone, and how long it took."""
    whole, began = Folder(folder / "whole", config), time.monotonic()
    whole.run(*options)
    return whole, time.monotonic() - began
