"""Settings that a file holds, and what is rebuilt from them: a model, or the data that it was trained on.

A stranger may have written them. All of them are checked before anything is built (`ncsn.model.plans`), and nothing
is imported because a file names it (`ncsn.model.classes`).
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.optim import Optimizer

from ncsn.data import DataModule
from ncsn.model.classes import UnknownClassError, one_line, shown, unknown_classes
from ncsn.model.plans import Plan, build, check_plain, declared_argument, plan_arguments, plan_class

__all__ = [
    "at_most_parameters",
    "check_settings",
    "check_weights",
    "plain_data",
    "rebuilt",
    "rebuilt_data",
]

Module = TypeVar("Module", bound=LightningModule)

MOST_NUMBERS = 2_000_000_000
"""In the parameters of a network."""
NOT_BUILT = ("_instantiator", "optimizer")
"""Settings of a model that loading it does not need."""


NOT_CHOSEN = ("memory", "workers")
"""Settings of data that a file does not choose, since they only say what reading it may cost."""


def rebuilt(
    kind: type[Module],
    content: dict[str, Any],
    path: str | Path,
    trust: Collection[str] = (),
    **parts: Any,
) -> Module:
    """Rebuild a module from the settings `hyper_parameters` in `content`, with its weights, the `state_dict`.

    Args:
        kind: its class.
        content: tensors and plain values, read from `path`.
        path: for the error.
        trust: the names of the user's own classes that the settings may name.
        parts: arguments in place of those that the settings have, or do not have.

    Raises:
        ValueError: if the settings name a class that is not of the right kind, do not describe such a module, or
            describe one that the weights are not of.
    """
    if not all(isinstance(content.get(key), dict) for key in ("hyper_parameters", "state_dict")):
        raise ValueError(f"checkpoint: {path} is not a training checkpoint of this package")
    settings = {
        key: value for key, value in content["hyper_parameters"].items() if key not in parts
    }
    weights = content["state_dict"]
    with settings_errors("model", path), all_unknown(without(settings, NOT_BUILT), trust):
        arguments = module_arguments(kind, settings, trust, parts)
        if "denoiser" in arguments:
            # First without memory for its weights, and no more of them than the file bears out: the settings may claim
            # a network that no memory holds, or that takes days to make.
            with torch.device("meta"), at_most_parameters(4 * len(weights)):
                denoiser = build(arguments["denoiser"])
    if "denoiser" in arguments:
        check_weights(nn.ModuleDict({"denoiser": denoiser}), weights, path)
    with settings_errors("model", path):
        module = kind(**{name: build(value) for name, value in arguments.items()}, **parts)
    module.hparams.update(
        {key: value for key, value in settings.items() if key not in NOT_BUILT or is_plain(value)}
    )
    check_weights(module, weights, path)
    module.load_state_dict(weights)
    return module


def rebuilt_data(settings: object, path: str | Path, trust: Collection[str] = ()) -> DataModule:
    """Rebuild the data module of the settings in a file. It reads from the folder `root` that they name, if it exists.

    What reading may cost (`NOT_CHOSEN`) is not taken from the file.

    Raises:
        ValueError: if the settings do not describe a data module, or there is no such folder.
    """
    with settings_errors("data", path), all_unknown(settings, trust):
        plan = data_plan(settings, trust)
        root = plan.arguments.get("root")
        if isinstance(root, str) and not Path(root).is_dir():
            raise ValueError(
                f"data.root: there is no folder {shown(root)}, and none is made because a file names it; put the data "
                "there, or evaluate with --data CONFIG"
            )
        if isinstance(root, str) and Path(root).resolve() == Path(Path(root).resolve().anchor):
            raise ValueError(
                f"data.root: {shown(root)} is the whole disk; evaluate with --data CONFIG"
            )
        for name in NOT_CHOSEN:
            if declared_argument(plan.made, name)[1] is not Parameter.empty:
                plan.arguments.pop(name, None)
        data = build(plan)
    assert isinstance(data, DataModule)
    data.downloads = False
    data.save_hyperparameters(settings, logger=False)
    return data


def check_settings(
    kind: type[LightningModule],
    settings: object,
    data: object,
    path: str | Path,
    trust: Collection[str] = (),
) -> None:
    """Check all settings in a file, its optimiser's too, as if they were to be built.

    Args:
        kind: the class of the module.
        settings: those of the module.
        data: those of its data, or None.
        path: for the error.
        trust: the names of the user's own classes.

    Raises:
        ValueError: if they describe something else than a module, its data and an optimiser of torch's kind.
    """
    with settings_errors("model", path), all_unknown([settings, data], trust):
        if not isinstance(settings, dict):
            raise ValueError("the settings are not a dictionary")
        module_arguments(kind, settings, trust)
        if "optimizer" in settings:
            check_plain(settings["optimizer"], "optimizer")
            plan_class(
                settings["optimizer"], (Optimizer,), "optimizer", trust, given_elsewhere=("params",)
            )
    if data is not None:
        with settings_errors("data", path):
            data_plan(data, trust)


def plain_data(content: dict[str, Any], key: str, path: str | Path) -> dict[str, Any] | None:
    """Return the settings of the data in a file, if it has them: to keep, and not to build.

    Raises:
        ValueError: if they are not plain values.
    """
    settings: dict[str, Any] | None = content.get(key)
    with settings_errors("data", path):
        if settings is not None and not isinstance(settings, dict):
            raise ValueError("the settings are not a dictionary")
        check_plain(settings, "data")
    return settings


def module_arguments(
    kind: type[LightningModule],
    settings: dict[str, Any],
    trust: Collection[str],
    parts: Collection[str] = (),
) -> dict[str, Any]:
    """Plan the arguments of a module, without its optimiser.

    Raises:
        ValueError: if the settings do not fit.
    """
    built = without(settings, NOT_BUILT)
    check_plain(built, "model")
    return plan_arguments(kind, built, "", trust, given_elsewhere={*NOT_BUILT, *parts})


def data_plan(settings: object, trust: Collection[str]) -> Plan:
    """Plan a data module.

    Raises:
        ValueError: if the settings do not describe one.
    """
    check_plain(settings, "data")
    return plan_class(settings, (DataModule,), "data", trust)


def without(settings: dict[str, Any], left_out: Collection[str]) -> dict[str, Any]:
    """Return the settings but for those left out."""
    return {key: value for key, value in settings.items() if key not in left_out}


@contextmanager
def all_unknown(settings: object, trust: Collection[str]) -> Iterator[None]:
    """Let the refusal of one class name all classes in the settings that are not known.

    Raises:
        UnknownClassError: for the same class.
    """
    try:
        yield
    except UnknownClassError as error:
        others = unknown_classes(settings, trust) if is_plain(settings) else []
        raise UnknownClassError(error.path, error.key, others) from error


def is_plain(value: object) -> bool:
    """Return True for plain values, in lists and dictionaries or not."""
    try:
        check_plain(value, "")
    except ValueError:
        return False
    return True


@contextmanager
def settings_errors(name: str, path: str | Path) -> Iterator[None]:
    """Raise any error as a ValueError that names the file, and what its settings do not build.

    Raises:
        ValueError: for any exception.
    """
    try:
        yield
    except Exception as error:  # of any kind, as a constructor raises it
        raise ValueError(
            f"checkpoint: the settings in {path} do not build its {name}: {one_line(error)}"
        ) from error


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
        if (
            made > most or numbers > MOST_NUMBERS
        ):  # before they are filled, which is what takes memory
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
        ValueError: with the first that is missing, not known, or of another shape or kind of numbers.
    """

    def described(tensors: Mapping[str, Any], name: str, otherwise: str) -> object:
        tensor = tensors.get(name)
        if not isinstance(tensor, Tensor):
            return otherwise if tensor is None else "no tensor"
        return (
            tuple(tensor.shape)
            if tensor.is_floating_point()
            else (tuple(tensor.shape), tensor.dtype)
        )

    expected = module.state_dict()
    for name in [*expected, *weights]:
        theirs, ours = described(weights, name, "missing"), described(expected, name, "not known")
        if theirs != ours:
            known = name if name in expected else shown(name).strip("'")
            raise ValueError(
                f"checkpoint: {path} is of another network: its {known} is {theirs}, here it is {ours}"
            )
