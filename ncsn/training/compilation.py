"""Compilation in training, chosen by measuring a step and tried before the first one."""

import math
import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ncsn.score import Denoiser
from ncsn.training.gpu import compiled

if TYPE_CHECKING:
    from ncsn.training.module import ScoreModule

__all__ = ["Choice", "Compilation", "choose"]

Choice = Literal["eager", "parts", "graphs"]

SHORT = 180  # seconds of training that do not repay compilation
PART = 8  # launches are timed in a step of 1/8 of the batch, for which the device needs little time
LAUNCHES = 0.7  # share of a step's time from which on launches dominate it
TRIED = 3  # steps: the first compiles, the second records CUDA graphs, the third replays them
MOST_SAID = 300  # characters of an error
HOW = {
    "eager": "nothing",
    "parts": "the network part by part",
    "graphs": "the network into CUDA graphs",
}


class Compilation(Callback):
    """The compilation of a network for the batches of a run, before its first step.

    Unless `always`, it compiles on CUDA alone, if `choose` says so after measuring a step.
    A run that must be deterministic is not measured, because a resumed one could choose
    otherwise. Batches of other shapes (validation, samples) run eagerly and never compile.

    Args:
        always: compile on any device, however short the run is, and raise an OSError if it
            fails. Otherwise a warning says so.
    """

    def __init__(self, always: bool = False) -> None:
        self.always = always
        self.choice: Choice | None = None  # from the first step on
        self.until_the_end = ExitStack()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.choice is None:
            self.choice = self.compile(trainer, pl_module, batch)  # type: ignore[arg-type]
        elif self.choice == "graphs":  # they overwrite the gradients of the step before
            for optimizer in trainer.optimizers:
                optimizer.zero_grad()
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    def on_fit_end(self, *_: Any) -> None:
        self.until_the_end.close()

    def on_exception(self, *_: Any) -> None:
        self.until_the_end.close()

    def compile(self, trainer: Trainer, module: "ScoreModule", batch: Any) -> Choice:
        """Compile the network as suits the run, and return how."""
        if not (self.always or may_pay(module)):
            return "eager"
        x, label = module.examples(batch)
        step = partial(gradients, trainer, module)
        with unchanged(module):
            choice = self.chosen(trainer, module, partial(measured, step, x, label))
            if choice == "eager":
                return "eager"
            show = getattr(trainer.progress_bar_callback, "show_status", lambda _: None)
            show("compiling")
            try:
                assert isinstance(module.denoiser, Denoiser)
                network = compiled(module.denoiser.network, graphs=choice == "graphs")
                self.until_the_end.enter_context(network)
                for _ in range(TRIED):
                    step(x, label)
            except Exception as error:
                self.until_the_end.close()
                reason = f"torch cannot compile this training here: {reason_of(error)}"
                if self.always and isinstance(error, torch.OutOfMemoryError):
                    raise
                if self.always:
                    raise OSError(f"model.compile: true, but {reason}") from error
                warnings.warn(f"{reason}; it goes on without (model.compile)", stacklevel=2)
                return "eager"
            finally:
                show("")
        self.until_the_end.enter_context(torch.compiler.set_stance("eager_on_recompile"))
        return choice

    def chosen(
        self, trainer: Trainer, module: LightningModule, measure: Callable[[], tuple[float, float]]
    ) -> Choice:
        """Return how to compile, the same on all devices, and say why."""
        choice: Choice = "parts" if self.always else "eager"
        why = "as asked" if self.always else "a deterministic run does not depend on the clock"
        if may_pay(module) and not torch.are_deterministic_algorithms_enabled():
            launches, seconds = trainer.strategy.broadcast(measure())
            left = trainer.estimated_stepping_batches - trainer.global_step
            steps = math.inf if self.always else left * trainer.accumulate_grad_batches
            # Graphs would overwrite gradients that are being accumulated.
            graphs = trainer.accumulate_grad_batches == 1
            choice = choose(launches if graphs else 0.0, seconds, steps)
            why = f"{1 / seconds:.3g} steps/s without, {launches / seconds:.0%} of it launches"
            if choice == "eager":
                why = f"the steps left take less than {SHORT // 60} minutes"
        say(f"{HOW[choice]} ({why})")
        return choice


def choose(launches: float, seconds: float, steps: float) -> Choice:
    """Return how to compile, from the measurements of an eager step.

    Args:
        launches: seconds of a step with a small part of the batch; 0 forbids CUDA graphs.
        seconds: seconds of a step.
        steps: the number of steps left.
    """
    if seconds * steps < SHORT:
        return "eager"
    return "graphs" if launches > LAUNCHES * seconds else "parts"


def measured(
    step: Callable[[Tensor, Tensor | None], None], x: Tensor, label: Tensor | None
) -> tuple[float, float]:
    """Return seconds of an eager step of 1 / PART of a batch (0 if it is too small), and of all."""
    few = len(x) // PART
    part = x[:few], None if label is None else label[:few]
    try:
        seconds = seconds_of(lambda: step(x, label))
        return seconds_of(lambda: step(*part)) if few else 0.0, seconds
    except Exception:  # without compilation it may not fit into memory; another error comes again
        return 0.0, math.inf


def may_pay(module: LightningModule) -> bool:
    """Return True if compilation may pay on the device of a module."""
    return module.device.type == "cuda"


def gradients(trainer: Trainer, module: "ScoreModule", x: Tensor, label: Tensor | None) -> None:
    """Compute the gradients of a training step, and forget them."""
    with trainer.precision_plugin.train_step_context():
        loss = module.random_losses(x, label)[0].mean()
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    torch.autograd.grad(loss, weights, allow_unused=True)


@contextmanager
def unchanged(module: LightningModule) -> Iterator[None]:
    """Restore torch's random numbers and the buffers of a module at the end."""
    buffers = [buffer.clone() for buffer in module.buffers()]
    with torch.random.fork_rng([module.device] if module.device.type == "cuda" else []):
        yield
    for buffer, kept in zip(module.buffers(), buffers, strict=True):
        buffer.copy_(kept)


def seconds_of(work: Callable[[], object], warm_up: int = 3, calls: int = 3) -> float:
    """Return the median seconds of work on a GPU, which is waited for."""
    times = []
    for _ in range(warm_up + calls):
        torch.cuda.synchronize()
        began = perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(perf_counter() - began)
    return statistics.median(times[warm_up:])


@rank_zero_only
def say(text: str) -> None:
    """Print how the network is compiled."""
    print(f"Compiling:   {text}", flush=True)


def reason_of(error: Exception) -> str:
    """Return the first paragraph of an error's message on one line, or its class."""
    paragraph = " ".join(str(error).strip().partition("\n\n")[0].split())
    return paragraph[:MOST_SAID] or type(error).__name__
