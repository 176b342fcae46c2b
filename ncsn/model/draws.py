"""Sampling in batches, for commands and callbacks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ncsn.model.model import Model
from ncsn.noise.streams import Streams
from ncsn.samplers import Sampler
from ncsn.score import Score
from ncsn.score.precision import without_autocast

__all__ = ["Request", "batches", "default_batch_size", "draws"]


@dataclass(frozen=True)
class Request:
    """A request for samples.

    Args:
        batches: the indices of the samples, in batches.
        sampler: the sampler.
        sigmas: the noise levels (L,), from high to low.
        seed: the seed; a sample follows from it and from its index.
        label: the number or name of a class, "none", or "all" for each in its turn, the
            default.
        guide: a function from the model's score to the score to follow.
        finish: a function of the samples (B, ...), applied at the end.
        shown: levels after which the states are kept, counted from 1; 0 is the start.
    """

    batches: Sequence[Sequence[int]]
    sampler: Sampler
    sigmas: Tensor
    seed: int = 0
    label: int | str | None = None
    guide: Callable[[Score], Score] | None = None
    finish: Callable[[Tensor], Tensor] | None = None
    shown: Sequence[int] = ()


def draws(
    model: Model, request: Request, advance: Callable[[float], None] = lambda samples: None
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Yield batches of indices and samples (B, ...), or states (B, S, ...) if `shown`.

    The last of the states is the sample.

    Args:
        model: the model, on the device to sample on.
        request: the samples.
        advance: a function called after each level with the progress, in samples.

    Raises:
        ValueError, FloatingPointError: as `Model.trajectory` does.
    """
    for indices in request.batches:
        how = request.label, request.sampler, request.sigmas, request.guide
        states: list[Tensor] = []
        if 0 in request.shown:
            with Streams(request.seed, indices, model.device):
                states.append(model.start(len(indices), request.sigmas[0]))
        for level, x in enumerate(model.trajectories(indices, request.seed, *how), start=1):
            advance(len(indices) / len(request.sigmas))
            if level in request.shown:
                states.append(x)
        with torch.no_grad(), without_autocast(x.device):
            x = x if request.finish is None else request.finish(x)
        yield indices, torch.stack([*states, x], dim=1) if request.shown else x


def batches(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    """Split indices into batches of `size`; the last may be smaller."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def default_batch_size(model: Model) -> int:
    """Return the default batch size: 256 images, or 4,096 points."""
    return 256 if len(model.shape) == 3 else 4096
