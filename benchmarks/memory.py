"""What it is worth on a CPU that freed memory is kept: `python benchmarks/memory.py`.

Two processes train and call the network of Fashion-MNIST's recipe, in turns. One of them keeps what its tensors free,
as our commands do; the other gives it back, as a program does by default. Printed is how many times as fast the first
is, and how much more memory it ever held. It tells something where the C library is glibc.
"""

import argparse
import resource
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch
from sidebyside import interleaved, median_ratio, show
from torch.nn import functional

from ncsn.networks import UNet
from ncsn.training.memory import keep_freed_memory
from ncsn.training.optimisers import MuonAdam


def work(orders: Connection, keep: bool) -> None:
    """Train on as many pictures as ordered, or draw as many; then tell how much memory was ever held, in MiB."""
    if keep:
        keep_freed_memory()
    network = UNet(1, width=48, multipliers=[1, 2], blocks=1, patch=2)
    optimizer = MuonAdam(network.parameters())
    while order := orders.recv():
        trains, count = order
        x = torch.rand(count, 1, 28, 28)
        with torch.set_grad_enabled(trains):
            with torch.autocast("cpu", torch.bfloat16):
                out = network(x, torch.zeros(count, 1, 1, 1))
            if trains:
                optimizer.zero_grad()
                functional.mse_loss(out.float(), x).backward()
                optimizer.step()
        orders.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(
        description="Freed memory kept, against freed memory given back."
    )
    parser.add_argument("--rounds", type=int, default=30, help="(30)")
    rounds = parser.parse_args().rounds
    rows, context, workers = [], get_context("spawn"), {}
    for keep in (True, False):
        workers[keep], theirs = context.Pipe()
        context.Process(target=work, args=(theirs, keep), daemon=True).start()
        theirs.close()  # so that a worker that dies ends this, too

    def asked(keep: bool, *order: object) -> Callable[[], float]:
        def ask() -> float:
            workers[keep].send(order)
            held: float = workers[keep].recv()
            return held

        return ask

    for trains, count in ((True, 64), (True, 128), (False, 64), (False, 250), (False, 1000)):
        both = {str(keep): asked(keep, trains, count) for keep in workers}
        seconds = interleaved(both, rounds)
        faster = median_ratio(seconds["False"], seconds["True"])
        more = both["True"]() - both["False"]()
        rows.append(
            [f"{'a step' if trains else 'a call'} of {count}", f"{faster:.2f}", f"{more:+.0f} MiB"]
        )
    for worker in workers.values():
        worker.send(None)
    show(["", "times as fast", "memory held so far"], rows)
    print(f"{torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
