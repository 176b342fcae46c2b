"""Measure the package on one GPU: `python -m benchmarks.gpu FOLDER --minutes 8 --out DIR`.

FOLDER holds CIFAR-10 and MNIST as torchvision lays them out; random images replace a data set
that is not there. Each part prints a table; DIR/gpu.json is written after each measurement.

- peaks: 3x3 convolutions and a matrix product in bf16.
- sampling: the model of cifar10_hour at 20 NFE, and as many bare calls of its network. Layout and
  precision are the same. Sampling takes less time than the calls if it replays a CUDA graph.
- tests: `pytest -m gpu`.
- bare: the training step (loss, backward, guard, optimiser) without Lightning.
- train: the training step by `ncsn train`, which chooses the layout and ("auto") how to compile.
- diffusers: its UNet2DModel for CIFAR-10, with AdamW, as in its training example.

The steps are those of the configurations, in their precision. The share of the peak counts
convolutions and matrix products, forward and backward, against the rate of the matrix product.
The compiler keeps a cache, so only the first of equal networks shows its whole time to the first
step. A part that has used up its time skips the rest. `--toy` runs everything on a CPU at toy
size, and compiles nothing.
"""

import argparse
import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

if not __package__:  # python benchmarks/gpu.py
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import ROOT
from benchmarks.bench import Bench, batch_of, built, flops, loss_of
from benchmarks.sidebyside import show
from benchmarks.within import Row, measured
from ncsn.cli.errors import silence_libraries
from ncsn.noise import KarrasSchedule
from ncsn.samplers import DPMSolver
from ncsn.score import Denoiser
from ncsn.training import compilation
from ncsn.training.gpu import compiled, use_fast_kernels
from ncsn.training.module import gradient_norm
from ncsn.training.optimisers import skip_step
from ncsn.training.run import check, fit

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
# The norm of each configuration, and the one that compiled fastest.
NORMS = {"cifar10_hour": ("group8", "rms"), "mnist": ("layer", "rms"), "digits": ("group", "rms")}
CONVOLUTIONS = (128, 32), (256, 32), (256, 16), (256, 8), (512, 8)  # channels, side
COMPILED = "eager", "parts", "graphs"
NFE = 20
USED = 0.95  # of the time; the rest is for imports and the end

Measurement = tuple[Row, Callable[[], Row]]  # what is measured, and the function that measures it


def peaks(bench: Bench) -> Iterator[Measurement]:
    """Yield the matrix product and the convolutions."""
    size = 256 if bench.toy else 8192
    yield {"work": f"matrices {size} x {size}"}, partial(matrices, bench, size)
    for (channels, side), layout in product(CONVOLUTIONS, LAYOUTS):
        what = {"work": f"3x3, {channels} channels, {side} x {side}", "layout": layout}
        yield what, partial(convolution, bench, channels, side, LAYOUTS[layout])


def matrices(bench: Bench, size: int) -> Row:
    """Measure the product of two square matrices."""
    x = torch.randn(size, size, device=bench.device, dtype=torch.bfloat16)
    return {"TFLOP/s": 2 * size**3 / bench.median(lambda: x @ x, bench.steps) / 1e12}


def convolution(bench: Bench, channels: int, side: int, layout: torch.memory_format) -> Row:
    """Measure a convolution."""
    batch = next(iter(bench.batches.values()))
    shapes = (batch, channels, side, side), (channels, channels, 3, 3)
    x, weight = (torch.randn(shape, device=bench.device, dtype=torch.bfloat16) for shape in shapes)
    x, weight = x.to(memory_format=layout), weight.to(memory_format=layout)
    seconds = bench.median(lambda: functional.conv2d(x, weight, padding=1), bench.steps)
    return {"TFLOP/s": 2 * batch * weight.numel() * side**2 / seconds / 1e12}


def with_norms(bench: Bench) -> list[tuple[str, str]]:
    """Return the configurations, each with its norms."""
    return [(config, norm) for config in bench.batches for norm in NORMS[config]]


def bare(bench: Bench) -> Iterator[Measurement]:
    """Yield the training steps without Lightning; those that compile come last."""
    for how, layout, (config, norm) in product(COMPILED, LAYOUTS, with_norms(bench)):
        what = {"config": config, "batch": bench.batches[config], "norm": norm}
        what |= {"layout": layout, "compiled": how}
        if how != "graphs" or layout == "channels_last":
            yield what, partial(bare_steps, bench, config, norm, LAYOUTS[layout], how)


