"""Compare the U-Net with those of other packages: `python -m benchmarks.networks`.

Each network trains (forward, backward, optimiser) in float32 with AdamW, as in the examples of
its own project. The U-Net of this package trains as in the recipe of Fashion-MNIST, with its
optimiser and in bf16. Widths are chosen so that the forward passes have the same cost to 10 %.
The table shows images/s as multiples of those of diffusers, and the share of the peak of the
machine that a training step reaches, where the step includes the operations of the optimiser
(Newton-Schulz). The peak is the highest rate of a 3x3 convolution, forward and backward, in the
same run and in the data type of the network.

Needed packages: `pip install -e '.[benchmark]'`.
"""

import argparse
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from azula.nn.unet import UNet as AzulaUNet
from denoising_diffusion_pytorch import Unet as LucidrainsUnet
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.sidebyside import interleaved, median_ratio, show
from ncsn.networks import UNet
from ncsn.training.optimisers import MuonAdam

SIZE = 28


class Entry(NamedTuple):
    """A network, its call on images (B, 1, H, W) and noise levels (B,), and its training."""

    network: nn.Module
    call: Callable[[nn.Module, Tensor, Tensor], Tensor]
    dtype: torch.dtype = torch.float32
    optimizer: Callable[..., Optimizer] = torch.optim.AdamW


class Modulated(nn.Module):
    """The U-Net of azula with an embedding of the noise level, as in its examples."""

    def __init__(self, features: int = 64, **settings: Any) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(1, features), nn.SiLU(), nn.Linear(features, features))
        self.network = AzulaUNet(1, 1, cond_channels=0, mod_features=features, **settings)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        out: Tensor = self.network(x, self.embed(level.unsqueeze(1)))
        return out


def entries() -> dict[str, Entry]:
    """Return the networks, with the reference first."""
    down, up = ("DownBlock2D", "DownBlock2D"), ("UpBlock2D", "UpBlock2D")
    theirs = UNet2DModel(
        SIZE, 1, 1, layers_per_block=2, block_out_channels=(16, 24), norm_num_groups=4, down_block_types=down,
        up_block_types=up, add_attention=False,
    )  # fmt: skip
    return {
        "diffusers UNet2DModel": Entry(theirs, lambda net, x, level: net(x, level).sample),
        "denoising-diffusion-pytorch Unet": Entry(
            LucidrainsUnet(14, dim_mults=(1, 2), channels=1, attn_dim_head=8),
            lambda net, x, level: net(x, level),
        ),
        "azula UNet": Entry(
            Modulated(hid_channels=(20, 32), hid_blocks=(2, 2)), lambda net, x, level: net(x, level)
        ),
        "ncsn UNet": Entry(
            UNet(1, width=48, multipliers=[1, 2], blocks=1, patch=2, norm="layer"),
            lambda net, x, level: net(x, level.view(-1, 1, 1, 1)),
            torch.bfloat16,
            MuonAdam,
        ),
    }


def operations(work: Callable[[], None]) -> float:
    """Return the GFLOP of the convolutions and matrix products in a call of `work`."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops()) / 1e9


def training(entry: Entry, x: Tensor) -> Callable[[], None]:
    """Return a function that takes a training step."""
    optimizer = entry.optimizer(entry.network.parameters(), lr=1e-4)
    level = torch.rand(len(x))

    def step() -> None:
        with precision(entry):
            loss = functional.mse_loss(entry.call(entry.network, x, level).float(), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def sampling(entry: Entry, x: Tensor) -> Callable[[], None]:
    """Return a function that evaluates the network as a sampler does."""
    level = torch.rand(len(x))

    @torch.no_grad()
    def call() -> None:
        with precision(entry):
            entry.call(entry.network, x, level)

    return call


def precision(entry: Entry) -> Any:
    """Return autocast for a network that runs in bf16."""
    return nullcontext() if entry.dtype == torch.float32 else torch.autocast("cpu", entry.dtype)


def peak(
    dtype: torch.dtype, channels: int = 128, batch: int = 64, size: int = 14
) -> tuple[Callable[[], None], float]:
    """Return a function that runs a convolution forward and backward, and its GFLOP."""
    convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(
        dtype, memory_format=torch.channels_last
    )
    x = (
        torch.randn(batch, channels, size, size, dtype=dtype)
        .to(memory_format=torch.channels_last)
        .requires_grad_()
    )

    def run() -> None:
        convolution(x).backward(x.detach())

    return run, 3 * 2 * 9 * batch * channels**2 * size**2 / 1e9


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description="Compare networks of the same cost.")
    parser.add_argument("--batch", type=int, default=128, help="batch size (128)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (15)")
    options = parser.parse_args()
    x = torch.rand(options.batch, 1, SIZE, SIZE)
    networks = entries()
    peaks = {dtype: peak(dtype) for dtype in (torch.float32, torch.bfloat16)}
    steps = {name: training(entry, x) for name, entry in networks.items()}
    calls = {name: sampling(entry, x) for name, entry in networks.items()}
    convolutions = {str(dtype): convolution for dtype, (convolution, _) in peaks.items()}
    trained, drawn = (
        interleaved(steps | convolutions, options.rounds),
        interleaved(calls, options.rounds),
    )
    first, rows = next(iter(networks)), []
    for name, entry in networks.items():
        work = operations(calls[name]) / options.batch
        best = peaks[entry.dtype][1] / statistics.median(trained[str(entry.dtype)])
        reached = operations(steps[name]) / statistics.median(trained[name])
        faster = (
            f"{median_ratio(seconds[first], seconds[name]):.2f}" for seconds in (trained, drawn)
        )
        rows.append(
            [
                name,
                f"{work:.3f}",
                *faster,
                f"{reached / best:.0%} of {str(entry.dtype).removeprefix('torch.')}",
            ]
        )
    show(
        ["network", "GFLOP per image", "training", "sampling", "share of the convolutions' peak"],
        rows,
    )
    print(
        f"Images/s as multiples of {first}'s; {torch.get_num_threads()} threads, batches of {options.batch}."
    )


if __name__ == "__main__":
    main()
