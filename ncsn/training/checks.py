"""Checks of a run before it begins, so that a refused run leaves nothing behind."""

import math
import re
from datetime import timedelta
from inspect import Parameter, signature
from pathlib import Path
from pydoc import locate
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer
from torch import nn

from ncsn.data import DataModule
from ncsn.data.module import limited
from ncsn.model.classes import ALL_ROOMS, classes
from ncsn.model.labels import NO_LABEL
from ncsn.model.names import closest, did_you_mean
from ncsn.objectives import Weighted
from ncsn.training.hints import meant
from ncsn.training.module import ScoreModule

__all__ = [
    "check_accumulation",
    "check_loss",
    "check_nulls",
    "check_optimizer",
    "check_precision",
    "check_settings",
    "with_hint",
]

EXAMPLES = 16  # that the loss is tried on
FORKING = ("_spawn", "_fork", "_notebook")  # endings of strategies
PRECISIONS = (None, 32, "32", "32-true", "16-mixed", "bf16-mixed")

LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
}  # of settings of the trainer
# Callbacks of Lightning that would change settings behind the run's back, and what to set.
REFUSED = {
    "BatchSizeFinder": "data.batch_size",
    "EMAWeightAveraging": "ema.decay",
    "GradientAccumulationScheduler": "trainer.accumulate_grad_batches",
    "LearningRateFinder": "model.optimizer.lr",
    "ModelPruning": "a narrower network",
    "StochasticWeightAveraging": "ema.decay",
    "Timer": "trainer.max_time",
    "WeightAveraging": "ema.decay",
}


def check_settings(config: Namespace) -> None:
    """Refuse settings that make no sense, and that the parser accepts."""
    name, seed, trainer = config.name, config.seed_everything, config.trainer
    path = config.model.optimizer.class_path
    if torch.optim.Optimizer not in getattr(locate(path), "__mro__", ()):  # it would be called
        raise ValueError(f"model.optimizer: {path} is not a subclass of torch.optim.Optimizer")
    if name in ("", "..") or Path(name).name != name:
        raise ValueError(f"name: {name!r} is not the name of a folder")
    if seed is None or not 0 <= seed < 2**32:
        raise ValueError(f"seed_everything: expected an integer from 0 to {2**32 - 1}, got {seed}")
    for key in ("max_steps", "max_epochs", "limit_train_batches", "val_check_interval"):
        if trainer[key] == 0:
            raise ValueError(f"trainer.{key}: 0 leaves nothing to do")
    given = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
    for made in [one.class_path.rpartition(".")[2] for one in given if one]:
        if made in REFUSED:
            raise ValueError(
                f"trainer.callbacks: {made} is not for these runs; set {REFUSED[made]}"
            )
    for key, least in LEAST.items():
        if trainer[key] is not None and not trainer[key] >= least:
            raise ValueError(f"trainer.{key}: expected at least {least}, got {trainer[key]}")
    if isinstance(trainer.val_check_interval, dict):
        try:
            timedelta(**trainer.val_check_interval)
        except TypeError as error:
            key = "trainer.val_check_interval"
            raise ValueError(f"{key}: {error}; give training batches, or {{minutes: 5}}") from error
    if trainer.precision not in PRECISIONS:
        allowed = ", ".join(map(str, PRECISIONS[1:]))
        raise ValueError(
            f"trainer.precision: {trainer.precision} is none of {allowed}: noise levels stay in "
            "float32, and only the network may run in less"
        )
    if str(trainer.strategy).endswith(FORKING):
        raise ValueError(
            f"trainer.strategy: {trainer.strategy} would train in processes that this one cannot "
            "follow; take ddp"
        )
    if trainer.overfit_batches:
        raise ValueError("trainer.overfit_batches: train on a folder of a few images instead")


def with_hint(message: str, parser: ArgumentParser) -> str:
    """Return a parser's message, with the known name that an unknown one is close to."""
    unknown = re.search(
        r"(unrecognized arguments: --|Option '|import path string: )([\w.-]+)", message
    )
    if unknown is None:
        return message
    start, name = unknown.groups()
    parts, options = classes(ALL_ROOMS), set(re.findall(r"--([\w.]+)", parser.format_help()))
    if start.startswith("import"):
        hint = did_you_mean(name, {path.rpartition(".")[2] for path in parts})
    elif start.startswith("unrecognized") and "." not in name:
        hint = meant(name, options)
    else:
        known = {part for option in options for part in option.split(".")}
        known |= {key for made in parts.values() for key in signature(made).parameters}
        words = [word if word in known else closest(word, known) for word in name.split(".")]
        full = ".".join(words)
        if start.startswith("unrecognized"):
            hint = f"; did you mean --{full}?" if full != name else ""
        else:
            hint = did_you_mean(next((p for p in name.split(".") if p not in known), ""), known)
    before, found, rest = message.strip().partition(unknown[0])
    line, newline, others = rest.partition("\n")  # jsonargparse goes on in more lines
    return f"{before}{found}{line}{hint}{newline}{others}"


