"""Runs that are killed, stopped, and gone on with: `python tests/reliability.py kills --count 200`.

Each experiment ends with one line of what was measured, or at the first thing that should not be. torch is imported
once: a run is a fork of this process, in a folder of its own, with TMPDIR on another file system where there is one.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ncsn.sampling
import ncsn.training  # noqa: F401 - what the forks would otherwise import again and again
from ncsn import archive
from ncsn.checkpoints import numbered
from ncsn.cli import sample, train
from ncsn.errors import stopped_by_signals

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
STATE += ("global_step", "epoch")


class Folder:
    """A folder in which runs are started, as processes of their own."""

    def __init__(self, path: Path, config: str = CONFIG) -> None:
        self.path = path
        path.mkdir(parents=True)
        (path / "run.yaml").write_text(config)

    def start(self, *options: str, command: Callable[[], object] = train) -> int:
        """Start `train.py --config run.yaml OPTIONS` here, or another command; its process id."""
        sys.stdout.flush()
        process = os.fork()
        if process:
            return process
        status = 70
        try:
            os.chdir(self.path)
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
            sys.argv = [str(REPOSITORY / "train.py"), *options]
            if command is train:
                sys.argv[1:1] = ["--config", "run.yaml"]
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
        content = archive.read(self.path / f"checkpoints/run/step={step}.ckpt")
        return {key: content[key] for key in STATE} | {"ema": content["callbacks"]["EMA"]}

    def losses(self) -> dict[int, float]:
        """The training loss by step, as it was logged last."""
        logged: dict[int, float] = {}
        for version in sorted((self.path / "logs/run").glob("version_*"), key=lambda path: int(path.name[8:])):
            scalars = EventAccumulator(str(version), size_guidance={"scalars": 0}).Reload()
            if "train/loss" in scalars.Tags()["scalars"]:
                logged |= {point.step: point.value for point in scalars.Scalars("train/loss")}
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


def kills(folder: Path, count: int) -> str:
    """Kill -9 at random moments; each run, gone on with until it is at its end, must be as one left alone."""
    whole, duration = undisturbed(folder)
    expected, killed, finished = whole.final(), 0, 0
    while killed < count or finished == 0:
        run = Folder(folder / f"{finished}")
        while True:
            process = run.start(*run.go_on())
            if killed < count:
                time.sleep(random.uniform(0, 1.1 * duration))
                os.kill(process, signal.SIGKILL)
            status = ended(process)
            assert status in (0, -signal.SIGKILL), run.errors()
            if status == 0:
                break
            killed += 1
        assert same(run.final(), expected), "the weights are others"
        shutil.rmtree(run.path)
        finished += 1
    return f"{killed} kills: 0 runs lost; {finished} runs ended with the weights of the one left alone, bit for bit"


def resume(folder: Path, count: int, *options: str, config: str = CONFIG, steps: int = 18) -> str:
    """Go on from every `count`-th step of three epochs: to the same weights, averages, optimiser and logged losses."""
    options += ("--trainer.max_steps", str(steps))
    whole, _ = undisturbed(folder, config, "--checkpoint.keep", "1000", *options)
    expected, losses = whole.final(steps), whole.losses()
    assert len(losses) == steps
    at = range(count, steps, count)
    for step in at:
        run = Folder(folder / f"{step}", config)
        checkpoints = run.path / "checkpoints/run"
        checkpoints.mkdir(parents=True)
        shutil.copy(whole.path / f"checkpoints/run/step={step}.ckpt", checkpoints)
        run.run(*run.go_on(), *options)
        assert same(run.final(steps), expected), f"from step {step} on the weights are others"
        assert run.losses() == {key: value for key, value in losses.items() if key >= step}, f"the losses from {step}"
        shutil.rmtree(run.path)
    return f"gone on from {len(at)} of {steps} steps {' '.join(options)}: weights and losses the same, bit for bit"


def accumulated(folder: Path, count: int) -> str:
    """The same, where each step takes the gradients of two batches, and the last of an epoch that of one."""
    config = CONFIG.replace("batch_size: 256", "batch_size: 200")  # eight batches an epoch
    return resume(folder, count, "--trainer.accumulate_grad_batches", "3", config=config, steps=9)


def streamed(folder: Path, count: int, workers: int = 2) -> str:
    """The same, of pictures that worker processes read from their files."""
    (folder / "pictures").mkdir()
    for i, pixels in enumerate(torch.randint(256, (50, 8, 8), dtype=torch.uint8)):
        Image.fromarray(pixels.numpy()).save(folder / f"pictures/{i}.png")
    data = f"root: {folder / 'pictures'}, size: 8, channels: 1, memory: 0, workers: {workers}, batch_size: 8"
    config = CONFIG.replace("ncsn.data.Digits", "ncsn.data.ImageFolder").replace("batch_size: 256", data)
    return resume(folder, count, config=config, steps=15)  # five batches an epoch


def ranks(folder: Path, count: int) -> str:
    """The same, on two processes that share the batches."""
    config = CONFIG.replace("batch_size: 256", "batch_size: 128")
    return resume(folder, count, "--trainer.devices", "2", "--trainer.strategy", "ddp", config=config)


@stopped_by_signals()  # as a fork is from its first moment on
def signals(folder: Path, count: int) -> str:
    """SIGINT, SIGTERM and SIGHUP at random moments: whole checkpoints, the right exit status, and the same end."""
    config = CONFIG.replace("val_check_interval: 4", "val_check_interval: 2").replace("every: 1}", "every: 5}")
    whole, duration = undisturbed(folder, config)
    expected, sent, finished, saved = whole.final(), 0, 0, 0
    while sent < count:
        run, status = Folder(folder / f"{finished}", config), 1
        while status:
            number = random.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
            process = run.start(*run.go_on())
            time.sleep(random.uniform(0.02, 1.1 * duration))
            os.kill(process, number)
            status = ended(process)
            assert status in (0, 128 + number), f"{status} for {number}: {run.errors()}"
            # jsonargparse asks another Python for its path, which complains where nobody waits for the answer.
            assert '.py"' not in run.errors(), run.errors()
            sent += 1
            for file in numbered(run.path / "checkpoints/run"):
                saved += 1
                archive.read(file)
        assert same(run.final(), expected), "the weights are others"
        shutil.rmtree(run.path)
        finished += 1
    return f"{sent} signals: 0 of {saved} checkpoints torn, exit 128 + signal; {finished} runs ended as one left alone"


def sampling(folder: Path, count: int) -> str:
    """Kill -9 while pictures are drawn into a folder: each is whole, and the finished set is that of one call."""
    options = ["--num-samples", "40", "--batch-size", "4", "--seed", "3", "--sampler.steps", "4"]
    whole = Folder(folder / "whole")
    whole.run()
    began = time.monotonic()
    whole.run(*options, "--out", "pictures", command=sample)
    duration, killed, sets, seen = time.monotonic() - began, 0, 0, 0
    expected = {file.name: file.read_bytes() for file in (whole.path / "pictures").iterdir()}
    while killed < count or sets == 0:
        out, status = f"set{sets}", 1
        while status:
            process = whole.start(*options, "--out", out, command=sample)
            if killed < count:
                time.sleep(random.uniform(0, duration))
                os.kill(process, signal.SIGKILL)
            status = ended(process)
            assert status in (0, -signal.SIGKILL), whole.errors()
            killed += status != 0
            for file in (whole.path / out).glob("*.png"):
                seen += 1
                assert file.read_bytes() == expected[file.name], file
        assert {file.name for file in (whole.path / out).iterdir()} == set(expected)
        sets += 1
    return f"{killed} kills: {seen} pictures seen, all whole; {sets} finished sets are that of one call, bit for bit"


EXPERIMENTS: dict[str, Callable[[Path, int], str]] = {
    one.__name__: one for one in (kills, resume, accumulated, streamed, ranks, signals, sampling)
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what docs/reliability.md states.")
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    random.seed(given.seed)
    torch.set_num_threads(1)
    os.environ["TMPDIR"] = "/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=REPOSITORY.parent, prefix="reliability-") as folder:
        print(EXPERIMENTS[given.experiment](Path(folder), given.count), f"({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
