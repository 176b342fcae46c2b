"""The settings that make training fast on a GPU: kernels, layouts, compilation."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["compiled", "use_fast_kernels"]

MOST_SHAPES = 256  # of the parts of one network, each of which is compiled


def use_fast_kernels() -> None:
    """On CUDA, choose TF32 for float32 matrix products, and convolutions by trying them.

    Call it before a `Trainer` is made, whose `benchmark` and `deterministic` override it.
    """
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True


@contextmanager
def compiled(network: nn.Module, graphs: bool = False) -> Iterator[None]:
    """Compile a network for the batch shapes that it is called with in this context.

    If it has a method `compiled_parts()`, these parts are compiled one by one, and those of
    equal shapes share their code. Otherwise it is compiled whole.

    Args:
        network: the network.
        graphs: compile the whole network into CUDA graphs. Its output and the gradients of
            its weights are then overwritten by the next step.
    """
    parts = [network] if graphs else getattr(network, "compiled_parts", lambda: [network])()
    # By itself, inductor leaves channels_last in training if a convolution has few outputs.
    options = {"force_layout_optimization": True} | ({"triton.cudagraphs": True} if graphs else {})
    try:
        for part in parts:
            part.compile(
                fullgraph=True, dynamic=False, options=dict(options), recompile_limit=MOST_SHAPES
            )
        yield
    finally:
        for part in parts:
            part._compiled_call_impl = None  # `compile(disable=True)` would count as compiled
