"""Runs that are stopped and resumed: experiments of `tests/reliability.py`."""

import os
import random
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

import torch
from ncsn.cli.errors import SIGNALS
from ncsn.cli.main import train
from ncsn.model import checkpoint_file
from ncsn.model.load import numbered
from ncsn.training.module import ScoreModule
from PIL import Image

from runs import CONFIG, Folder, ended, same

STEPS = 40
INTERVALS = {4: 1, 5: 3, 6: 1}
"""Steps between validations, of epochs of six, and between two that are logged."""


def stops(folder: Path, count: int) -> str:
    """Stop a run of 40 steps in every `count`-th step, by a signal or because it ends there, and resume it."""
    resumed = 0
    for interval, log_every in INTERVALS.items():
        settings = f"max_steps: {STEPS}, val_check_interval: {interval}"
        config = CONFIG.replace("max_steps: 18, val_check_interval: 4", settings).replace("every: 1}", "every: 1000}")
        config = config.replace("log_every_n_steps: 1", f"log_every_n_steps: {log_every}")
        whole = Folder(folder / f"whole{interval}", config)
        whole.run()
        expected, logged = whole.final(STEPS), whole.logged()
        assert set(logged) >= {"train/loss", "val/loss", "train/gradient_norm"}
        assert len(logged["train/loss"]) == STEPS // log_every
        for step in range(count, STEPS + 1, count):
            for stopped in (by_signal, by_end):
                run = Folder(folder / f"{interval}-{step}", config)
                stopped(run, step)
                steps = list(numbered(run.path / "checkpoints/run").values())
                assert step in steps, f"stopped in step {step} {stopped.__name__}: saved are {steps}"
                run.run(*run.go_on())
                about = f"{stopped.__name__} in step {step} of validations every {interval}"
                assert same(run.final(STEPS), expected), f"other weights after a stop {about}"
                assert run.logged() == logged, f"other losses after a stop {about}"
                shutil.rmtree(run.path)
                resumed += 1
    return f"{resumed} stops in steps 1 to {STEPS}: weights, averages, optimiser and logged losses the same"


def validations(folder: Path, count: int) -> str:
    """Stop a run as a validation with a grid of 1,002 NFE is due or under way: by SIGTERM once, twice, or kill -9."""
    grid = "{class_path: ncsn.samplers.AnnealedLangevin, init_args: {epsilon: 1.0e-6, steps: 167}}"
    sampler = "{class_path: ncsn.samplers.AnnealedLangevin, init_args: {epsilon: 1.0e-3, steps: 1}}"
    config = CONFIG.replace("max_steps: 18, val_check_interval: 4", "max_steps: 9, val_check_interval: 3")
    config = config.replace("every: 1}", "every: 1000}").replace("width: 4", "width: 16")
    whole = Folder(folder / "whole", config)
    whole.run()
    expected, latest, longest = whole.final(9), 0.0, 0.0
    for i in range(count):
        run = Folder(folder / f"{i}", config.replace(sampler, grid).replace("count: 0", "count: 64"))
        times, number = random.choice([1, 2]), signal.SIGTERM
        if due := i % 2 == 0:
            process = run.start(command=partial(signalled, 3, times))
        else:
            process = run.start(command=partial(signalled, 3, 0))
            while not (run.path / "stepped").exists():
                time.sleep(0.01)
            time.sleep(random.uniform(1, 3))  # the checkpoint is there
            number = random.choice([signal.SIGTERM, signal.SIGKILL])
            for _ in range(times):
                os.kill(process, number)
        sent = time.time()
        status = ended(process)
        assert status == (128 + number if number == signal.SIGTERM else -number), f"{status}: {run.errors()}"
        took = time.time() - sent
        stepped = (run.path / "stepped").stat().st_mtime
        checkpoint = run.path / "checkpoints/run/step=3.ckpt"
        checkpoint_file.read(checkpoint)
        latest = max(latest, checkpoint.stat().st_mtime - stepped)
        assert latest < 2, f"the checkpoint came {latest:.1f} s after the step"
        if not due:
            longest = max(longest, took)
            assert longest < 5, f"the validation went on for {longest:.1f} s"
        (run.path / "run.yaml").write_text(config)
        run.run(*run.go_on())
        assert same(run.final(9), expected), "the weights are others"
        shutil.rmtree(run.path)
    return (
        f"{count} stops at a validation with a grid of 1,002 NFE: a whole checkpoint at most {latest:.2f} s after the "
        f"step, the process at its end at most {longest:.2f} s after the signal, and the resumed runs ended as one "
        "left alone"
    )


def groups(folder: Path, count: int) -> str:
    """Signal all processes of a run at once, as Ctrl-C does, whose images two workers stream: every `count`-th step."""
    (folder / "images").mkdir()
    for i, pixels in enumerate(torch.randint(256, (50, 8, 8), dtype=torch.uint8)):
        Image.fromarray(pixels.numpy()).save(folder / f"images/{i}.png")
    data = f"root: {folder / 'images'}, size: 8, channels: 1, memory: 0, workers: 2, batch_size: 8"
    config = CONFIG.replace("ncsn.data.Digits", "ncsn.data.ImageFolder").replace("batch_size: 256", data)
    config = config.replace("every: 1}", "every: 1000}").replace("max_steps: 18", "max_steps: 10")
    whole = Folder(folder / "whole", config)
    whole.run()
    expected, logged, steps = whole.final(10), whole.logged(), range(count, 10, count)
    for step in steps:
        number = random.choice(SIGNALS)
        run = Folder(folder / f"{step}", config)
        status = ended(run.start(command=partial(signalled, step, number=number, group=True)))
        assert status == 128 + number, f"{status} for {number} in step {step}: {run.errors()}"
        assert step in numbered(run.path / "checkpoints/run").values(), f"step {step} was not saved"
        run.run(*run.go_on())
        assert same(run.final(10), expected), f"other weights after step {step}"
        assert run.logged() == logged, f"other losses after step {step}"
    return f"{len(steps)} signals to all processes of a run with two workers: the step saved, and resumed exactly"


def by_signal(run: Folder, step: int) -> None:
    """Run until a SIGTERM in a step ends it."""
    status = ended(run.start(command=partial(signalled, step)))
    assert status == 128 + signal.SIGTERM, f"{status}: {run.errors()}"


def by_end(run: Folder, step: int) -> None:
    """Run until a step, which is its last."""
    run.run("--trainer.max_steps", str(step))


def signalled(step: int, times: int = 1, number: int = signal.SIGTERM, group: bool = False) -> None:
    """`train`, which signals itself, or its group, so often in a step, and leaves a file when that is taken."""
    if group:
        os.setpgrp()
    original, stepped = ScoreModule.training_step, ScoreModule.on_before_optimizer_step

    def training_step(self: ScoreModule, *batch: object) -> object:
        if self.global_step == step - 1:
            for _ in range(times):
                (os.killpg if group else os.kill)(os.getpid(), number)
        return original(self, *batch)  # type: ignore[arg-type]

    def on_before_optimizer_step(self: ScoreModule, optimizer: torch.optim.Optimizer) -> None:
        stepped(self, optimizer)
        if self.global_step == step - 1:
            Path("stepped").touch()

    ScoreModule.training_step = training_step  # type: ignore[assignment, method-assign]
    ScoreModule.on_before_optimizer_step = on_before_optimizer_step  # type: ignore[method-assign]
    sys.argv[1:1] = ["--config", "run.yaml"]
    train()