def bare_steps(bench: Bench, config: str, norm: str, layout: torch.memory_format, how: str) -> Row:
    """Measure the training step of a configuration without Lightning."""
    run = built(bench, config, **{"denoiser.network.norm": norm})
    module, x = run.model.to(bench.device).to(memory_format=layout), batch_of(run, bench.device)
    flop, optimizer = flops(partial(loss_of, run), x), module.optimizer(module.parameters())
    network: Any = module.denoiser.network

    def step() -> None:
        optimizer.zero_grad()
        loss_of(run, x).backward()
        skip_step(optimizer, ~gradient_norm(module.parameters()).isfinite())
        optimizer.step()

    if how == "graphs":  # otherwise `torch.compiler.reset` imports it, and fails by that
        import_module("torch._inductor.cudagraph_trees")
    eager = contextlib.nullcontext()
    with eager if how == "eager" else compiled(network, graphs=how == "graphs"):
        return bench.timed_steps(step, len(x), flop)


class Clock(Callback):
    """The times at the end of the first step, and of each round of steps, the last of the run."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.times = [time.perf_counter()]

    def on_train_batch_end(self, trainer: Any, *_: object) -> None:
        if (trainer.global_step - 1) % self.bench.steps == 0:
            self.bench.wait()
            self.times.append(time.perf_counter())
            trainer.should_stop = len(self.times) == 3 + self.bench.rounds

    def seconds(self) -> tuple[float, float]:
        """Return those of the first step, and of a later one, after a round of warm-up."""
        first, _, *rounds = (
            end - start for start, end in zip(self.times, self.times[1:], strict=False)
        )
        return first, statistics.median(rounds) / self.bench.steps


def train(bench: Bench) -> Iterator[Measurement]:
    """Yield the training steps by `ncsn train`; those that compile come last."""
    for how, (config, norm) in product((*COMPILED, "auto"), with_norms(bench)):
        what = {"config": config, "batch": bench.batches[config], "norm": norm}
        yield what | {"compiled": how}, partial(trained_steps, bench, config, norm, how)


def trained_steps(bench: Bench, config: str, norm: str, how: str) -> Row:
    """Measure the training step of a configuration by `ncsn train`."""
    run = built(bench, config, how, **{"denoiser.network.norm": norm})
    x = batch_of(run, torch.device("cpu"))
    flop = flops(partial(loss_of, run), x)
    choose: Any = compilation.choose if how == "auto" else lambda *_: how
    with contextlib.redirect_stdout(io.StringIO()), patch.object(compilation, "choose", choose):
        check(run)
        clock = Clock(bench)
        run.trainer.callbacks.append(clock)
        fit(run)
    chosen = [c.choice for c in run.trainer.callbacks if isinstance(c, compilation.Compilation)]
    return {"chosen": chosen[0]} | bench.training_row(len(x), flop, *clock.seconds())


def diffusers(bench: Bench) -> Iterator[Measurement]:
    """Yield the training steps of the network of diffusers."""
    batch = next(iter(bench.batches.values()))
    for compiles in (False, True):
        what = {"network": "UNet2DModel", "batch": batch, "compiled": compiles}
        yield what, partial(diffusers_steps, bench, batch, compiles)


def diffusers_steps(bench: Bench, batch: int, compiles: bool) -> Row:
    """Measure the training step of the network of diffusers, in bf16."""
    try:
        from diffusers import UNet2DModel
    except ImportError:
        return {"note": "skipped: diffusers is not installed"}
    network: nn.Module = UNet2DModel(
        sample_size=32,
        block_out_channels=[32] * 4 if bench.toy else [128, 256, 256, 256],
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    ).to(bench.device)
    x = torch.rand(batch, 3, 32, 32, device=bench.device)

    def loss(x: Tensor) -> Tensor:
        with torch.autocast(bench.device.type, torch.bfloat16):
            out = network(x, torch.ones(len(x), device=x.device)).sample
        return functional.mse_loss(out.float(), x)

    flop, optimizer = flops(loss, x), torch.optim.AdamW(network.parameters(), fused=True)
    if compiles:
        network.compile(dynamic=False)

    def step() -> None:
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()

    return bench.timed_steps(step, batch, flop)


def sampling(bench: Bench) -> Iterator[Measurement]:
    """Yield sampling in several batch sizes, first in the layout that the package chooses."""
    for layout, count in product(LAYOUTS, (2, 4) if bench.toy else (64, 256, 1024)):
        what = {"samples": count, "NFE": NFE, "layout": layout}
        yield what, partial(sampled, bench, count, LAYOUTS[layout])


def sampled(bench: Bench, count: int, layout: torch.memory_format) -> Row:
    """Measure sampling as `ncsn sample` does it, and as many bare calls of the network."""
    run = built(bench, next(iter(bench.batches)))
    model, plugin = run.model.eval().model.to(bench.device), run.trainer.precision_plugin
    model.to(memory_format=layout)
    sampler, sigmas = DPMSolver(eta=2.0), KarrasSchedule(10, 0.02, NFE).sigmas()
    shapes = (count, *model.shape), ()
    x, level = (torch.rand(shape, device=bench.device) for shape in shapes)
    assert isinstance(model.denoiser, Denoiser)
    network = model.denoiser.network
    with plugin.forward_context(), torch.no_grad():
        seconds = bench.median(lambda: model.sample(count, sampler=sampler, sigmas=sigmas))
        calls = NFE * bench.median(lambda: network(x, level), NFE)
    return {"images/s": count / seconds, "over bare calls": seconds / calls}


def tests(bench: Bench) -> Iterator[Measurement]:
    """Yield the run of the tests that need a GPU."""
    yield {"command": "pytest -m gpu"}, partial(tested, bench)


def tested(bench: Bench) -> Row:
    """Run the tests, keep what they print in DIR/tests.txt, and return which fail and how many pass."""
    output, files = bench.out / "tests.txt", ["tests/test_gpu.py"] if bench.toy else []
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-n", "0", "-m", "gpu", *files]
    with output.open("w") as file:  # `run` ends the tests if the time is up
        status = subprocess.run(command, cwd=ROOT, stdout=file, stderr=file).returncode
    *before, last = output.read_text().splitlines() or [""]
    failed = [line for line in before if line.startswith(("FAILED", "ERROR"))]
    return {"exit status": status, "result": "\n".join([*failed, last])}


# The parts, with their shares of the time. What a part leaves is the next one's.
PARTS: dict[str, tuple[float, Callable[[Bench], Iterator[Measurement]]]] = {
    "peaks": (0.04, peaks),
    "sampling": (0.09, sampling),
    "tests": (0.2, tests),
    "bare": (0.42, bare),
    "train": (0.2, train),
    "diffusers": (0.05, diffusers),
}


def run_part(bench: Bench, name: str, deadline: float) -> None:
    """Take the measurements of a part, and save the results after each."""
    rows: list[Row] = bench.results.setdefault(name, [])
    for what, measure in PARTS[name][1](bench):
        rows.append(measured(what, measure, deadline))
        bench.save()


def show_part(name: str, rows: list[Row]) -> None:
    """Print the table of a part, whose rows may lack columns."""
    print(f"\n{name}", flush=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    show(columns, [[shown(row.get(key, "")) for key in columns] for row in rows])


def shown(value: object) -> str:
    """Return a value as a table shows it."""
    return f"{value:,.3g}" if isinstance(value, float) else str(value)


def run_parts(bench: Bench, names: list[str], end: float) -> None:
    """Run and print the parts in turn, so that all end before `end`, a time of `time.monotonic`."""
    shares = [PARTS[name][0] for name in names]
    for i, name in enumerate(names):
        now = time.monotonic()
        run_part(bench, name, now + (end - now) * shares[i] / sum(shares[i:]))
        show_part(name, bench.results[name])


def main() -> None:
    """Read the options, and measure in a temporary folder."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="CIFAR-10 and MNIST, if they are there")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all parts (8)")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder for results (gpu)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(all)")
    parser.add_argument("--toy", action="store_true", help="run all of it on a CPU, as a test")
    options = parser.parse_args()
    if not (options.toy or torch.cuda.is_available()):
        sys.exit("error: expected a GPU, found none; --toy runs all of it on a CPU")
    silence_libraries()
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.folder.resolve(), options.out.resolve(), options.toy)
    name = "CPU" if options.toy else torch.cuda.get_device_name()
    use_fast_kernels()  # as `ncsn train` does
    bench.results |= {"device": name, "torch": torch.__version__}
    stance = torch.compiler.set_stance("force_eager" if options.toy else "default")
    with tempfile.TemporaryDirectory() as folder, stance:
        os.chdir(folder)
        run_parts(bench, options.parts, began + USED * 60 * options.minutes)
        os.chdir(ROOT)
    for config, images in bench.results["data"].items():
        print(f"Data of {config}: {images}")
    print(f"Results: {bench.out / 'gpu.json'}")


if __name__ == "__main__":
    main()
