"""Settings of earlier versions: classes that were renamed, and arguments that moved."""

from typing import Any

from ncsn.model.classes import is_class

__all__ = ["updated"]

Settings = dict[str, Any]


def updated(settings: Any) -> Any:
    """Return plain settings with classes and arguments as in this version."""
    if isinstance(settings, list | tuple):
        return type(settings)(updated(value) for value in settings)
    if not isinstance(settings, dict):
        return settings
    settings = {key: updated(value) for key, value in settings.items()}
    if is_class(settings) and settings["class_path"].startswith("ncsn."):
        change = CHANGES.get(settings["class_path"].rpartition(".")[2])
        return change(settings.get("init_args", {})) if change else settings
    return settings


def made(name: str, arguments: Settings) -> Settings:
    """Return the settings of a class of this package."""
    return {"class_path": f"ncsn.{name}", "init_args": arguments}


def denoising(arguments: Settings) -> Settings:
    """Return the settings of `DenoisingScoreMatching(anneal_power, corruption)`."""
    power = arguments.pop("anneal_power", 2.0)
    corruption: Any = arguments.get("corruption")
    plain = is_class(corruption) and not corruption.get("init_args")
    if plain and corruption["class_path"].endswith(".GaussianNoise"):
        del arguments["corruption"]
    name = "CorruptionScoreMatching" if "corruption" in arguments else "DenoisingScoreMatching"
    objective = made(name, arguments)
    if isinstance(power, int | float) and power != 2:
        return made("Weighted", {"objective": objective, "power": power - 2})
    return objective


# Classes of earlier versions, and functions that return their current settings.
CHANGES = {
    "Annealed": lambda arguments: made("Weighted", arguments),
    "ProbabilityFlow": lambda arguments: made(
        "Euler" if arguments.pop("order", 2) == 1 else "Heun", arguments
    ),
    "StochasticHeun": lambda arguments: made("Heun", arguments),
    "DenoisingScoreMatching": denoising,
}
