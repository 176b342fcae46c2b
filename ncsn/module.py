"""The training step: the only glue between the four nouns.

`ScoreModule` holds a denoiser, a noise schedule, an objective and a sampler. One step is: clean pictures `x` from the
data, a level `sigma` for each from the schedule, the objective's loss of the denoiser's score there.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ncsn.archive import read
from ncsn.noise import KarrasSchedule, NoiseSchedule
from ncsn.objectives import Annealed, GaussianNoise, Objective
from ncsn.samplers import Sampler
from ncsn.score import Denoiser, Score, ScoreModel
from ncsn.settings import rebuilt
from ncsn.streams import Streams, mixed_seed, normal, uniform

__all__ = ["ScoreModule", "part_of"]

MOST_NUMBERS = 100_000_000
"""In an example: more is a mistake, or a file that would fill the memory."""

MOST_SKIPPED = 20
"""Steps in a row without a finite loss and gradient, after which training ends: the weights will not come back."""


class ScoreModule(LightningModule):
    """A denoiser that learns the score of pictures, and draws.

    Args:
        denoiser: D(x, sigma), with its network, or an energy.
        schedule: the noise levels that it is trained at, and the ladder that it draws on.
        objective: how it is learned.
        sampler: how it draws, unless told otherwise.
        shape: (C, H, W) of a picture, or the shape of whatever an example is.
        optimizer: makes the optimiser from the parameters.
        warmup: the steps over which the learning rate rises from 0 to its value.
        cooldown: the steps over which it falls to 0 at the end of the run, which `trainer.max_steps` or `max_epochs`
            sets; a run that is ended before has the less of it.
        label_dropout: the probability of training an example as if it had no label.
        compile: compile the network when training begins, which takes minutes and pays on GPUs.

    Raises:
        ValueError: where a number is out of its range, the sampler cannot walk the schedule's ladder, the objective
            or the sampler takes a log-probability, which a denoiser does not give, or an energy is to be compiled.
    """

    def __init__(
        self,
        denoiser: ScoreModel,
        schedule: NoiseSchedule,
        objective: Objective,
        sampler: Sampler,
        shape: tuple[int, ...],
        optimizer: OptimizerCallable = torch.optim.Adam,
        warmup: int = 0,
        cooldown: int = 0,
        label_dropout: float = 0.1,
        compile: bool = False,  # noqa: A002 - torch's own word for it
    ) -> None:
        super().__init__()
        for name, steps in (("warmup", warmup), ("cooldown", cooldown)):
            if steps < 0:
                raise ValueError(f"ScoreModule: {name} is {steps}, and must be at least 0")
        if not 0 <= label_dropout <= 1:
            raise ValueError(f"ScoreModule: label_dropout is {label_dropout}, and must be from 0 to 1")
        if not 0 < math.prod(shape) <= MOST_NUMBERS:
            raise ValueError(f"ScoreModule: shape is {tuple(shape)}, and must be of 1 to {MOST_NUMBERS:,} numbers")
        for part in (objective, sampler):
            part_of(denoiser, part)
        if compile and not isinstance(denoiser, Denoiser):
            raise ValueError("ScoreModule: compile is true, but an energy, which is differentiated, cannot be compiled")
        sampler.check(schedule.sigmas())
        # From a configuration these are plain values, from which a checkpoint is built again. Live objects cannot be
        # loaded safely: made in Python, they are left out, and given again to `load_from_checkpoint`.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Attribute 'denoiser' is an instance of `nn.Module`")
            self.save_hyperparameters(logger=False)
        for name in ("denoiser", "schedule", "objective", "sampler", "optimizer"):
            if not isinstance(self.hparams[name], dict):
                del self.hparams[name]
        self.denoiser = denoiser
        self.schedule = schedule
        self.objective = objective
        self.sampler = sampler
        self.shape = tuple(shape)
        self.optimizer = optimizer
        self.warmup = warmup
        self.cooldown = cooldown
        self.label_dropout = label_dropout
        self.compiled = compile
        self.seed = 0
        self.skipped_steps = 0
        self.skipped_in_a_row = 0

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *_: Any, **parts: Any) -> "ScoreModule":
        """The module of a training checkpoint, on the CPU: read as strictly as by `ncsn.load`, whatever is asked for.

        Args:
            checkpoint_path: a .ckpt file.
            parts: the arguments that the file does not have, of a module that was made in Python.

        Raises:
            ValueError: where the file is not such a checkpoint, or does not fit the settings in it and the parts.
        """
        for name in ("map_location", "hparams_file", "strict", "weights_only"):  # Lightning's, which are settled here
            parts.pop(name, None)
        return rebuilt(cls, read(checkpoint_path), checkpoint_path, **parts)

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

    def losses(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """The objective (B,) on clean `x` (B, ...) at the levels `sigma` (B, 1, ..., 1), with labels (B,) or None."""
        return self.objective(self._function(self.objective, label), x, sigma)

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
            guide: makes of the model's score the one that is walked along, as those of `ncsn.guidance` do.

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
        sound = torch.zeros((), dtype=torch.int64, device=start.device)  # levels
        for level, x in enumerate(sampler(function, start, sigmas), 1):
            sound += x.isfinite().all() & (sound == level - 1)
            # To look at a number is to wait for the device: others than the CPU are asked at the end alone.
            if (sound.device.type == "cpu" or level == len(sigmas)) and sound < level:
                raise FloatingPointError(
                    f"{type(sampler).__name__} diverged at noise level {sigmas[int(sound)]:.4g}; {sampler.remedy}"
                )
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

    def sample(self, count: int, seed: int = 0, **others: Any) -> Tensor:
        """The first `count` samples (count, ...) of a seed. `others` are as for `samples`."""
        *_, x = self.samples(range(count), seed, **others)
        return x

    def _function(self, part: Objective | Sampler, label: Tensor | None) -> Score:
        """What an objective or a sampler is given of the model: its score, or its log-probability."""
        function = part_of(self.denoiser, part)
        return partial(function, label=label) if part.takes == "score" else function

    def ladder(self, levels: int, sampler: Sampler) -> Tensor:
        """Another ladder (levels,) between the ends of the schedule's: Karras's, spaced as the sampler walks it best.

        Raises:
            ValueError: where the schedule has one level alone, between which there are no others.
        """
        trained = self.schedule.sigmas()
        return KarrasSchedule(trained.max().item(), trained.min().item(), levels, sampler.rho).sigmas()

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

    def on_fit_start(self) -> None:
        self.seed = torch.initial_seed()
        if self.compiled:
            self.compile_network()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        # All that is random in a step (flips, levels, noise, dropout) follows from (seed, step, rank): different on
        # every rank, and the same again where a run is taken up from a checkpoint.
        if self.trainer.training:
            seed = mixed_seed(self.seed, self.trainer.fit_loop.total_batch_idx, self.global_rank)
            # `torch.manual_seed` takes 2 % of a small step to note the seed for devices that are not there.
            (torch.default_generator if self.device.type == "cpu" else torch).manual_seed(seed)
        return batch

    @property
    def logs(self) -> bool:
        """Whether this step is one whose figures are logged; in the others they would cost time for nothing."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (self.global_step + 1) % every == 0

    def training_step(self, batch: tuple[Tensor, Tensor | None], batch_idx: int) -> dict[str, Tensor]:
        x, label = batch
        if label is not None:
            label = torch.where(torch.rand(len(x), device=x.device) < self.label_dropout, -1, label)
        sigma = self.schedule.sample(x)
        losses = self.losses(x, sigma, label)
        loss = losses.mean()
        if self.logs:
            self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(x))
        # Times 1; or times NaN where the loss is not finite, whatever its gradient is: the step is dropped below.
        loss = loss * (1 + 0 * loss.detach())
        return {"loss": loss, "losses": losses.detach(), "sigma": sigma.flatten()}

    def validation_step(self, batch: tuple[Tensor, Tensor | None], batch_idx: int) -> None:
        # The same noise at the same levels every time, so that the curve is of the model and not of the draw.
        x, label = batch
        with torch.random.fork_rng([x.device] if x.is_cuda else []):
            torch.manual_seed(mixed_seed(self.seed, batch_idx, self.global_rank))
            losses = self.losses(x, self.schedule.sample(x), label)
        self.log("val/loss", losses.mean(), prog_bar=True, batch_size=len(x), sync_dist=True)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not norm.isfinite():
            # One such step would make all weights, and their average, NaN. Without gradients it changes nothing.
            optimizer.zero_grad(set_to_none=True)
            self.skipped_steps += 1
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row == MOST_SKIPPED:
                raise FloatingPointError(
                    f"the loss or its gradient was not finite in {MOST_SKIPPED} steps in a row, up to step "
                    f"{self.global_step + 1}: lower model.optimizer.lr, or set trainer.gradient_clip_val"
                )
        else:
            self.skipped_in_a_row = 0
        if self.logs:
            self.log("train/gradient_norm", norm)
            self.log("train/skipped_steps", float(self.skipped_steps))
            self.log("train/learning_rate", optimizer.param_groups[0]["lr"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["skipped_steps"] = [self.skipped_steps, self.skipped_in_a_row]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.skipped_steps, self.skipped_in_a_row = checkpoint.get("skipped_steps", (0, 0))

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        schedule = LambdaLR(optimizer, self.learning_rate_at)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def learning_rate_at(self, step: int) -> float:
        """The fraction of the learning rate at a step: it rises, stays, and falls."""
        rise = (step + 1) / (self.warmup + 1)
        if not self.cooldown or self._trainer is None:
            return min(1.0, rise)
        left = self.trainer.estimated_stepping_batches - step
        return min(1.0, rise, max(0.0, left / (self.cooldown + 1)))

    def on_train_start(self) -> None:
        # A checkpoint brings its learning rate along; the one that was set for this run is what holds.
        schedule = self.lr_schedulers()
        if not isinstance(schedule, LambdaLR):  # a subclass has its own
            return
        schedule.base_lrs = [group["lr"] for group in self.optimizer(self.parameters()).param_groups]
        for group, rate in zip(schedule.optimizer.param_groups, schedule.base_lrs, strict=True):
            group["lr"], group["initial_lr"] = rate * self.learning_rate_at(schedule.last_epoch), rate


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
