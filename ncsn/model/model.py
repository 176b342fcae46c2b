"""A model: a score, the noise schedule it was trained on, and a sampler.

`ncsn.load` returns a model, and `ncsn.training.module` trains one. Its methods run the
network in evaluation mode, without dropout.

Shapes: x (B, *shape) on the model's device, sigma a number or (B, 1, ..., 1), label
(B,) integers, -1 for no class. A label may also be the number or the name of one class,
"none", or "all" for every class in its turn.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import index
from typing import Any

import torch
from torch import Tensor, nn

from ncsn.model.contexts import evaluating, finite, inside
from ncsn.model.devices import by_graphs, use_layout_of
from ncsn.model.labels import NONE, Label, Labels
from ncsn.model.levels import as_levels, checked_level, levels_for
from ncsn.noise import NoiseSchedule
from ncsn.noise.streams import Streams, normal, uniform
from ncsn.samplers import Sampler
from ncsn.score import Denoiser, Score, ScoreModel, tweedie
from ncsn.score.guidance import classifier_free

__all__ = ["DATA", "PRECISION", "Model"]

DATA = "datamodule_hyper_parameters"  # the data's settings in a file, as Lightning names them
PRECISION = "precision"  # of training, in a file
MOST_NUMBERS = 100_000_000  # elements of an example; more would fill the memory
UNIFORM = 1 / 2, 12**-0.5  # mean and standard deviation of U[0, 1], where sampling starts


class Model(nn.Module):
    """A score, the noise schedule it was trained on, and a sampler.

    Calling it denoises, as `denoise` does. A denoiser's weights can be in half precision
    (`model.bfloat16()`), and states then are float32. An energy's cannot.

    Args:
        denoiser: a denoiser with its network, or an energy.
        schedule: the noise levels.
        sampler: the default sampler.
        shape: the shape of an example; (C, H, W) for images, with values in [0, 1].
        gaussian_noise: the score is that of data with Gaussian noise, which Tweedie's
            formula assumes.
        settings: the plain values that the model can be built again from, as files hold
            them; None if its parts were made in Python and describe themselves.
        class_names: the names of the classes by their numbers; by default the numbers.
        label_dropout: how often labels were dropped in training; after 0 the model needs
            a class.

    Raises:
        ValueError: if the shape is invalid, or the sampler or the names do not fit the
            model.
    """

    def __init__(
        self,
        denoiser: ScoreModel,
        schedule: NoiseSchedule,
        sampler: Sampler,
        shape: tuple[int, ...],
        gaussian_noise: bool = True,
        settings: dict[str, Any] | None = None,
        class_names: Sequence[str] = (),
        label_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if min(shape, default=1) < 1 or not 0 < math.prod(shape) <= MOST_NUMBERS:
            raise ValueError(
                f"expected sides of at least 1 and at most {MOST_NUMBERS:,} numbers, got shape={shape}"
            )
        sampler.check(schedule.sigmas())
        sampler.of(denoiser)
        classes = getattr(getattr(denoiser, "network", None), "classes", len(class_names))
        if class_names and len(class_names) != classes:
            found = f"{len(class_names)} class_names"
            raise ValueError(f"expected a name for each of {classes} classes, got {found}")
        self.class_names = list(class_names)
        names = [name if name.isprintable() else ascii(name)[1:-1] for name in class_names]
        self.labels = Labels(names or [*map(str, range(classes))], label_dropout > 0)
        self.denoiser = denoiser
        self.schedule = schedule
        self.sampler = sampler
        self.shape = tuple(shape)
        self.gaussian_noise = gaussian_noise
        self.settings = settings
        self.label_dropout = label_dropout

    def __repr__(self) -> str:
        count = sum(weight.numel() for weight in self.parameters())
        network = type(getattr(self.denoiser, "network", self.denoiser)).__name__
        parts = f"{type(self.denoiser).__name__}, {self.schedule}, {self.sampler}"
        return f"Model({parts}, shape={self.shape}; {network} of {count:,} parameters)"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Model":
        # What moves a module: to, cuda, cpu ...
        before = self.device
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.device != before:
            use_layout_of(self.device, self)
        return self

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return next((weight.device for weight in self.parameters()), torch.device("cpu"))

    @property
    def classes(self) -> int:
        """Return the number of classes of labels; 0 if the network takes no labels."""
        return len(self.labels.names)

    @property
    def trained_on(self) -> dict[str, Any] | None:
        """Return the settings of the training data, if they are known."""
        return (self.settings or {}).get(DATA)

    def score(self, x: Tensor, sigma: float | Tensor, label: Label = None) -> Tensor:
        """Return grad_x log p_sigma(x), of the shape of `x`.

        The result has a graph if `x` requires a gradient. The weights get no gradient:
        use `denoiser.score` to train them.

        Args:
            x: noisy examples (B, *shape), of floats; images of 8 bits are x / 255.
            sigma: their noise level, above 0; the model is trained on its schedule.
            label: the classes, for a model that takes them; "none" by default.

        Raises:
            ValueError: if a shape, dtype or class is wrong, or sigma is not positive (a
                tensor on a GPU is not read).
        """
        sigma = self._level(x, sigma)
        label = self._label(label, x)
        grad = torch.is_grad_enabled() and x.requires_grad
        with evaluating(self), torch.set_grad_enabled(grad):
            return self.denoiser.score(x, sigma, label)

    def forward(self, x: Tensor, sigma: float | Tensor, label: Label = None) -> Tensor:
        """Return E[clean | x], as `denoise`."""
        return self.denoise(x, sigma, label)

    def denoise(self, x: Tensor, sigma: float | Tensor, label: Label = None) -> Tensor:
        """Return E[clean | x], of the shape of `x` (Efron, 2011, eq. 1.4).

        The arguments are those of `score`.

        Raises:
            ValueError: as `score`, and if the model was not trained on Gaussian noise.
        """
        self.expect_gaussian_noise("Tweedie's formula")
        return tweedie(partial(self.score, label=label), x, self._level(x, sigma))

    def log_prob(
        self, x: Tensor, label: Label = None, probes: int = 0, tolerance: float = 1e-3
    ) -> Tensor:
        """Return log p(x) (B,) in nats by the probability flow (Song et al., 2021).

        The density is at the lowest noise level of the schedule, the prior at the
        highest. See `ncsn.log_prob` for other levels and priors, and
        `ncsn.bits_per_dim` for images.

        Args:
            x: clean examples (B, *shape), float32 or float64.
            label: the classes, for a model that takes them; "none" by default.
            probes: random directions of Hutchinson's estimate of the divergence; 0
                computes it exactly, with one backward pass per dimension.
            tolerance: absolute and relative error of the solver per step.

        Raises:
            ValueError: if `x` has a wrong shape, the schedule has a single level, or the
                model was not trained on Gaussian noise.
            RuntimeError: if the solver does not reach the highest level.
        """
        from ncsn.score.likelihood import log_prob  # needs torchdiffeq

        self.expect_gaussian_noise("the probability flow")
        sigmas = self.schedule.sigmas()
        low, high = sigmas.min().item(), sigmas.max().item()
        self._level(x, low)
        if not x.isfinite().all():
            raise ValueError("expected finite x, got NaN or infinite values")
        score = partial(self.denoiser.score, label=self._label(label, x))
        with evaluating(self):
            return log_prob(score, x, low, high, UNIFORM, probes, tolerance, tolerance)

    @torch.no_grad()
    def trajectory(
        self,
        start: Tensor,
        label: Label = None,
        sampler: Sampler | None = None,
        sigmas: Tensor | Sequence[float] | None = None,
        guide: Callable[[Score], Score] | None = None,
    ) -> Iterator[Tensor]:
        """Yield the state (B, *shape) after each noise level; the last is the sample.

        Args:
            start: states at the highest noise level, from `start()`.
            label: the classes, for a model that takes them; "all" by default.
            sampler: the model's own by default.
            sigmas: noise levels (L,), from high to low; the schedule's by default.
            guide: a function from the model's score to the score to follow, as in
                `ncsn.score.guidance`. One that `observes` goes with any sampler.

        Raises:
            ValueError: if the sampler does not support the model, these noise levels or a
                guide, or a class is wrong.
            TypeError: if the noise levels are no numbers, or the sampler is none.
            FloatingPointError: if a state is not finite; the message gives the level.
        """
        sampler = self._sampler(sampler)
        sigmas = self.schedule.sigmas() if sigmas is None else as_levels(sigmas)
        self.check(sampler, sigmas)
        chosen = self.labels.of(label, range(len(start)))
        score = sampler.of(self.denoiser, None if chosen is None else chosen.to(start.device))
        score = by_graphs(self, self.denoiser, score)
        if guide is not None:
            if not hasattr(guide, "observes") and score == getattr(self.denoiser, "log_prob", None):
                raise ValueError(
                    f"guide: {sampler} follows a log-probability, and a guide changes a score; "
                    "take another sampler, as AnnealedLangevin()"
                )
            score = guide(score)
        yield from inside(partial(evaluating, self), finite(sampler, score, start, sigmas))

    def trajectories(
        self,
        indices: Sequence[int],
        seed: int = 0,
        label: Label = None,
        sampler: Sampler | None = None,
        sigmas: Tensor | Sequence[float] | None = None,
        guide: Callable[[Score], Score] | None = None,
    ) -> Iterator[Tensor]:
        """Yield the states of the samples `indices` of a seed, as `trajectory` does.

        A sample depends on (seed, index) alone, not on the rest of its batch.
        """
        label = self.labels.of(label, indices)
        sigmas = self.schedule.sigmas() if sigmas is None else as_levels(sigmas)
        streams = Streams(seed, indices, self.device)
        with streams:
            start = self.start(len(indices), sigmas[0])
            states = self.trajectory(start, label, sampler, sigmas, guide)
        yield from inside(lambda: streams, states)

    def sample(
        self,
        count: int,
        seed: int = 0,
        label: Label = None,
        sampler: Sampler | None = None,
        sigmas: Tensor | Sequence[float] | None = None,
        guide: Callable[[Score], Score] | None = None,
        steps: int | None = None,
        sigma_max: float | None = None,
        sigma_min: float | None = None,
        guidance: float | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """Return the first `count` samples (count, *shape) of a seed, as `trajectory` does.

        The visible range of images is [0, 1]; a sample may exceed it a little. A sample
        depends on (seed, index) alone, for any `count` and `batch_size`.

        Args:
            count, seed: the number of samples, and their seed.
            label, sampler, sigmas, guide: as for `trajectory`.
            steps, sigma_max, sigma_min: other noise levels, as for `sigmas_for`.
            guidance: the weight of classifier-free guidance, in place of `guide`.
            batch_size: samples at once; all by default.

        Raises:
            ValueError: as `trajectory`, `sigmas_for` and `guidance`, and if a number is
                below 1.
            FloatingPointError, TypeError: as `trajectory`.
        """
        size = index(count if batch_size is None else batch_size)
        if min(count, size) < 1:
            raise ValueError(f"expected count and batch_size of at least 1, got {count}, {size}")
        sampler = self._sampler(sampler)
        if sigmas is None:
            sigmas = self.sigmas_for(sampler, steps, sigma_max, sigma_min)
        elif (steps, sigma_max, sigma_min) != (None, None, None):
            raise ValueError(
                "steps, sigma_max and sigma_min have no effect with sigmas; remove them"
            )
        if guidance is not None:
            if guide is not None:
                raise ValueError("guidance has no effect with guide; remove one of them")
            guide = self.guidance(guidance)
        chosen = self.labels.of(label, range(count))
        samples = []
        for part in torch.split(torch.arange(count), size):
            given = None if chosen is None else chosen[part]
            *_, x = self.trajectories(part.tolist(), seed, given, sampler, sigmas, guide)
            samples.append(x)
        return torch.cat(samples)

    def check(self, sampler: Sampler, sigmas: Tensor) -> None:
        """Refuse a sampler that does not support this model, or these noise levels (L,).

        Raises:
            ValueError: with the setting to change.
        """
        sampler.check(sigmas)
        sampler.of(self.denoiser)
        if sampler.assumes_gaussian_noise:
            self.expect_gaussian_noise(str(sampler))

    def expect_gaussian_noise(self, method: str) -> None:
        """Refuse a method that assumes Gaussian noise, for a model of other noise.

        Raises:
            ValueError: with the samplers that can be used.
        """
        if not self.gaussian_noise:
            raise ValueError(
                f"{method} assumes Gaussian noise, and the model was trained on other noise "
                "(model.objective); sample with AnnealedLangevin and denoise: false"
            )

    def guidance(self, weight: float) -> Callable[[Score], Score]:
        """Return classifier-free guidance by a weight, as the argument `guide`.

        Raises:
            ValueError: if the model has no labels, or does not know "no class".
        """
        if not (self.classes and self.labels.dropped):
            how = "with label_dropout 0" if self.classes else "without labels (--data.labels true)"
            raise ValueError(f"guidance: {weight:g}, but the model was trained {how}")
        unconditional = partial(self.denoiser.score, label=None)
        return lambda score: classifier_free(
            score, by_graphs(self, self.denoiser, unconditional), weight
        )

    def sigmas_for(
        self,
        sampler: Sampler,
        levels: int | None = None,
        sigma_max: float | None = None,
        sigma_min: float | None = None,
    ) -> Tensor:
        """Return noise levels (levels,) with the spacing that suits a sampler.

        They are geometric for Langevin samplers, and those of Karras for others. What is not
        given is as in the model's own schedule, which is returned if nothing is. A warning says
        if the limits are beyond its own.

        Raises:
            ValueError: if a number is out of range for `KarrasSchedule`, or the model has
                a single noise level.
        """
        return levels_for(sampler, self.schedule.sigmas(), levels, sigma_max, sigma_min)

    def start(self, count: int, sigma: Tensor | None = None) -> Tensor:
        """Return states (count, *shape) at the highest noise level: U[0, 1] + sigma z.

        At large sigma this is nearly N(0, sigma^2). The NCSN papers start from U[0, 1].
        """
        sigma = self.schedule.sigmas()[0] if sigma is None else sigma
        weight = next(self.parameters(), sigma)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        like = torch.empty(count, *self.shape, dtype=dtype, device=self.device)
        return uniform(like) + sigma.to(like) * normal(like)

    def compile_network(self, mode: str | None = None) -> None:
        """Compile the network with `torch.compile`, once for each batch shape.

        Raises:
            ValueError: if the model is an energy, which is differentiated.
        """
        if not isinstance(self.denoiser, Denoiser):
            raise ValueError(
                "an energy is differentiated and cannot be compiled; leave compile out"
            )
        self.denoiser.network.compile(mode=mode, dynamic=False)

    def _sampler(self, sampler: Sampler | None) -> Sampler:
        """Return the given sampler, or the model's own."""
        chosen = self.sampler if sampler is None else sampler
        if not isinstance(chosen, Sampler):
            raise TypeError(f"sampler: expected a sampler, as ncsn.Heun(), got {chosen!r}")
        return chosen

    def _level(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Return `sigma` as a tensor like `x`, after checking both."""
        return checked_level(sigma, x, self.shape, self.schedule.sigmas().min())

    def _label(self, label: Label, x: Tensor) -> Tensor | None:
        """Return the classes of given `x`; the default is "none"."""
        chosen = self.labels.of(NONE if label is None else label, range(len(x)))
        return None if chosen is None else chosen.to(x.device)
