"""What the options of the commands that draw choose: the sampler, the ladder, the classes, the devices."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from inspect import signature
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from ncsn.evaluation.walks import Walks
from ncsn.model.classes import KINDS
from ncsn.model.model import Model, part_of
from ncsn.model.plans import VARIADIC, declared_argument, stands_for
from ncsn.samplers import Sampler
from ncsn.score import Score
from ncsn.training.memory import keep_freed_memory
from ncsn.training.processes import check_processes, plugins

__all__ = [
    "chosen_device",
    "chosen_sampler",
    "chosen_trainer",
    "chosen_walks",
    "ladder",
    "place_of",
]


def chosen_walks(
    module: Model,
    options: Namespace,
    of_sampler: Sequence[str],
    guide: Callable[[Score], Score] | None,
    finish: Callable[[Tensor], Tensor],
) -> Walks:
    """The walks that the options describe: by their sampler, down their ladder, with their classes and seed.

    Raises:
        ArgumentError, ValueError: where an option does not fit the model.
    """
    sampler = chosen_sampler(module, of_sampler)
    sigmas = ladder(module, options, sampler)
    sampler.check(sigmas)
    part_of(module.denoiser, sampler)
    if options.compile:
        try:
            module.compile_network("reduce-overhead")
        except ValueError as error:
            raise ValueError(f"--compile: {error}") from error
    return Walks(
        module, options.seed, sampler, sigmas, chosen_labels(module, options.label), guide, finish
    )


def chosen_trainer(options: Namespace, *callbacks: Callback) -> Trainer:
    """What predicts on the devices of the options.

    Raises:
        ValueError: where this machine does not have them, or torchrun or SLURM started another number of processes.
    """
    accelerator, devices = chosen_device(options.device)
    if accelerator == "cpu":
        keep_freed_memory()
    devices = options.devices if isinstance(devices, int) else devices
    many = options.num_nodes > 1 or (isinstance(devices, int) and devices > 1)
    trainer = Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=options.num_nodes,
        precision=options.precision,
        strategy="ddp" if many else "auto",
        callbacks=list(callbacks),
        inference_mode=False,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        plugins=list(plugins()),
    )
    check_processes(trainer)
    return trainer


def ladder(module: Model, options: Namespace, sampler: Sampler, usual: int | None = None) -> Tensor:
    """The noise levels that the options ask for, spaced for the sampler, or the model's own where they ask for none.

    Args:
        module: what is drawn from; it has the ends of the ladder that are not given.
        options: of them, `steps`, `sigma_max` and `sigma_min`.
        sampler: what walks it.
        usual: how many levels where the options do not say, in place of as many as the model's own.

    Raises:
        ValueError: where the ends are not two, or the model knows one level alone, between which there are no others.
    """
    trained = module.schedule.sigmas()
    given = {"steps": options.steps, "sigma-max": options.sigma_max, "sigma-min": options.sigma_min}
    asked = ", ".join(f"--{name}: {value}" for name, value in given.items() if value is not None)
    if not asked and usual is None:
        return trained
    if len(trained) == 1:
        raise ValueError(
            f"{asked or f'{usual} levels'}, but the model was trained at the one noise level {trained.item():g}"
        )
    levels = options.steps or usual or len(trained)
    try:
        return module.sigmas_for(sampler, levels, options.sigma_max, options.sigma_min)
    except ValueError as error:
        raise ValueError(f"{asked}: {error}") from error


def chosen_device(name: str) -> tuple[str, int | list[int]]:
    """Lightning's accelerator and devices for the device called `name`, or for the fastest one for "auto".

    Raises:
        ValueError: where this machine has no such device.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return (accelerator.type if accelerator else "cpu"), 1
    names = ["cpu"]
    if accelerator:
        names += [
            accelerator.type,
            *(f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count())),
        ]
    if name not in names:
        raise ValueError(f"--device: {name} is not on this machine; it has {', '.join(names)}")
    kind, _, number = name.partition(":")
    return kind, [int(number)] if number else 1


