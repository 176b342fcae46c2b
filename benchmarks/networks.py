"""Our network beside others' of as much work: `python -m benchmarks.networks`.

Each network is called as its own project's examples do it, and trains (forward, backward, optimiser) in float32 with
AdamW; ours does as the recipe of Fashion-MNIST, with its optimiser, in bf16. Widths are chosen so that a forward pass
takes as many operations, to 10 %. All keep freed memory, as our commands do.
Printed are images a second as multiples of diffusers', and what part of the machine's peak a training step reaches, of
which the operations of the optimiser are a part too (our Newton-Schulz): the peak is the most operations a second that
a 3x3 convolution, forward and backward, reached in the same run, in float32 or bf16, whichever the network runs in.

It needs the packages of `pip install -e '.[benchmark]'`.
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
    """A network, how it is called on pictures (B, 1, H, W) and noise levels (B,), and how it is trained."""

    network: nn.Module
    call: Callable[[nn.Module, Tensor, Tensor], Tensor]
    dtype: torch.dtype = torch.float32
    optimizer: Callable[..., Optimizer] = torch.optim.AdamW


class Modulated(nn.Module):
    """azula's U-Net with an embedding of the level, as its examples give it one."""

    def __init__(self, features: int = 64, **settings: Any) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(1, features), nn.SiLU(), nn.Linear(features, features))
        self.network = AzulaUNet(1, 1, cond_channels=0, mod_features=features, **settings)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        out: Tensor = self.network(x, self.embed(level.unsqueeze(1)))
        return out


def entries() -> dict[str, Entry]:
    """The networks, the one that the others are measured by first."""
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
            UNet(1, width=48, multipliers=[1, 2], blocks=1, patch=2),
            lambda net, x, level: net(x, level.view(-1, 1, 1, 1)),
            torch.bfloat16,
            MuonAdam,
        ),
    }


def operations(work: Callable[[], None]) -> float:
    """Billions of multiplications and additions in the convolutions and matrix products of some work."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops()) / 1e9


def training(entry: Entry, x: Tensor) -> Callable[[], None]:
    """A training step."""
    optimizer = entry.optimizer(entry.network.parameters(), lr=1e-4)
    level = torch.rand(len(x))

    def step() -> None:
        with precision(entry):
            loss = functional.mse_loss(entry.call(entry.network, x, level).float(), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def drawing(entry: Entry, x: Tensor) -> Callable[[], None]:
    """A call, as a sampler makes it."""
    level = torch.rand(len(x))

    @torch.no_grad()
    def call() -> None:
        with precision(entry):
            entry.call(entry.network, x, level)

    return call


def precision(entry: Entry) -> Any:
    """Autocast, for a network that runs in bf16."""
    return nullcontext() if entry.dtype == torch.float32 else torch.autocast("cpu", entry.dtype)


def peak(
    dtype: torch.dtype, channels: int = 128, batch: int = 64, size: int = 14
) -> tuple[Callable[[], None], float]:
    """A convolution, forward and backward, and the billions of operations that it takes."""
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
    parser = argparse.ArgumentParser(description="Networks side by side, at as much work.")
    parser.add_argument("--batch", type=int, default=128, help="pictures in a batch (128)")
    parser.add_argument("--rounds", type=int, default=15, help="(15)")
    options = parser.parse_args()
    x = torch.rand(options.batch, 1, SIZE, SIZE)
    networks = entries()
    peaks = {dtype: peak(dtype) for dtype in (torch.float32, torch.bfloat16)}
    steps = {name: training(entry, x) for name, entry in networks.items()}
    calls = {name: drawing(entry, x) for name, entry in networks.items()}
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
    show(["network", "GFLOP a picture", "training", "drawing", "of the convolutions' peak"], rows)
    print(
        f"Images/s as multiples of {first}'s; {torch.get_num_threads()} threads, batches of {options.batch}."
    )


if __name__ == "__main__":
    main()
