"""The configurations and small trained models that the package ships."""

import re
from pathlib import Path

from ncsn.model.names import did_you_mean

__all__ = [
    "SHIPPED_MODEL",
    "check_name",
    "config_file",
    "model_file",
    "shipped",
    "shipped_configs",
    "shipped_models",
]

PACKAGE = Path(__file__).parent.parent
MODELS = ("cifar10", "digits", "fashion_mnist", "mnist", "ncsn_mnist")


def shipped(folder: str) -> Path:
    """Return a folder of the package, as installed or in a checkout."""
    installed = PACKAGE / folder
    return installed if installed.is_dir() else PACKAGE.parent / folder


SHIPPED_MODEL = shipped("checkpoints") / "digits.safetensors"


def shipped_configs() -> dict[str, Path]:
    """Return the shipped configurations by name, such as `mnist` or `toy/sliced`."""
    folder = shipped("configs")
    files = sorted(folder.rglob("*.yaml"))
    return {str(file.relative_to(folder).with_suffix("")): file for file in files}


def config_file(given: str) -> str:
    """Return `given`, or the path of the shipped configuration that it names."""
    found = None if Path(given).exists() else shipped_configs().get(given)
    return given if found is None else str(found)


def shipped_models() -> dict[str, Path]:
    """Return the shipped models by name, such as `digits`; runs in a checkout add none."""
    return {name: shipped("checkpoints") / f"{name}.safetensors" for name in MODELS}


def model_file(given: str | Path) -> Path:
    """Return `given`, or the path of the shipped model that it names."""
    found = None if Path(given).exists() else shipped_models().get(str(given))
    return Path(given) if found is None else found


def check_name(path: Path) -> None:
    """Refuse a path that does not exist and looks like the name of a model.

    Raises:
        ValueError: with the name that was meant, or the names there are.
    """
    name = str(path)
    if path.exists() or not re.fullmatch(r"[\w-]+", name):
        return
    known = shipped_models()
    if name in known:  # it was given as ./NAME
        raise ValueError(f"checkpoint: there is no file ./{name}; give its name alone, {name}")
    hint = did_you_mean(name, known) or f"; `ncsn models` lists {', '.join(known)}"
    raise ValueError(f"checkpoint: there is no file {name}, and no model of that name{hint}")
