"""Measure CIFAR-10 on one GPU: `python -m benchmarks.gpu FOLDER` takes about half an hour.

FOLDER holds the training images, in a folder for each class. The first part trains the U-Net of
configs/cifar10.yaml, compiled and in bf16, in turns with UNet2DModel of diffusers in the size of
its DDPM for CIFAR-10, in bf16 as in its training example. It prints images/s, and the share of
the rate at which the GPU multiplies large matrices in bf16. The second part runs the commands of
this package, and shows each of them: it trains the recipe for 20 minutes, samples a grid, and
evaluates samples in the features of a classifier of the same images.

`--toy` runs everything in a minute or two on a CPU, with a tiny network and without compiling, as
a test; its results mean nothing. Needed packages: `pip install -e '.[benchmark]'`.
"""

import argparse
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import ROOT
from benchmarks.sidebyside import interleaved, median_ratio, show
from ncsn.cli.errors import silence_libraries
from ncsn.training.run import build

CONFIG = ROOT / "configs" / "cifar10.yaml"
TOY_NETWORK = {"width": 8, "blocks": 1, "attention": "[]"}
TOY_CHANNELS = 32  # of diffusers' network at each resolution, in place of 128 and 256


def main() -> None:
    """Measure the speed, train, sample and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "folder", type=Path, help="the training images of CIFAR-10, in a folder for each class"
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="minutes of training (20)")
    parser.add_argument("--batch", type=int, default=512, help="batch size (512)")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds of ten steps (20)")
    parser.add_argument(
        "--count", type=int, default=10_000, help="number of samples to evaluate (10,000)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("gpu"), help="folder for all outputs (gpu)"
    )
    parser.add_argument(
        "--toy", action="store_true", help="test all of it on a CPU, with a tiny network"
    )
    options = parser.parse_args()
    if options.toy:
        options.minutes, options.batch, options.rounds, options.count = 0.2, 8, 2, 80
    elif not torch.cuda.is_available():
        sys.exit("error: expected a GPU, found none; --toy tests all of it on a CPU")
    options.folder = options.folder.resolve()
    silence_libraries()
    options.out.mkdir(parents=True)
    speed(options)
    commands(options)


def data_settings(folder: Path) -> list[str]:
    """Return the options of the data, for training and for the classifier."""
    return ["--data", "ncsn.data.ImageFolder", "--data.root", str(folder), "--data.size", "32"]


def recipe(options: argparse.Namespace) -> list[str]:
    """Return the options of the training command for the recipe, the data and the batch size."""
    settings = [
        "--config",
        str(CONFIG),
        *data_settings(options.folder),
        "--data.batch_size",
        str(options.batch),
    ]
    if options.toy:
        for name, value in TOY_NETWORK.items():
            settings += [f"--model.denoiser.network.{name}", str(value)]
        return settings
    return [*settings, "--model.compile", "true", "--model.optimizer.fused", "true"]


def speed(options: argparse.Namespace) -> None:
    """Train both networks in turns on random images, and print the table."""
    device = torch.device("cpu" if options.toy else "cuda")
    sys.argv = ["train.py", *recipe(options), "--trainer.logger", "false"]
    ours: nn.Module = build().model.denoiser.network.to(device)
    channels = [TOY_CHANNELS] * 4 if options.toy else [128, 256, 256, 256]
    theirs = UNet2DModel(
        sample_size=32,
        layers_per_block=2,
        block_out_channels=channels,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    ).to(device)
    calls: dict[str, tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]] = {
        "diffusers UNet2DModel": (theirs, lambda x, level: theirs(x, level).sample),
        "ncsn UNet, compiled": (ours, lambda x, level: ours(x, level.view(-1, 1, 1, 1))),
    }
    work = {name: operations(call, device) for name, (_, call) in calls.items()}
    if not options.toy:
        ours.compile(dynamic=False)
    size = 512 if options.toy else 8192
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    things = {
        name: training(network, call, options, device) for name, (network, call) in calls.items()
    }
    seconds = interleaved(
        things | {"peak": lambda: waited(lambda: matrix @ matrix, device)}, options.rounds
    )
    peak = 2 * size**3 / 1e9 / (statistics.median(seconds["peak"]) / 10)
    first, rows = next(iter(calls)), []
    for name, (network, _) in calls.items():
        rate = 10 * options.batch / statistics.median(seconds[name])
        parameters = sum(parameter.numel() for parameter in network.parameters())
        faster = f"{median_ratio(seconds[first], seconds[name]):.2f}"
        reached = f"{3 * work[name] * rate / peak:.0%}"
        rows.append([name, f"{parameters:,}", f"{work[name]:.3f}", f"{rate:.0f}", faster, reached])
    show(
        [
            "network",
            "parameters",
            "GFLOP per image",
            "images/s",
            "ratio",
            "share of the peak of bf16 matrices",
        ],
        rows,
    )


def operations(call: Callable[[Tensor, Tensor], Tensor], device: torch.device) -> float:
    """Return the GFLOP of the forward pass of one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(torch.randn(1, 3, 32, 32, device=device), torch.ones(1, device=device))
    return float(counter.get_total_flops()) / 1e9


def training(
    network: nn.Module,
    call: Callable[[Tensor, Tensor], Tensor],
    options: argparse.Namespace,
    device: torch.device,
) -> Callable[[], None]:
    """Return a function that takes ten training steps in bf16."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=not options.toy)
    x, level = (
        torch.rand(options.batch, 3, 32, 32, device=device),
        torch.rand(options.batch, device=device),
    )

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            out = call(x, level)
        loss = functional.mse_loss(out.float(), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return lambda: waited(step, device)


def waited(thing: Callable[[], Any], device: torch.device) -> None:
    """Call `thing` ten times, and wait for the device."""
    for _ in range(10):
        thing()
    if device.type == "cuda":
        torch.cuda.synchronize()


def commands(options: argparse.Namespace) -> None:
    """Train, sample and evaluate with the commands of the package, in the output folder."""
    steps = f"00:{int(options.minutes):02d}:{round(60 * options.minutes) % 60:02d}"
    features = "checkpoints/features_image_folder.safetensors"
    epochs = ["--epochs", "1"] if options.toy else ["--epochs", "10", "--precision", "bf16-mixed"]
    measured = ["--num-samples", str(options.count), "--features", features]
    python = sys.executable
    for command in (
        [
            python,
            "-m",
            "ncsn",
            "features",
            *data_settings(options.folder),
            "--data.labels",
            "true",
            *epochs,
        ],
        [
            python,
            str(ROOT / "train.py"),
            *recipe(options),
            "--name",
            "gpu",
            "--trainer.max_time",
            f"00:{steps}",
        ],
        [python, str(ROOT / "sample.py"), "--out", "grid.png"],
        [python, "-m", "ncsn", "evaluate", *measured, "--json", "figures.json"],
    ):
        print(f"\n$ {shlex.join(command)}", flush=True)
        status = subprocess.run(command, cwd=options.out).returncode
        if status:
            sys.exit(status)


if __name__ == "__main__":
    main()
