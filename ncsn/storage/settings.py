"""Settings that a file holds, and what is built of them: classes of this package's kinds, and no others."""

import importlib
import importlib.util
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ncsn.data import DataModule
from ncsn.densities import Density
from ncsn.errors import reason
from ncsn.noise import NoiseSchedule
from ncsn.objectives import Corruption, Objective
from ncsn.samplers import Sampler
from ncsn.score import ScoreModel

__all__ = ["at_most_parameters", "built", "check_weights", "rebuilt"]

Module = TypeVar("Module", bound=LightningModule)

MOST_NUMBERS = 2_000_000_000
"""In the parameters of a network."""
KINDS: dict[str, type] = {
    "denoiser": ScoreModel,
    "network": nn.Module,
    "energy": nn.Module,
    "schedule": NoiseSchedule,
    "objective": Objective,
    "corruption": Corruption,
    "target": Density,
    "density": Density,
    "sampler": Sampler,
    "data": DataModule,
}
"""The settings of a model, and of its data, that name a class, and what it must be."""


def rebuilt(kind: type[Module], content: dict[str, Any], path: str | Path, **parts: Any) -> Module:
    """The module of the settings `hyper_parameters` in `content`, read from `path`, with its weights, the `state_dict`.

    Args:
        kind: its class.
        content: tensors and plain values.
        path: for the error.
        parts: arguments in place of those that the settings have, or do not have.

    Raises:
        ValueError: where the settings name a class that is not of the right kind, do not describe such a module, or
            describe one that the weights are not of.
    """
    if not all(isinstance(content.get(key), dict) for key in ("hyper_parameters", "state_dict")):
        raise ValueError(f"checkpoint: {path} is not a training checkpoint of this package")
    # The optimiser is not needed here: what is not built can do no harm.
    left_out = {"_instantiator", "optimizer", *parts}
    settings = {key: value for key, value in content["hyper_parameters"].items() if key not in left_out}
    weights = content["state_dict"]
    if "denoiser" in settings:
        # First without memory for its weights, and no more of them than the file bears out: the settings may claim a
        # network that no memory holds, or that takes days to make.
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(ScoreModel, "denoiser")
        with torch.device("meta"), at_most_parameters(4 * len(weights)):
            denoiser = built(parser, {"denoiser": settings["denoiser"]}, "model", path).denoiser
        check_weights(nn.ModuleDict({"denoiser": denoiser}), weights, path)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, None, instantiate=False, skip={"optimizer", *parts})
    arguments = built(parser, settings, "model", path)
    try:
        module = kind(**vars(arguments), **parts)
    except ValueError as error:
        raise _unfit("model", path, error) from error
    module.hparams.update({key: value for key, value in content["hyper_parameters"].items() if key not in parts})
    check_weights(module, weights, path)
    module.load_state_dict(weights)
    return module


@contextmanager
def at_most_parameters(most: int) -> Iterator[None]:
    """Refuse, meanwhile, to make modules of more parameters than so many.

    Raises:
        ValueError: at the first that is too many.
    """
    made = numbers = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal made, numbers
        made, numbers = made + 1, numbers + (0 if parameter is None else parameter.numel())
        if made > most or numbers > MOST_NUMBERS:  # before they are filled, which is what takes memory
            raise ValueError(
                f"model.denoiser: a larger network than is allowed, of more than {most:,} parameters or "
                f"{MOST_NUMBERS:,} numbers in them"
            )

    counting = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        counting.remove()


def check_weights(module: nn.Module, weights: dict[str, Any], path: str | Path) -> None:
    """Refuse weights that are not those of the module.

    Raises:
        ValueError: with the first that is missing, not known, or of another shape.
    """
    expected = module.state_dict()
    for name in [*expected, *weights]:
        theirs = tuple(getattr(weights[name], "shape", ("no tensor",))) if name in weights else "missing"
        ours = tuple(expected[name].shape) if name in expected else "not known"
        if theirs != ours:
            raise ValueError(f"checkpoint: {path} is of another network: its {name} is {theirs}, here it is {ours}")


def built(parser: ArgumentParser, settings: dict[str, Any], name: str, path: str | Path) -> Namespace:
    """What a parser makes of the settings of a `name` in the checkpoint `path`, once all of their classes are checked.

    Raises:
        ValueError: where they name a class that is not of the right kind, or do not describe what they should.
    """
    try:
        for kind, class_path in named_classes(settings):
            check_class(kind, class_path)
        objects: Namespace = parser.instantiate_classes(parser.parse_object(settings))
        return objects
    except Exception as error:
        raise _unfit(name, path, error) from error


def _unfit(name: str, path: str | Path, error: Exception) -> ValueError:
    return ValueError(f"checkpoint: the settings in {path} do not build its {name}: {reason(error)}")


def named_classes(settings: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every setting that names a class, or should, with the import path that it names."""
    if key in KINDS:
        yield key, settings["class_path"] if isinstance(settings, dict) else str(settings)
    elif isinstance(settings, dict) and "class_path" in settings:
        yield key, settings["class_path"]
    if isinstance(settings, dict):
        for name, value in settings.items():
            yield from named_classes(value, name)


def check_class(kind: str, path: str) -> None:
    """Refuse an import path that does not lead to a class of the kind, without importing what has no business here.

    Raises:
        ValueError: with the path.
    """
    module, _, name = path.rpartition(".")
    package = module.partition(".")[0]
    if package != "ncsn" and (not package or is_installed(package)):
        found = not package or importlib.util.find_spec(package) is not None
        hint = (
            "" if found else f": Python finds no {package}.py; put it beside the command, or its folder on PYTHONPATH"
        )
        raise ValueError(f"{kind} names {path}, which is neither of this package nor code of your own{hint}")
    named = getattr(importlib.import_module(module), name, None)
    if not isinstance(named, type) or not issubclass(named, KINDS.get(kind, tuple(KINDS.values()))):
        raise ValueError(f"{kind} names {path}, which is not a class of that kind")


def is_installed(package: str) -> bool:
    """Whether a top-level package is Python's own, or was installed among its libraries."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return True
    libraries = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return not Path(spec.origin).is_file() or any(library in Path(spec.origin).parents for library in libraries)
