"""A model as it is used: it gives a score, denoises, draws, and says how probable an example is.

`ncsn.training.module` adds how it is trained, and is what files are loaded as.

Shapes: x (B, *shape) on the model's device, sigma a number or (B, 1, ..., 1), label (B,) whole numbers, -1 for none.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from ncsn.noise import KarrasSchedule, NoiseSchedule
from ncsn.noise.streams import Streams, normal, uniform
from ncsn.objectives import Annealed, GaussianNoise, Objective
from ncsn.samplers import Sampler
from ncsn.score import Denoiser, Score, ScoreModel, tweedie
from ncsn.score.likelihood import log_prob

__all__ = ["Model", "part_of"]

UNIFORM = 1 / 2, 12**-0.5
"""The mean and std of U[0, 1], from which a walk starts, but for the noise."""


class Model(LightningModule):
    """The four nouns together, and what they are for. `ScoreModule` makes one, and trains it.

    `shape` is that of an example, (C, H, W) of a picture; `trained_on` has the settings of the data that the model was
    trained on, where it was loaded from a file that says so.
    """

    denoiser: ScoreModel
    schedule: NoiseSchedule
    objective: Objective
    sampler: Sampler
    shape: tuple[int, ...]
    trained_on: dict[str, Any] | None = None

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *_: Any, **__: Any) -> "Model":
        """Refuse: Lightning's own loader would import what the file names. `ScoreModule` has another.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"{cls.__name__}.load_from_checkpoint: not available; use ncsn.load({checkpoint_path!r})"
        )

    @property
    def classes(self) -> int:
        """How many classes the network takes for labels; 0 where it takes none."""
        classes: int = getattr(getattr(self.denoiser, "network", None), "classes", 0)
        return classes

    @property
    def of_gaussian_noise(self) -> bool:
        """Whether what is learned is the score of data with Gaussian noise, which Tweedie's formula supposes."""
        objective: Any = self.objective
        while isinstance(objective, Annealed):
            objective = objective.objective
        return isinstance(getattr(objective, "corruption", GaussianNoise()), GaussianNoise)

    def score(self, x: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> Tensor:
        """grad_x log p_sigma(x), of the shape of `x`: the score of the data with noise of that width on it.

        There is a graph where `x` asks for one, and none for the weights: they are trained by `denoiser.score`.

        Args:
            x: (B, *shape), at that noise level; of pictures, the clean ones are in [0, 1].
            sigma: a number, or (B, 1, ..., 1): above 0, and best within the schedule's levels, the only ones learned.
            label: the classes (B,), -1 for none, of a model that takes them.

        Raises:
            ValueError: where `x` or `sigma` is of another shape, or the model takes no labels.
        """
        sigma = self._level(x, sigma)
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            return self.denoiser.score(x, sigma, label)

    def denoise(self, x: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> Tensor:
        """The mean of the clean example given this noisy one, E[clean | x], of the shape of `x` (Efron, 2011).

        The arguments, and the errors, are those of `score`.

        Raises:
            ValueError: also where the noise of the training was not Gaussian, which Tweedie's formula supposes.
        """
        if not self.of_gaussian_noise:
            raise ValueError(
                "ScoreModule: it was trained on noise that is not Gaussian, as Tweedie's formula supposes"
            )
        return tweedie(partial(self.score, label=label), x, self._level(x, sigma))

    def log_prob(
        self, x: Tensor, label: Tensor | None = None, probes: int = 0, tolerance: float = 1e-3
    ) -> Tensor:
        """log p(x) in nats, (B,), of clean examples at the schedule's lowest level, by the probability flow.

        A density over the numbers of an example, in the unit of the data: of pictures, of values in [0, 1]. The flow
        meets the prior at the highest level, with the mean and std of `start`. `ncsn.log_prob` says what it is, takes
        other levels and another prior, and `ncsn.bits_per_dim` counts the bits of pixels.

        Args:
            x: (B, *shape), float32 or float64, finite.
            label: the classes (B,), -1 for none, of a model that takes them.
            probes: 0 takes the divergence exactly, by a backward pass for each number of an example; so many random
                directions estimate it without bias, for large examples.
            tolerance: the error of a step that is let through, relative and as a number.

        Raises:
            ValueError: where `x` is not such a batch, or the schedule has one level alone.
            RuntimeError: where the flow does not arrive.
        """
        sigmas = self.schedule.sigmas()
        low, high = sigmas.min().item(), sigmas.max().item()
        self._level(x, low)
        score = partial(self.denoiser.score, label=label)
        return log_prob(score, x, low, high, UNIFORM, probes, tolerance, tolerance)

    @torch.no_grad()
    def draw(
        self,
        start: Tensor,
        label: Tensor | None = None,
        sampler: Sampler | None = None,
        sigmas: Tensor | None = None,
        guide: Callable[[Score], Score] | None = None,
    ) -> Iterator[Tensor]:
        """Walk `start` (B, ...) from the largest noise level to a picture; the state once a level, without a graph.

        Args:
            start: a state at the largest noise level.
            label: the classes (B,), or None.
            sampler: another than the module's own.
            sigmas: another ladder (L,) than the schedule's.
            guide: makes of the model's score the one that is walked along, as those of `ncsn.score.guidance` do.

        Raises:
            ValueError: where the sampler cannot walk the ladder.
            FloatingPointError: where the walk diverges, with the noise level.
        """
        sampler = self.sampler if sampler is None else sampler
        sigmas = self.schedule.sigmas() if sigmas is None else sigmas
        sampler.check(sigmas)
        function = self._function(sampler, label)
        if guide is not None:
            function = guide(function)
        unseen: list[Tensor] = []
        for level, x in enumerate(sampler(function, start, sigmas), 1):
            # A state's sum is finite where all of it is, unless it is beyond 1e38; `isfinite().all()` is six kernels.
            unseen.append(x.sum(dtype=torch.float32))
            # To look at a number is to wait for the device: others than the CPU are asked at the end alone.
            if x.device.type == "cpu" or level == len(sigmas):
                finite = [math.isfinite(total) for total in torch.stack(unseen).tolist()]
                if not all(finite):
                    sigma = sigmas[level - len(finite) + finite.index(False)]
                    raise FloatingPointError(
                        f"{type(sampler).__name__} diverged at noise level {sigma:.4g}; {sampler.remedy}"
                    )
                unseen.clear()
            yield x

    def samples(
        self,
        indices: Sequence[int],
        seed: int = 0,
        label: Tensor | None = None,
        sampler: Sampler | None = None,
        sigmas: Tensor | None = None,
        guide: Callable[[Score], Score] | None = None,
    ) -> Iterator[Tensor]:
        """The walks of the samples `indices` of a seed, as `draw` gives them: (B, ...) once a level.

        A sample follows from (seed, index) alone: it is the same whatever others are drawn beside it.

        Raises:
            ValueError, FloatingPointError: as `draw` does.
        """
        sigmas = self.schedule.sigmas() if sigmas is None else sigmas
        streams = Streams(seed, indices, self.device)
        with streams:
            walk = self.draw(self.start(len(indices), sigmas[0]), label, sampler, sigmas, guide)
        while True:
            # The streams are put in place for each step alone: between them, others may draw.
            with streams:
                x = next(walk, None)
            if x is None:
                return
            yield x

    def sample(
        self,
        count: int,
        seed: int = 0,
        label: Tensor | None = None,
        sampler: Sampler | None = None,
        sigmas: Tensor | None = None,
        guide: Callable[[Score], Score] | None = None,
    ) -> Tensor:
        """The first `count` samples of a seed, (count, *shape), on the model's device.

        Of pictures, [0, 1] is the visible range; a sample may be a little beyond. The arguments are those of `samples`.

        Raises:
            ValueError, FloatingPointError: as `draw` does.
        """
        *_, x = self.samples(range(count), seed, label, sampler, sigmas, guide)
        return x

    def ladder(
        self,
        levels: int,
        sampler: Sampler,
        sigma_max: float | None = None,
        sigma_min: float | None = None,
    ) -> Tensor:
        """Another ladder (levels,), Karras's, spaced as the sampler walks it best.

        Args:
            levels: how many.
            sampler: what is to walk it.
            sigma_max: the level to begin at; that of the schedule where it is not given.
            sigma_min: the level to end at, in the same way.

        Raises:
            ValueError: where `sigma_max` is not above `sigma_min`, as where the schedule has one level alone, or a
                number is not one that `KarrasSchedule` takes.
        """
        trained = self.schedule.sigmas()
        high = trained.max().item() if sigma_max is None else sigma_max
        low = trained.min().item() if sigma_min is None else sigma_min
        return KarrasSchedule(high, low, levels, sampler.rho).sigmas()

    def start(self, count: int, sigma: Tensor | None = None) -> Tensor:
        """`count` states at the largest noise level: pictures of uniform noise on [0, 1], with that much noise added.

        At a large sigma this is N(0, sigma^2) but for a little. The NCSN papers start from U[0, 1] alone, which is
        narrower than their first level, and leave it to the first steps to widen it.
        """
        sigma = self.schedule.sigmas()[0] if sigma is None else sigma
        like = torch.empty(count, *self.shape, device=self.device)
        return uniform(like) + sigma.to(like) * normal(like)

    def compile_network(self, mode: str | None = None) -> None:
        """Let torch compile the network, for each shape of a batch; `mode` is as for `torch.compile`.

        Raises:
            ValueError: where the model is an energy.
        """
        if not isinstance(self.denoiser, Denoiser):
            raise ValueError("an energy, which is differentiated, cannot be compiled")
        self.denoiser.network.compile(mode=mode, dynamic=False)

    def _function(self, part: Objective | Sampler, label: Tensor | None) -> Score:
        """What an objective or a sampler is given of the model: its score, or its log-probability."""
        function = part_of(self.denoiser, part)
        return partial(function, label=label) if part.takes == "score" else function

    def _level(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """`sigma` as a tensor that goes with `x`.

        Raises:
            ValueError: where one of them is of a shape that is none of this model's: it might broadcast all the same.
        """
        if x.ndim != len(self.shape) + 1:
            raise ValueError(
                f"x is of shape {tuple(x.shape)}, and must be a batch (B, {', '.join(map(str, self.shape))})"
            )
        level = torch.as_tensor(sigma).to(x)
        if level.ndim and level.shape != (len(x), *[1] * len(self.shape)):
            raise ValueError(
                f"sigma is of shape {tuple(level.shape)}, and must be a number or of shape "
                f"{(len(x), *[1] * len(self.shape))}: a level for each example"
            )
        return level


def part_of(denoiser: ScoreModel, user: Objective | Sampler) -> Callable[..., Tensor]:
    """What an objective or a sampler takes of a model: its score, or its log-probability.

    Raises:
        ValueError: where the model does not give that.
    """
    function: Callable[..., Tensor] | None = getattr(denoiser, user.takes, None)
    if function is None:
        raise ValueError(
            f"{type(user).__name__} takes the log-probability of binary data, which {type(denoiser).__name__} does not "
            "give; make the denoiser an EnergyScore"
        )
    return function
