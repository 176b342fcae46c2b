"""The configurations and small trained models that the package ships."""

from pathlib import Path

__all__ = [
    "SHIPPED_MODEL",
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
