"""A model on a CUDA GPU: the layout of its weights, and graphs of its score."""

import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ncsn.score import Denoiser, Score, ScoreModel

__all__ = ["by_graphs", "use_layout_of"]

LAUNCH_BOUND = 0.8  # the share of a call's time after which its kernels are launched
TOLERANCE = 1e-2  # relative error of a graph, far above that of bf16
MOST_GRAPHS = 4  # of a model; each keeps the memory of a call

Inputs = tuple[Tensor, Tensor, Tensor | None]  # x, sigma, label


def layout_on(device: torch.device) -> torch.memory_format:
    """Return the layout of weights that is fastest on a device."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def use_layout_of(device: torch.device, module: nn.Module) -> None:
    """Bring the weights of 2-D convolutions into the layout that is fastest on a device."""
    for weight in chain(module.parameters(), module.buffers()):
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=layout_on(device))


def is_graphed_on(device: torch.device) -> bool:
    """Return True if calls on a device can be recorded as graphs."""
    return device.type == "cuda"


def by_graphs(model: nn.Module, denoiser: ScoreModel, score: Score) -> Score:
    """Return a score (x, sigma) in sampling, by CUDA graphs if `score` is the denoiser's own.

    A graph is one launch for all kernels of a call. There is one for each shape, if the launches
    take most of the time of a call. They are kept as long as the model and the places of its
    weights in memory. Anything else is called as it is: other functions, energies, compiled
    networks, those with hooks, calls that are differentiated, and calls on other devices.
    """
    if not (isinstance(denoiser, Denoiser) and isinstance(score, partial)):
        return score
    weight = next(denoiser.parameters(), None)
    if weight is None or not is_graphed_on(weight.device) or score.func != denoiser.score:
        return score
    graphs = _graphs.setdefault(model, Graphs())
    graphs.follow(denoiser)
    return partial(graphs.score, **score.keywords)


class Graphs:
    """The score of a denoiser, by graphs."""

    def __init__(self) -> None:
        self.denoiser: Denoiser | None = None
        self.weights: list[Any] = []
        self.are_allowed = True
        # For each kind of call: 0 after the first, then its replay, or None if it is called.
        self.calls: dict[tuple[Any, ...], Replay | int | None] = {}

    def follow(self, denoiser: Denoiser) -> None:
        """Forget the graphs if they are of other weights, or of weights that have moved."""
        tensors = chain(denoiser.parameters(), denoiser.buffers())
        weights = [(t.data_ptr(), t.shape, t.stride(), t.dtype, t.device) for t in tensors]
        if denoiser is not self.denoiser or weights != self.weights:
            self.calls.clear()
        self.denoiser, self.weights = denoiser, weights
        self.are_allowed = not any(map(does_more, denoiser.modules()))

    def score(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return grad_x log p_sigma(x), of the shape of `x`."""
        assert self.denoiser is not None
        call = partial(self.denoiser.score, x, sigma, label)
        if is_differentiated(x) or not self.are_allowed:
            return call()
        sigma = torch.as_tensor(sigma)
        contexts = *autocast_on(x.device), torch.is_inference_mode_enabled()
        key = kind_of(x), kind_of(sigma), kind_of(label), *contexts
        if key not in self.calls:  # libraries and caches are set up
            self.calls[key] = 0
            return call()
        known = self.calls[key]
        if isinstance(known, Replay):
            return known(x, sigma, label)
        if known is None:
            return call()
        out, launched, seconds = timed(call, x.device)
        self.calls[key] = None
        if launched > LAUNCH_BOUND * seconds:
            if sum(isinstance(other, Replay) for other in self.calls.values()) == MOST_GRAPHS:
                self.calls.clear()
            self.calls[key] = self.recorded((x, sigma, label), out, seconds)
        return out

    def recorded(self, inputs: Inputs, expected: Tensor, seconds: float) -> "Replay | None":
        """Return a replay of the call if it takes less than `seconds` and gives what is expected."""
        assert self.denoiser is not None
        try:
            replay = Replay(self.denoiser.score, *inputs)
            replay(*inputs)  # the first one brings the graph to the device
            out, _, replayed = timed(partial(replay, *inputs), expected.device)
        except RuntimeError:  # it cannot be recorded, or has no room
            return None
        is_same = (out - expected).norm() <= TOLERANCE * expected.norm()
        return replay if replayed < seconds and is_same else None


class Replay:
    """The replay of a call of a score: (x, sigma, label) -> a tensor of its own."""

    def __init__(self, score: Callable[..., Tensor], *inputs: Tensor | None) -> None:
        x = inputs[0]
        assert x is not None
        self.inputs = [t if t is None else t.to(x.device, copy=True) for t in inputs]
        # The weights that autocast has cast are gone before the graph is.
        dtype, enabled = autocast_on(x.device)
        without_cache = torch.autocast(x.device.type, dtype, enabled, cache_enabled=False)
        self.lock = Lock()  # of the inputs and the output
        self.replay, self.output = record(without_cache(partial(score, *self.inputs)), x.device)

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        with self.lock:
            for buffer, given in zip(self.inputs, inputs, strict=True):
                if buffer is not None and given is not None:
                    buffer.copy_(given)
            self.replay()
            return self.output.clone()


_graphs: WeakKeyDictionary[nn.Module, Graphs] = WeakKeyDictionary()


def record(call: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """Return the replay of a call as a CUDA graph, and the output that it fills."""
    # A capture that fails leaves its stream the current one; the outer context restores it.
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up for the stream
            call()
        # The graph keeps pointers to workspaces of cuBLAS, and needs its own in its own memory.
        torch._C._cuda_clearCublasWorkspaces()
        # Other threads, as those that load data, may use the device meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            output = call()
    return graph.replay, output


def timed(call: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float, float]:
    """Return the result of a call, and the seconds to launch it and in all."""
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    out = call()
    launched = time.perf_counter() - began
    torch.cuda.synchronize(device)
    return out, launched, time.perf_counter() - began


def kind_of(tensor: Tensor | None) -> tuple[Any, ...] | None:
    """Return the shape and dtype of a tensor, for which a graph is made."""
    return None if tensor is None else (tensor.shape, tensor.dtype)


def autocast_on(device: torch.device) -> tuple[torch.dtype, bool]:
    """Return the dtype of autocast, and True if it is on."""
    return torch.get_autocast_dtype(device.type), torch.is_autocast_enabled(device.type)


def is_differentiated(x: Tensor) -> bool:
    """Return True if a call at `x` is differentiated, in any way, or vectorised."""
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(x)
    return torch.is_grad_enabled() or forward_ad._current_level >= 0 or wrapped


def does_more(module: nn.Module) -> bool:
    """Return True if calling a module does more than launch its kernels, or is compiled."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(hooks) or module._compiled_call_impl is not None
