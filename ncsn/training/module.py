"""The training module: a denoiser, a noise schedule, an objective and a sampler."""

import math
import sys
import warnings
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from inspect import signature
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from ncsn.data import DataModule
from ncsn.model.describe import PARTS, described, plain_value
from ncsn.model.devices import use_layout_of
from ncsn.model.load import contents
from ncsn.model.model import DATA, PRECISION, Model
from ncsn.model.settings import NOT_BUILT, OF_SUBCLASS, rebuilt_module, take_weights, without
from ncsn.noise import NoiseSchedule
from ncsn.noise.checks import expect
from ncsn.noise.streams import Streams, mixed_seed, uniform
from ncsn.objectives import Objective
from ncsn.samplers import Sampler
from ncsn.score import Denoiser, ScoreModel
from ncsn.training.augmentation import NUMBERS, augmented
from ncsn.training.compilation import Compilation
from ncsn.training.optimisers import skip_step

__all__ = ["ScoreModule"]

Batch: TypeAlias = Any  # x, (x,) or (x, label)

MOST_SKIPPED = 20  # steps in a row without a finite gradient; training ends when it next logs


class ScoreModule(LightningModule):
    """A trainable score model.

    Args:
        denoiser: D(x, sigma) with its network, or an energy.
        schedule: the noise levels of training and sampling.
        objective: the training loss.
        sampler: the default sampler.
        shape: (C, H, W) of an image, or the shape of any other example.
        optimizer: makes the optimiser from the parameters.
        warmup: steps over which the learning rate rises from 0.
        cooldown: steps over which it falls to 0 at the end of the run. Both are
            shortened, with a warning, in a run of fewer steps than they have.
        label_dropout: the probability of training an example without its label.
        augment: the probability of each augmentation that the network is told of, for a
            network of 9 `augmentations`; EDM's is 0.12.
        compile: compile the network: "auto" on CUDA, if the run takes minutes.
        class_names: the names of the classes by their numbers.
        weights: start from the weights of the model in this file, as far as they fit.

    Raises:
        ValueError: if a number is out of range, or parts do not fit each other.
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
        augment: float = 0.0,
        compile: Literal["auto"] | bool = "auto",  # noqa: A002 - torch's own word for it
        class_names: Sequence[str] = (),
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        steps = {"warmup": warmup, "cooldown": cooldown}
        expect("at least 0 steps", min(steps.values()) >= 0, self, **steps)
        possible = 0 <= label_dropout < 1
        expect("0 <= label_dropout < 1", possible, self, label_dropout=label_dropout)
        expect("0 <= augment < 1", 0 <= augment < 1, self, augment=augment)
        told = getattr(getattr(denoiser, "network", None), "augmentations", 0)
        rule = f"a network of {NUMBERS} augmentations, for augment above 0"
        expect(rule, augment == 0 or told == NUMBERS, self, augment=augment, augmentations=told)
        objective.of(denoiser)
        known = compile == "auto" or isinstance(compile, bool)
        expect('"auto", true or false', known, self, compile=compile)
        if compile is True and not isinstance(denoiser, Denoiser):
            rule = "an energy, which is differentiated, cannot be compiled"
            raise ValueError(f"ScoreModule: compile is true, but {rule}")
        Model(denoiser, schedule, sampler, shape, class_names=class_names)  # checks these
        # Plain settings alone: the CLI adds those of the parts, or else a checkpoint
        # describes the parts themselves.
        parts = (*PARTS, "objective", "optimizer", "weights")
        self.save_hyperparameters(ignore=parts, logger=False)
        self.denoiser = denoiser
        self.schedule = schedule
        self.objective = objective
        self.sampler = sampler
        self.shape = tuple(shape)
        self.optimizer = optimizer
        self.warmup = warmup
        self.cooldown = cooldown
        self.label_dropout = label_dropout
        self.augment = augment
        self.class_names = class_names
        self.compilation = compile if isinstance(denoiser, Denoiser) else False
        self.seed = 0
        self.steps_before = 0  # those of earlier fits by the same trainer
        # Tensors on the device once training has begun.
        self.skipped_steps: int | Tensor = 0
        self.skipped_in_a_row: int | Tensor = 0
        if weights is not None:
            try:
                said = take_weights(self, contents(weights)["state_dict"], weights)
            except ValueError as error:
                reason = str(error).removeprefix("checkpoint: ")
                raise ValueError(f"model.weights: {reason}") from error
            rank_zero_only(print)(said, file=sys.stderr)

    @classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: Any, *_: Any, trust: Collection[str] = (), **parts: Any
    ) -> "ScoreModule":
        """Return the module of a training checkpoint, on the CPU, as `ncsn.load` does.

        `parts` replace those of the file, or those that it could not describe.

        Raises:
            ValueError: if the file is no such checkpoint, or does not fit its settings.
        """
        for name in ("map_location", "hparams_file", "strict", "weights_only"):
            parts.pop(name, None)  # Lightning's arguments, which have no effect here
        content = contents(checkpoint_path)
        module = rebuilt_module(cls, content, checkpoint_path, trust, **parts)
        module.hparams.update(without(content["hyper_parameters"], ("_instantiator", *parts)))
        return module

    @property
    def model(self) -> Model:
        """Return the model in training, which shares its weights."""
        known = without(dict(self.hparams), NOT_BUILT)
        settings = {"hyper_parameters": known} if "denoiser" in known else None
        about = self.objective.gaussian_noise, settings, self.class_names, self.label_dropout
        return Model(self.denoiser, self.schedule, self.sampler, self.shape, *about)

    def losses(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return losses (B,) of clean `x` (B, ...) at `sigma` (B, 1, ..., 1)."""
        return self.objective(self.objective.of(self.denoiser, label), x, sigma)

    def configure_callbacks(self) -> list[Callback]:
        return [Compilation(self.compilation is True)] if self.compilation else []

    def setup(self, stage: str) -> None:
        device = self.trainer.strategy.root_device
        if stage == "fit" and device.type == "cuda":  # before the strategy wraps the module
            use_layout_of(device, self)

    def on_fit_start(self) -> None:
        if wrong := self.described_parts()[1]:
            remedy = "ScoreModule.load_from_checkpoint(FILE, denoiser=...)"
            message = f"{wrong}. Until then, a checkpoint is loaded with the part given: {remedy}"
            rank_zero_only(warnings.warn)(message, stacklevel=2)
        self.seed = torch.initial_seed()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        # All randomness of a step (flips, levels, noise, dropout) follows from
        # (seed, step, rank), so that a resumed run repeats it.
        if self.trainer.training:
            # `torch.manual_seed` also seeds absent devices: 2 % of a small step.
            generator = torch.default_generator if self.device.type == "cpu" else torch
            generator.manual_seed(self.step_seed)
        return batch

    @property
    def step_seed(self) -> int:
        """Return the seed of the step, which depends on (seed, step, rank)."""
        return mixed_seed(self.seed, self.trainer.fit_loop.total_batch_idx, self.global_rank)

    @property
    def logs(self) -> bool:
        """Return True if this step is logged; other steps skip the cost."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (self.global_step + 1) % every == 0

    def examples(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return the examples (B, *shape) of a batch, and the labels that the model takes.

        Raises:
            ValueError: if they are of another shape, or are no floating-point numbers.
        """
        x, label = (batch, None) if isinstance(batch, Tensor) else (*batch, None)[:2]
        network = getattr(self.denoiser, "network", None)
        if x.shape[1:] != self.shape or not x.is_floating_point():
            shape = ", ".join(map(str, self.shape))
            found = f"{x.dtype} of shape {tuple(x.shape)}"
            raise ValueError(f"expected batches of floats (B, {shape}), got {found}")
        # A network of one's own may take labels without telling their number.
        if label is not None and not getattr(network, "classes", network is not None):
            warnings.warn("the batches have labels, which the model does not take", stacklevel=2)
            label = None
        return x, label

    def random_losses(self, x: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return training losses (B,) and their levels (B, 1, ..., 1), random as of this step."""
        with Streams(self.step_seed, range(len(x)), x.device):
            if label is not None:
                u = uniform(torch.empty(len(x), device=x.device))
                label = torch.where(u < self.label_dropout, -1, label)
            if self.augment:
                x, label = augmented(x, label, self.augment)
            sigma = self.schedule.sample(x)
            return self.losses(x, sigma, label), sigma

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        x, label = self.examples(batch)
        losses, sigma = self.random_losses(x, label)
        loss = losses.mean()
        if self.logs:
            per_dimension = loss.detach() / x[0].numel()
            self.log("train/loss", per_dimension, prog_bar=True, batch_size=len(x))
        # The factor is 1, or NaN if the loss is not finite, which drops the step below.
        loss = loss * (1 + 0 * loss.detach())
        accumulate = self.trainer.accumulate_grad_batches
        # The last step of an epoch may have fewer batches than Lightning divides by.
        left = self.trainer.num_training_batches - batch_idx // accumulate * accumulate
        if 0 < left < accumulate:  # Lightning may resume an epoch that is over
            loss = loss * (accumulate / left)
        losses = losses.detach() / x[0].numel()
        return {"loss": loss, "losses": losses, "sigma": sigma.flatten()}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        # Every validation uses the same noise and levels, for comparable losses.
        x, label = self.examples(batch)
        seed = mixed_seed(self.seed, batch_idx, self.global_rank)
        with (
            torch.random.fork_rng([x.device] if x.is_cuda else []),
            Streams(seed, range(len(x)), x.device),
        ):
            torch.manual_seed(seed)  # of an objective that takes numbers of torch's own
            losses = self.losses(x, self.schedule.sample(x), label)
        loss = losses.mean() / x[0].numel()
        self.log("val/loss", loss, prog_bar=True, batch_size=len(x), sync_dist=True)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        norm = gradient_norm(p for group in optimizer.param_groups for p in group["params"])
        # The step would make all weights NaN. Reading the norm would make a GPU wait.
        skipped = ~norm.isfinite()
        self.skipped_steps = self.skipped_steps + skipped
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * skipped
        skip_step(optimizer, skipped)
        if self.logs:
            in_a_row = int(self.skipped_in_a_row)
            if in_a_row >= MOST_SKIPPED:
                raise FloatingPointError(
                    f"the loss or its gradient was not finite in {in_a_row} steps in a row, up to step "
                    f"{self.global_step + 1}: lower model.optimizer.lr, or set trainer.gradient_clip_val"
                )
            self.log("train/gradient_norm", norm)
            self.log("train/skipped_steps", float(self.skipped_steps))
            self.log("train/learning_rate", optimizer.param_groups[0]["lr"])

    def described_parts(self) -> tuple[dict[str, Any], str]:
        """Return the settings of the parts that were made in Python, and the last error."""
        known, wrong = {}, ""
        for name in (*PARTS, "objective"):
            part, is_known = getattr(self, name), name in self.hparams
            if not is_known or is_dataclass(part):  # it may have been replaced
                try:
                    known[name] = described(part, f"model.{name}")
                except ValueError as error:
                    wrong = wrong if is_known else str(error)
        return known, wrong

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        known = {**checkpoint.get("hyper_parameters", {}), **self.described_parts()[0]}
        ours = {"_instantiator", *signature(ScoreModule).parameters}
        checkpoint["hyper_parameters"] = {name: known[name] for name in known if name in ours}
        checkpoint[OF_SUBCLASS] = {}
        for name in known.keys() - ours:
            with suppress(ValueError):
                checkpoint[OF_SUBCLASS][name] = plain_value(known[name], name, described)
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, DataModule) and DATA not in checkpoint:
            with suppress(ValueError):
                checkpoint[DATA] = described(data, "data")
        checkpoint[PRECISION] = str(self.trainer.precision)
        checkpoint["skipped_steps"] = [int(self.skipped_steps), int(self.skipped_in_a_row)]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.skipped_steps, self.skipped_in_a_row = checkpoint.get("skipped_steps", (0, 0))

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        schedule = LambdaLR(optimizer, self.learning_rate_at)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def learning_rate_at(self, step: int) -> float:
        """Return the factor of the learning rate: it rises, stays at 1, and falls."""
        # To count the steps of epochs, Lightning begins the data, which a resumed run must not do
        # before it knows its position. `on_train_start` sets the rate again.
        begun = self._trainer is not None and self.trainer.train_dataloader is not None
        steps = self.trainer.estimated_stepping_batches - self.steps_before if begun else math.inf
        warmup, cooldown = self.ramps(steps)
        rise, fall = (step + 1) / (warmup + 1), (steps - step) / (cooldown + 1)
        return min(1.0, rise, max(0.0, fall) if cooldown else 1.0)

    def ramps(self, steps: float) -> tuple[int, int]:
        """Return `warmup` and `cooldown`, shortened to fit a run of so many steps."""
        share = min(1.0, (steps - 1) / max(1, self.warmup + self.cooldown))
        return int(share * self.warmup), int(share * self.cooldown)

    def on_train_start(self) -> None:
        # The state of a checkpoint is contiguous, and fused optimisers take one layout.
        for optimizer in self.trainer.optimizers:
            for p, state in optimizer.state.items():
                for name, value in state.items():
                    if getattr(value, "shape", None) == p.shape and value.stride() != p.stride():
                        state[name] = torch.empty_like(p, dtype=value.dtype).copy_(value)
        steps = self.trainer.estimated_stepping_batches
        asked, ramps = (self.warmup, self.cooldown), self.ramps(steps)
        if ramps != asked:
            rank_zero_warn(
                f"model.warmup and model.cooldown: {asked} steps are shortened to {ramps}, "
                f"to fit the {steps} steps of the run"
            )
        if self.cooldown and steps == math.inf:
            rank_zero_warn("model.cooldown has no effect without trainer.max_steps")
        # The learning rate of this run replaces that of the checkpoint.
        schedule = self.lr_schedulers()
        if not isinstance(schedule, LambdaLR) or schedule.lr_lambdas[0] != self.learning_rate_at:
            return  # a subclass has its own
        self.steps_before = self.global_step - schedule.last_epoch
        groups = self.optimizer(self.parameters()).param_groups
        schedule.base_lrs = [group["lr"] for group in groups]
        factor, before = self.learning_rate_at(schedule.last_epoch), schedule.get_last_lr()
        for group, rate in zip(schedule.optimizer.param_groups, schedule.base_lrs, strict=True):
            group |= {"lr": rate * factor, "initial_lr": rate}
        rate = schedule.base_lrs[0] * factor
        if schedule.last_epoch and before[0] != rate:
            rank_zero_warn(
                f"the learning rate goes on at {rate:.3g}, and was {before[0]:.3g}: it follows "
                "from model.optimizer.lr, model.warmup, model.cooldown and trainer.max_steps"
            )


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Return the Euclidean norm () of all gradients together, 0 if there are none."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    # `nn.utils.get_total_norm` takes longer: it groups them by device and dtype.
    norms = torch._foreach_norm(gradients) if gradients else [torch.zeros(())]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm
