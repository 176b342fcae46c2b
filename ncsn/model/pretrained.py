"""Models to be shared, as weights and settings alone.

One file, model.safetensors, holds both: the weights as tensors, and the settings as
JSON in its header with a checksum. A folder in the layout of the Hugging Face Hub adds
config.json and a model card, README.md. Neither contains a pickle.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ncsn.model.checkpoint_file import DTYPES, DamagedError, local_file
from ncsn.model.describe import settings_of
from ncsn.model.files import atomic_write
from ncsn.model.model import DATA, PRECISION, Model
from ncsn.model.model_card import card, loading

__all__ = [
    "read_folder",
    "read_safetensors",
    "save_pretrained",
    "save_safetensors",
]

PUBLISHED = ("hyper_parameters", DATA, PRECISION)
# The files of a folder, as `huggingface_hub.PyTorchModelHubMixin` names them.
WEIGHTS, SETTINGS, CARD = "model.safetensors", "config.json", "README.md"
IMAGE = "samples.png"


def save_safetensors(model: Model, file: str | Path) -> None:
    """Write the weights and the settings of a model to one file atomically.

    Args:
        model: the model; it may be loaded, or made in Python.
        file: a name that ends in .safetensors.

    Raises:
        ValueError: if a part cannot be described, or the name ends otherwise.
    """
    if Path(file).suffix != ".safetensors":
        raise ValueError(f"file: {file} does not end in .safetensors")
    text = json.dumps(settings_of(model))
    state = model.state_dict()
    weights = {name: weight.detach().cpu().contiguous().clone() for name, weight in state.items()}
    # `format` is for Hugging Face's tools.
    about = {"format": "pt", "ncsn": text, "sha256": checksum(text, weights)}
    with atomic_write(Path(file)) as partial:
        partial.write_bytes(save(weights, metadata=about))


def checksum(text: str, weights: dict[str, Tensor]) -> str:
    """Return the sha256 of settings and of the names, shapes and values of weights."""
    sha = hashlib.sha256(text.encode())
    for name, weight in sorted(weights.items()):
        sha.update(repr((name, tuple(weight.shape), weight.dtype)).encode())
        sha.update(weight.flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def read_safetensors(path: str | Path) -> dict[str, Any]:
    """Return the content of a file of `save_safetensors`, in the form of a checkpoint."""
    path = local_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            about = json.loads(metadata["ncsn"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["sha256"] != checksum(metadata["ncsn"], weights):
            raise ValueError("it does not match its checksum")
        if not all(weight.dtype in DTYPES for weight in weights.values()):
            raise ValueError("it has weights of a kind that is not written")
        content = {key: about[key] for key in PUBLISHED if key in about}
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise DamagedError(
            f"checkpoint: {path} is not a safetensors file of this package, or is damaged "
            f"({path.stat().st_size:,} bytes)"
        ) from error
    if not all(weight.float().isfinite().all() for weight in weights.values()):
        raise ValueError(f"checkpoint: {path} has weights that are not finite in 32 bits")
    return {**content, "state_dict": weights}


def save_pretrained(
    model: Model,
    folder: str | Path,
    report: Mapping[str, Any] | None = None,
    image: bytes | None = None,
) -> None:
    """Write model.safetensors, config.json and a model card into a new folder.

    Args:
        model: as for `save_safetensors`.
        folder: it is created, and must be empty if it exists.
        report: the content of a file of `ncsn evaluate --json`, for the card.
        image: the content of a PNG file of samples, for the card.

    Raises:
        ValueError: if the folder is not empty, a part cannot be described, or the
            report is of other weights.
    """
    folder = Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"folder: {folder} exists already, and nothing is overwritten; give a new name"
        )
    settings = json.dumps(settings_of(model), indent=2) + "\n"
    shown = "" if image is None else IMAGE
    text = card(model, loading(folder.name), folder.name, report, shown)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(".partial", f".{folder.name}.", folder.parent) as partial:
        made = Path(partial, folder.name)
        save_safetensors(model, made / WEIGHTS)
        for name, content in ((SETTINGS, settings), (CARD, text)):
            with atomic_write(made / name) as file:
                file.write_text(content, "utf-8")
        if image is not None:
            with atomic_write(made / IMAGE) as file:
                file.write_bytes(image)
        made.replace(folder)


def read_folder(folder: Path) -> dict[str, Any]:
    """Return the content of a folder of `save_pretrained`, in the form of a checkpoint."""
    weights = read_safetensors(folder / WEIGHTS)["state_dict"]
    file = local_file(folder / SETTINGS)
    try:
        settings = json.loads(file.read_text("utf-8"))
        content = {key: settings[key] for key in PUBLISHED if key in settings}
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedError(f"checkpoint: {file} is not JSON of the settings of a model") from error
    return {**content, "state_dict": weights}
