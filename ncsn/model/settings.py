"""Models and training data built from the settings in a file.

The settings are not trusted. All of them are checked before anything is built
(`ncsn.model.plans`), and only known classes are imported (`ncsn.model.classes`).
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.optim import Optimizer

from ncsn.model.classes import UnknownClassError, one_line, shown, unknown_classes
from ncsn.model.model import DATA, Model
from ncsn.model.plans import (
    Plan,
    build,
    check_plain,
    declared_argument,
    plan_arguments,
    plan_class,
)
from ncsn.model.renamed import updated
from ncsn.objectives import Objective

if TYPE_CHECKING:
    from ncsn.data import DataModule

__all__ = [
    "at_most_parameters",
    "check_settings",
    "check_weights",
    "rebuilt_data",
    "rebuilt_model",
    "rebuilt_module",
]

Module = TypeVar("Module", bound=nn.Module)

MAX_NUMBERS = 2_000_000_000  # elements in the parameters of a network
NOT_BUILT = ("_instantiator", "optimizer")  # settings that no loading needs
OF_TRAINING = ("objective", "warmup", "cooldown", "label_dropout", "compile", *NOT_BUILT)
COSTS = ("memory", "workers")  # settings of data that only affect speed and memory


def rebuilt_model(content: dict[str, Any], path: str | Path, trust: Collection[str] = ()) -> Model:
    """Return the model with the settings and weights of `content`, read from `path`.

    Raises:
        ValueError: if the settings do not describe a model, or not that of the weights.
    """
    settings = without(content["hyper_parameters"], NOT_BUILT)
    with settings_errors("model", path), all_unknown(settings, trust):
        check_plain(settings, "model")
        settings = updated(settings)
        objective, plans = model_plans(settings, trust)
    with settings_errors("data", path):
        check_plain(content.get(DATA), "data")
    known = {"hyper_parameters": settings} | ({DATA: content[DATA]} if content.get(DATA) else {})
    given = {"gaussian_noise": build(objective).gaussian_noise, "settings": known}
    return built(Model, plans, content["state_dict"], path, **given)


def rebuilt_module(
    kind: type[Module],
    content: dict[str, Any],
    path: str | Path,
    trust: Collection[str] = (),
    **parts: Any,
) -> Module:
    """Return a module of another class, as `rebuilt_model`; `parts` replace settings.

    Raises:
        ValueError: as `rebuilt_model`.
    """
    given = {*NOT_BUILT, *parts}
    settings = without(content["hyper_parameters"], given)
    with settings_errors("model", path), all_unknown(settings, trust):
        check_plain(settings, "model")
        plans = plan_arguments(kind, updated(settings), "", trust, given)
    return built(kind, plans, content["state_dict"], path, **parts)


def built(
    kind: type[Module],
    plans: dict[str, Any],
    weights: dict[str, Any],
    path: str | Path,
    **given: Any,
) -> Module:
    """Build a module from planned and from given arguments, and load its weights."""
    if "denoiser" in plans:
        # Build it without memory first: settings may claim a network that no memory
        # holds, or that takes days to build.
        most = 4 * len(weights)
        with settings_errors("model", path), torch.device("meta"), at_most_parameters(most):
            denoiser = build(plans["denoiser"])
        check_weights(nn.ModuleDict({"denoiser": denoiser}), weights, path)
    with settings_errors("model", path):
        module = kind(**{name: build(plan) for name, plan in plans.items()}, **given)
    check_weights(module, weights, path)
    module.load_state_dict(weights)
    return module


def rebuilt_data(settings: object, path: str | Path, trust: Collection[str] = ()) -> "DataModule":
    """Return the data module that settings in a file describe; its `root` must exist.

    Raises:
        ValueError: if the settings describe no data module, or the folder is missing.
    """
    with settings_errors("data", path), all_unknown(settings, trust):
        plan = data_plan(settings, trust)
        root = plan.arguments.get("root")
        if isinstance(root, str) and not Path(root).is_dir():
            raise ValueError(
                f"data.root: there is no folder {shown(root)}, and none is made because a file "
                "names it; put the data there, or evaluate with --data CONFIG"
            )
        if isinstance(root, str) and Path(root).resolve() == Path(Path(root).resolve().anchor):
            raise ValueError(
                f"data.root: {shown(root)} is the whole disk; evaluate with --data CONFIG"
            )
        for name in COSTS:
            if declared_argument(plan.made, name)[1] is not Parameter.empty:
                plan.arguments.pop(name, None)
        data: DataModule = build(plan)
    data.downloads = False
    data.save_hyperparameters(settings, logger=False)
    return data


def check_settings(
    settings: object, data: object, path: str | Path, trust: Collection[str] = ()
) -> None:
    """Check all settings in a file, including those of its optimiser.

    Raises:
        ValueError: if they are not those of a model, its data and a torch optimiser.
    """
    with settings_errors("model", path), all_unknown([settings, data], trust):
        if not isinstance(settings, dict):
            raise ValueError("the settings are not a dictionary")
        built = without(settings, NOT_BUILT)
        check_plain(built, "model")
        model_plans(updated(built), trust)
        if "optimizer" in settings:
            check_plain(settings["optimizer"], "optimizer")
            plan_class(settings["optimizer"], (Optimizer,), "optimizer", trust, ("params",))
    if data is not None:
        with settings_errors("data", path):
            data_plan(data, trust)


def model_plans(settings: dict[str, Any], trust: Collection[str]) -> tuple[Plan, dict[str, Any]]:
    """Plan the objective of a model, and the arguments of `Model`."""
    objective = plan_class(settings.get("objective"), (Objective,), "objective", trust)
    for name in ("warmup", "cooldown", "label_dropout", "compile"):
        if isinstance(settings.get(name), (dict, list, tuple)):
            raise ValueError(f"{name}: expected a plain value, got {shown(settings[name])}")
    arguments = without(settings, OF_TRAINING)
    return objective, plan_arguments(Model, arguments, "", trust, ("gaussian_noise", "settings"))


def data_plan(settings: object, trust: Collection[str]) -> Plan:
    """Plan a data module."""
    from ncsn.data import DataModule  # needs Lightning

    check_plain(settings, "data")
    return plan_class(settings, (DataModule,), "data", trust)


def without(settings: dict[str, Any], left_out: Collection[str]) -> dict[str, Any]:
    """Return the settings except for those left out."""
    return {key: value for key, value in settings.items() if key not in left_out}


@contextmanager
def all_unknown(settings: object, trust: Collection[str]) -> Iterator[None]:
    """Name all unknown classes in the settings in the error for one of them."""
    try:
        yield
    except UnknownClassError as error:
        try:
            check_plain(settings, "")
        except ValueError:
            raise error from None
        raise UnknownClassError(error.path, error.key, unknown_classes(settings, trust)) from error


@contextmanager
def settings_errors(name: str, path: str | Path) -> Iterator[None]:
    """Raise any error as a ValueError that names the file and the part."""
    try:
        yield
    except Exception as error:  # a constructor may raise anything
        raise ValueError(
            f"checkpoint: the settings in {path} do not build its {name}: {one_line(error)}"
        ) from error


@contextmanager
def at_most_parameters(most: int) -> Iterator[None]:
    """Forbid modules of more than `most` parameters in this context.

    Raises:
        ValueError: at the first parameter in excess, before it is initialised.
    """
    made = numbers = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal made, numbers
        made, numbers = made + 1, numbers + (0 if parameter is None else parameter.numel())
        if made > most or numbers > MAX_NUMBERS:
            raise ValueError(
                "model.denoiser: a larger network than is allowed, of more than "
                f"{most:,} parameters or {MAX_NUMBERS:,} numbers in them"
            )

    counting = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        counting.remove()


def check_weights(module: nn.Module, weights: dict[str, Any], path: str | Path) -> None:
    """Check that weights are those of the module.

    Raises:
        ValueError: if one is missing, unknown, or of another shape or dtype.
    """

    def described(tensors: Mapping[str, Any], name: str, otherwise: str) -> object:
        tensor = tensors.get(name)
        if not isinstance(tensor, Tensor):
            return otherwise if tensor is None else "no tensor"
        shape = tuple(tensor.shape)
        return shape if tensor.is_floating_point() else (shape, tensor.dtype)

    expected = module.state_dict()
    for name in [*expected, *weights]:
        theirs, ours = described(weights, name, "missing"), described(expected, name, "not known")
        if theirs != ours:
            known = name if name in expected else shown(name).strip("'")
            raise ValueError(
                f"checkpoint: {path} is of another network: its {known} is {theirs}, "
                f"here it is {ours}"
            )
