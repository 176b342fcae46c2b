"""What docs/reliability.md states, measured: `python tests/reliability.py kills --count 200`.

Each experiment ends with one line of what was measured, or at the first thing that should not be. Runs have TMPDIR on
another file system, where there is one.
"""

import argparse
import gc
import math
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from ncsn.cli.errors import exit_on_signals
from ncsn.cli.main import sample, train
from ncsn.model import checkpoint_file
from ncsn.model.load import numbered
from ncsn.networks import UNet
from ncsn.noise import GeometricSchedule
from ncsn.objectives import EDMScoreMatching
from ncsn.samplers import AnnealedLangevin
from ncsn.score import EDMDenoiser
from ncsn.training.module import ScoreModule, gradient_norm
from PIL import Image

from configurations import configurations
from damage import damage, evil, mutations
from runs import CONFIG, Folder, ended, same, undisturbed
from stops import groups, stops, validations
from watched import trust
from writers import writers


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
        found = run.final()
        others = [name for name, value in expected.items() if not same(found[name], value)]
        assert not others, f"after {killed} kills others than of the run left alone are {others}"
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


def shortened(folder: Path, count: int) -> str:
    """The same, where an epoch has four of its six batches."""
    return resume(folder, count, "--trainer.limit_train_batches", "4")


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


@exit_on_signals()  # as a fork is from its first moment on
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
                checkpoint_file.read(file)
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


def disk(folder: Path, count: int) -> str:
    """A file may not grow past so many bytes, as on a disk that is full: what was saved before stays, and is said."""
    config = CONFIG.replace("every: 1}", "every: 3}")
    config = config.replace("max_steps: 18, val_check_interval: 4", "max_steps: 6, val_check_interval: 3")
    whole, _ = undisturbed(folder, config, "--trainer.logger", "false")
    expected = whole.final(6)
    size = (whole.path / "checkpoints/run/step=6.ckpt").stat().st_size
    for i in range(count):
        run = Folder(folder / f"{i}", config)
        (run.path / "checkpoints/run").mkdir(parents=True)
        shutil.copy(whole.path / "checkpoints/run/step=3.ckpt", run.path / "checkpoints/run")
        options = [*run.go_on(), "--trainer.logger", "false"]
        limit = 4096 + (size - 4096) * i // count  # what is said takes less than the first page
        status = ended(run.start(*options, command=partial(limited, limit)))
        assert status == 1, f"{status}, {run.errors()}"
        assert "no checkpoint was written, and the run goes on" in run.errors()
        assert re.search("\nerror: cannot write .*/checkpoints/run/step=6.ckpt: ", run.errors()), run.errors()
        assert "Traceback" not in run.errors()
        checkpoint_file.read(run.path / "checkpoints/run/step=3.ckpt")
        assert [file.name for file in (run.path / "checkpoints/run").iterdir()] == ["step=3.ckpt"]
        run.run(*options)
        assert same(run.final(6), expected)
        shutil.rmtree(run.path)
    return (
        f"a full disk at {count} positions: said each time, the checkpoint before stayed, and the run went on from it"
    )


def limited(size: int) -> None:
    """`train`, where no file may be larger than so many bytes."""
    sys.argv[1:1] = ["--config", "run.yaml"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    train()


def guard(folder: Path, count: int) -> str:
    """What it costs to look for a loss or a gradient that is not finite: the time of that, and of the step it is in."""
    denoiser = EDMDenoiser(UNet(1, width=32, multipliers=(1, 2), blocks=2))
    schedule, walk = GeometricSchedule(2, 0.1, 6), AnnealedLangevin(1e-3, 1)
    module = ScoreModule(denoiser, schedule, EDMScoreMatching(), walk, (1, 8, 8))
    optimizer, x = torch.optim.Adam(module.parameters()), torch.rand(64, 1, 8, 8)

    def step() -> tuple[float, float]:
        began = time.perf_counter()
        loss = module.losses(x, schedule.sample(x)).mean()
        before = time.perf_counter()
        loss = loss * (1 + 0 * loss.detach())  # as in `ScoreModule.training_step`
        guarded = time.perf_counter() - before
        optimizer.zero_grad()
        loss.backward()
        before = time.perf_counter()
        assert math.isfinite(gradient_norm(module.parameters()).item())  # as in `on_before_optimizer_step`
        guarded += time.perf_counter() - before
        optimizer.step()
        return guarded, time.perf_counter() - began

    steps = [step() for _ in range(count)][5:]
    # The least of each: what else the machine does takes more of one that waits for memory than of one that computes.
    guarded, whole = (min(times) for times in zip(*steps, strict=True))
    share = guarded / whole
    return f"{len(steps)} steps of {1000 * whole:.0f} ms: the guard takes {100 * share:.2f} %"


ALL = (
    kills,
    resume,
    accumulated,
    shortened,
    streamed,
    ranks,
    signals,
    stops,
    groups,
    validations,
    damage,
    evil,
    configurations,
    mutations,
    disk,
    sampling,
    writers,
    trust,
    guard,
)
EXPERIMENTS: dict[str, Callable[[Path, int], str]] = {one.__name__: one for one in ALL}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what docs/reliability.md states.")
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    random.seed(given.seed)
    torch.set_num_threads(1)
    gc.freeze()  # as a command does with what it has imported
    os.environ["TMPDIR"] = "/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="reliability-") as folder:
        print(EXPERIMENTS[given.experiment](Path(folder), given.count), f"({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