def check_nulls(settings: dict[str, Any], made: Any, where: str) -> None:
    """Refuse null, which the parser accepts, for arguments of a class that need a value."""
    if "class_path" in settings:
        made, settings = locate(settings["class_path"]), settings.get("init_args") or {}
    for name, parameter in signature(made).parameters.items():
        value, key = settings.get(name, parameter.default), f"{where}.{name}"
        optional = parameter.default in (None, Parameter.empty)
        if value is None and not (optional or re.search("None|Optional", str(parameter))):
            raise ValueError(f"{key}: null, and must have a value")
        if isinstance(value, dict) and "class_path" in value:
            check_nulls(value, None, key)


def check_precision(config: Namespace, device: torch.device) -> None:
    """Refuse a precision that does not suit the device or a fused optimiser."""
    precision, clip = str(config.trainer.precision), config.trainer.gradient_clip_val
    if config.model.optimizer.get("init_args", {}).get("fused"):
        advice = "does not go with model.optimizer.fused: true; set it to false"
        if precision == "16-mixed":
            raise ValueError(f"trainer.precision: 16-mixed {advice}")
        if precision.endswith("mixed") and clip:
            raise ValueError(f"trainer.gradient_clip_val: in {precision} it {advice}")
    if precision == "16-mixed" and device.type == "cpu":
        raise ValueError("trainer.precision: 16-mixed needs a GPU; take bf16-mixed on a CPU")


def check_optimizer(model: ScoreModule, device: torch.device) -> bool:
    """Make the optimiser, let another like it take a step, and return True if it keeps a state."""
    rate = model.hparams["optimizer"].get("init_args", {}).get("lr")
    if rate is not None and not 0 < rate < math.inf:
        raise ValueError(f"model.optimizer.lr: {rate}, and must be positive and finite")
    weights = nn.Parameter(torch.zeros(2, 2, device=device))
    weights.grad = torch.ones_like(weights)
    try:
        model.configure_optimizers()
        with torch.enable_grad():
            trial = model.optimizer([weights])
            trial.step(lambda: weights.sum().item())
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ValueError(f"model.optimizer: {error}, with lr {rate}") from error
    return any(trial.state.values())


def check_accumulation(trainer: Trainer, data: DataModule) -> None:
    """Refuse to accumulate the gradients of more batches than an epoch has."""
    of_rank = len(data.splits["train"]) // trainer.world_size // data.batch_size
    batches, asked = limited(of_rank, trainer.limit_train_batches), trainer.accumulate_grad_batches
    if asked > max(batches, 1):  # Lightning refuses an epoch of none
        raise ValueError(
            f"trainer.accumulate_grad_batches: expected at most the {batches} batches of an "
            f"epoch, got {asked}; lower it, and raise data.batch_size"
        )


def check_loss(model: ScoreModule, data: DataModule) -> None:
    """Compute the loss of some examples."""
    examples = data.splits["train"]
    x, label = data.on_after_batch_transfer(examples[[*range(min(EXAMPLES, len(examples)))]], 0)
    if model.objective.binary_data and not ((x == 0) | (x == 1)).all():
        name = type(model.objective).__name__
        raise ValueError(f"model.objective: {name} expects data of zeros and ones (data)")
    if label is not None and model.label_dropout:
        label = label.index_fill(0, torch.tensor([0]), NO_LABEL)
    model.eval()  # a trial changes no running statistics
    try:
        with torch.random.fork_rng([]), torch.no_grad():  # the model is on the CPU
            sigma = model.schedule.sample(x)
            losses = model.losses(x, sigma, label)
    except IndexError as error:
        raise ValueError(
            f"model.denoiser.network: it does not take every label up to {data.classes - 1}, and "
            f"{NO_LABEL} for no class (unless model.label_dropout is 0): {error}"
        ) from error
    except (ValueError, RuntimeError) as error:
        data_shape = f"this data, examples of shape {model.shape}"
        raise ValueError(f"model: it has no loss on {data_shape}: {error}") from error
    model.train()
    if losses.shape != (len(x),):
        raise ValueError(
            f"model.objective: expected a loss for each of {len(x)} examples, got the shape "
            f"{tuple(losses.shape)}"
        )
    if not losses.isfinite().all():
        found = losses[:2].tolist()
        raise ValueError(
            f"model: its loss on the data is {found}; is a noise level 0 (model.schedule)?"
        )
    if isinstance(model.objective, Weighted) and model.objective.power and not sigma.any():
        raise ValueError(
            "model.objective: Weighted by a power of the noise level, which is 0 (model.schedule), "
            "learns nothing; take its objective alone"
        )
