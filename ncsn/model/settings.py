"""Models and training data built from the settings in a file.

The settings are not trusted. All of them are checked before anything is built
(`ncsn.model.plans`), and only known classes are imported (`ncsn.model.classes`).
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.optim import Optimizer

from ncsn.model.classes import UnknownClassError, shown, trust_hint
from ncsn.model.describe import PARTS
from ncsn.model.model import DATA, PRECISION, Model
from ncsn.model.plans import MAX_VALUES, Names, Plan, build, fitted, plan_arguments, plan_class
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
    "take_weights",
    "without",
]

Values = dict[str, Any]  # settings, plans or weights by name
Module = TypeVar("Module", bound=nn.Module)

DENOISER = PARTS[0]
MAX_NUMBERS = 2_000_000_000  # elements in the parameters of a network
NOT_BUILT = ("_instantiator", "optimizer", "weights")  # settings that no loading needs
OF_SUBCLASS = "subclass_parameters"  # entry of a checkpoint: what a subclass adds
# Settings of training alone, which a model does not have.
OF_TRAINING = {"warmup": int, "cooldown": int, "augment": float, "compile": Literal["auto"] | bool}
MOST_SHOWN = 6  # weights in one message
COSTS = ("memory", "workers")  # settings of data that only affect speed and memory


def rebuilt_model(content: Values, path: str | Path, trust: Names = ()) -> Model:
    """Return the model with the settings and weights of `content`, read from `path`."""
    settings = without(content["hyper_parameters"], NOT_BUILT)
    with settings_errors(path, settings, trust):
        settings, data = plain(settings), plain(content.get(DATA))
        objective, plans = model_plans(settings, trust)
        known = {"hyper_parameters": settings} | ({DATA: data} if data else {})
        if PRECISION in content:
            known[PRECISION] = fitted(content[PRECISION], str, PRECISION, trust)
        if objective is not None:
            plans["gaussian_noise"] = build(objective).gaussian_noise
    weights = content["state_dict"]
    if OF_SUBCLASS in content:  # a checkpoint of training
        weights = of_denoiser(weights)
    return built(Model, plans, weights, path, settings=known)


def rebuilt_module(
    kind: type[Module], content: Values, path: str | Path, trust: Names = (), **parts: Any
) -> Module:
    """Return a module of another class, as `rebuilt_model`; `parts` replace settings.

    Raises:
        ValueError: if the settings do not describe it, or not that of the weights.
    """
    settings = without(content["hyper_parameters"], (*NOT_BUILT, *parts))
    with settings_errors(path, settings, trust):
        settings |= without(content.get(OF_SUBCLASS, {}), (*NOT_BUILT, *parts))
        taken = signature(kind).parameters
        passes_on = any(each.kind is each.VAR_KEYWORD for each in taken.values())
        if DENOISER in taken or passes_on:
            check_parts({**settings, **parts})
        else:  # a subclass that makes its parts
            settings = {name: settings[name] for name in settings if name in taken}
        plans = plan_arguments(kind, plain(settings), "", trust, parts)
    return built(kind, plans, content["state_dict"], path, **parts)


def built(
    kind: type[Module], plans: Values, weights: Values, path: str | Path, **given: Any
) -> Module:
    """Build a module from planned and from given arguments, and load its weights."""
    if DENOISER in plans:
        # Build it without memory first: settings may claim a network that no memory
        # holds, or that takes days to build.
        with settings_errors(path), torch.device("meta"), at_most_parameters(4 * len(weights)):
            denoiser = build(plans[DENOISER])
        check_weights(nn.ModuleDict({DENOISER: denoiser}), of_denoiser(weights), path)
    with settings_errors(path):
        module = kind(**{name: build(plan) for name, plan in plans.items()}, **given)
    check_weights(module, weights, path)
    module.load_state_dict(weights)
    return module


def of_denoiser(weights: Values) -> Values:
    """Return the weights of the denoiser, without those that a subclass adds to a module."""
    return {name: weights[name] for name in weights if name.startswith(f"{DENOISER}.")}


def rebuilt_data(settings: object, path: str | Path, trust: Names = ()) -> "DataModule":
    """Return the data module that settings in a file describe; its `root` must exist."""
    with settings_errors(path, settings, trust):
        plan = data_plan(plain(settings), trust)
        root = plan.arguments.get("root")
        if isinstance(root, str):
            folder, way_out = Path(root).resolve(), "say where it lies now by --data.root DIR"
            if not folder.is_dir():
                raise ValueError(
                    f"data.root: there is no folder {shown(root)}, and none is made because a file "
                    f"names it; put the data there, or {way_out}"
                )
            if folder == Path(folder.anchor):
                raise ValueError(f"data.root: {shown(root)} is the whole disk; {way_out}")
        for name in COSTS:
            plan.arguments.pop(name, None)
        data: DataModule = build(plan)
    data.downloads = False
    data.save_hyperparameters(settings, logger=False)
    return data


def check_settings(settings: Values, data: object, path: str | Path, trust: Names = ()) -> None:
    """Check all settings in a file, including those of its optimiser.

    Raises:
        ValueError: if they are not those of a model, its data and a torch optimiser.
    """
    settings = without(settings, ("_instantiator",))
    with settings_errors(path, [settings, data], trust):
        settings, data = plain(settings), plain(data)
        model_plans(without(settings, NOT_BUILT), trust)
        if "optimizer" in settings:
            plan_class(settings["optimizer"], (Optimizer,), "optimizer", trust, ("params",))
        if data is not None:
            data_plan(data, trust)


def plain(settings: object) -> Any:
    """Return settings as JSON holds them, as in this version."""
    text = json.dumps(settings)
    if text.count(",") >= MAX_VALUES:
        raise ValueError(f"expected at most {MAX_VALUES:,} values")
    return updated(json.loads(text))


def model_plans(settings: Values, trust: Names) -> tuple[Plan | None, Values]:
    """Plan the objective of a model, if it was trained, and the arguments of `Model`."""
    check_parts({"objective": None, **settings} if "gaussian_noise" in settings else settings)
    objective, given = None, ["settings"]
    if "objective" in settings or "gaussian_noise" not in settings:
        objective = plan_class(settings.get("objective"), (Objective,), "objective", trust)
        given.append("gaussian_noise")
    for name, declared in OF_TRAINING.items():
        if name in settings:
            fitted(settings[name], declared, name, trust)
    arguments = without(settings, ("objective", *OF_TRAINING))
    return objective, plan_arguments(Model, arguments, "", trust, given)


def check_parts(settings: Values) -> None:
    """Check that settings have all parts of a model; some made in Python have no settings."""
    missing = [name for name in (*PARTS, "objective") if name not in settings]
    if missing:
        given = ", ".join(f"{name}=..." for name in missing)
        raise ValueError(
            f"they do not describe its {' and '.join(missing)}; give what was trained: "
            f"ncsn.ScoreModule.load_from_checkpoint(FILE, {given}).model"
        )


def data_plan(settings: object, trust: Names) -> Plan:
    """Plan a data module."""
    from ncsn.data import DataModule  # needs Lightning

    return plan_class(settings, (DataModule,), "data", trust)


def without(settings: Values, left_out: Names) -> Values:
    """Return the settings except for those left out."""
    return {key: value for key, value in settings.items() if key not in left_out}


@contextmanager
def settings_errors(path: str | Path, settings: object = None, trust: Names = ()) -> Iterator[None]:
    """Raise any error as a ValueError that names the file, and all unknown classes."""
    try:
        yield
    except Exception as error:  # a constructor may raise anything
        text = "".join(each if each.isprintable() else " " for each in str(error))
        reason = " ".join(text.split())[:500]
        hint = trust_hint(settings, trust) if isinstance(error, UnknownClassError) else ""
        message = f"checkpoint: the settings in {path} are invalid: {reason}{hint}"
        raise ValueError(message) from error


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
            bounds = f"{most:,} parameters or {MAX_NUMBERS:,} numbers in them"
            raise ValueError(
                f"model.denoiser: a larger network than is allowed, of more than {bounds}"
            )

    counting = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        counting.remove()


def check_weights(module: nn.Module, weights: Values, path: str | Path) -> None:
    """Check that weights are those of the module.

    Raises:
        ValueError: if one is missing, unknown, or of another shape or dtype.
    """
    for found in misfits(module, weights).values():
        raise ValueError(f"checkpoint: {path} is of another network: its {found}")


def take_weights(module: nn.Module, weights: Values, path: str | Path) -> str:
    """Load the weights that fit a module, and return a line that names the others.

    Raises:
        ValueError: if less than half of the module's weights are there.
    """
    wrong, own = misfits(module, weights), module.state_dict()
    fitting = {name: weight for name, weight in weights.items() if name not in wrong}
    said = "; ".join([*wrong.values()][:MOST_SHOWN])
    more = f" (and {len(wrong) - MOST_SHOWN} others)" if len(wrong) > MOST_SHOWN else ""
    taken = f"{len(fitting)} of {len(own)} weights"
    if 2 * len(fitting) < len(own):
        raise ValueError(f"{path} is of another network, {taken} fit: {said}{more}")
    module.load_state_dict(fitting, strict=False)
    return f"Starting from {taken} in {path}" + (f"; not taken: {said}{more}" if wrong else "")


def misfits(module: nn.Module, weights: Values) -> dict[str, str]:
    """Return the shapes of weights that are not those of the module, by name."""
    own = module.state_dict()
    shapes = {
        name: (shape_of(weights.get(name)), shape_of(own.get(name))) for name in own | weights
    }
    return {
        name: f"{shown(name)} is {theirs}, here it is {ours}"
        for name, (theirs, ours) in shapes.items()
        if theirs != ours
    }


def shape_of(weight: object) -> object:
    """Return the shape of a weight, and its dtype if it is not of floating point."""
    if not isinstance(weight, Tensor):
        return "missing" if weight is None else "no tensor"
    shape = tuple(weight.shape)
    return shape if weight.is_floating_point() else (shape, weight.dtype)