def place_of(name: str) -> torch.device:
    """The device called `name`, for what one device does.

    Raises:
        ValueError: where this machine has no such device.
    """
    accelerator, devices = chosen_device(name)
    return torch.device(accelerator if isinstance(devices, int) else f"{accelerator}:{devices[0]}")


def chosen_labels(module: Model, label: str | None) -> Callable[[Tensor], Tensor | None]:
    """The classes (B,) of samples by their indices (B,): none, one for all, or each class in its turn for "all".

    Raises:
        ValueError: where the model knows no classes, or not this one.
    """
    if label is None:
        return lambda indices: None
    if not module.classes:
        raise ValueError(
            f"--label: {label}, but this model was trained without labels (--data.labels true)"
        )
    if label == "all":
        return lambda indices: indices % module.classes
    if not label.isdecimal() or int(label) >= module.classes:
        raise ValueError(
            f"--label: {label} is neither `all` nor one of the classes 0 to {module.classes - 1}"
        )
    return lambda indices: torch.full_like(indices, int(label))


def chosen_sampler(module: Model, options: Sequence[str]) -> Sampler:
    """Return the model's own sampler, or what the options make of it.

    Raises:
        ArgumentError: if they name a class or a setting that does not exist.
        ValueError: if a setting cannot have the value, or one of the model's own sampler cannot be read back.
    """
    if not options:
        return module.sampler
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Sampler, "sampler", required=True)
    replaced = any(option.partition("=")[0] == "--sampler" for option in options)
    try:
        own = (module.settings or {}).get("hyper_parameters") or {}
        parser.set_defaults(sampler=described(module.sampler, own.get("sampler")))
    except UnreadableError:
        if not replaced:
            raise
    sampler = parser.instantiate_classes(parser.parse_args(list(options))).sampler
    assert isinstance(sampler, Sampler)
    return sampler


class UnreadableError(ValueError):
    """An argument of an object that is known neither from settings nor from an attribute."""


def described(part: object, settings: object = None) -> dict[str, Any]:
    """Return the class of an object and its arguments, as a parser takes them.

    The parser may import what a text names, so that a text from the settings is passed on only as an argument that is
    declared to be text, and the class is that of the object.

    Args:
        part: the object, whose arguments are its attributes of the same name if it has no settings.
        settings: its `{class_path, init_args}`, checked when they were loaded; or anything else if there are none.

    Raises:
        UnreadableError: if an argument cannot be read back.
    """
    made = type(part)
    given = settings.get("init_args", {}) if isinstance(settings, dict) else None
    parameters = {
        name: parameter
        for name, parameter in signature(made).parameters.items()
        if parameter.kind not in VARIADIC
    }
    arguments: dict[str, Any] = {}
    for name in parameters if given is None else given:
        if given is None and not hasattr(part, name):
            raise unreadable(made, name)
        value = getattr(part, name) if given is None else given[name]
        declared, default = declared_argument(made, name)
        if (given is not None and stands_for(value, default)) or value is default:
            continue
        if given is not None and isinstance(value, dict):
            value = getattr(part, name, None)
            if not isinstance(value, KINDS):
                raise unreadable(made, name)
            arguments[name] = described(value, given[name])
        elif is_readable(value, declared):
            arguments[name] = value
        elif given is None and isinstance(value, KINDS):
            arguments[name] = described(value)
        else:
            raise unreadable(made, name)
    return {"class_path": f"{made.__module__}.{made.__qualname__}", "init_args": arguments}


def is_readable(value: object, declared: object) -> bool:
    """Return True for numbers, and for text if it is declared to be text, in lists or not."""
    if isinstance(value, (list, tuple)):
        return all(is_readable(one, None) for one in value)
    if isinstance(value, str):
        options = get_args(declared) if get_origin(declared) in (Union, UnionType) else (declared,)
        return all(
            option in (str, NoneType, bool, int, float) or get_origin(option) is Literal
            for option in options
        )
    return isinstance(value, (NoneType, bool, int, float))


def unreadable(made: type, name: str) -> UnreadableError:
    """Return the error for an argument that cannot be read back."""
    return UnreadableError(
        f"--sampler: the {name} of the checkpoint's {made.__name__} cannot be read back; name the class too, "
        "as in --sampler CLASS, with all of its settings"
    )
