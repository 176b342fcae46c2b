"""Checkpoints: written so that they survive, and read so that nothing in them is run.

A training checkpoint (.ckpt) has all that a run goes on from; `ncsn.archive` has the rules of its file. To publish a
model there is safetensors: its weights, and its settings as JSON, and nothing else.
"""

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ncsn.archive import DamagedError, local_file, read, write
from ncsn.data import DataModule
from ncsn.files import whole
from ncsn.module import ScoreModule
from ncsn.settings import built, rebuilt

__all__ = [
    "BEST",
    "DurableCheckpointIO",
    "PatientCheckpointIO",
    "load",
    "load_data",
    "newest_checkpoint",
    "newest_whole",
    "numbered",
    "save_safetensors",
]

BEST = "best.ckpt"
"""The checkpoint of a run whose samples scored best: a copy of an older state, and not what the run goes on from."""
PUBLISHED = ("hyper_parameters", DataModule.CHECKPOINT_HYPER_PARAMS_KEY)
"""The settings that go into a published model: of the module, and of the data that it was trained on."""


class DurableCheckpointIO(TorchCheckpointIO):
    """Lightning's way to files, by `ncsn.archive`: a checkpoint is whole or absent, and read with mistrust."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        write(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class PatientCheckpointIO(DurableCheckpointIO):
    """The same for a run that a full disk does not end: it says so, keeps what there is, and tries again when next due.

    `failure` is the error of the last attempt, or None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failure: OSError | None = None
        self.superseded: list[Path] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        try:
            super().save_checkpoint(checkpoint, path, storage_options)
        except OSError as error:
            self.failure = error
            warnings.warn(f"no checkpoint was written, and the run goes on: {error}", stacklevel=2)
            return
        self.failure = None
        while self.superseded:
            super().remove_checkpoint(self.superseded.pop())

    def remove_checkpoint(self, path: Any) -> None:
        if self.failure is None:
            super().remove_checkpoint(path)
        else:  # what was to take its place was not written
            self.superseded.append(Path(path))


def load(path: str | Path, raw: bool = False) -> ScoreModule:
    """The model in a file, rebuilt from the settings in it, on the CPU and in evaluation mode.

    Nothing in the file is run. The classes that its settings name must be of the kinds that `ScoreModule` is made of,
    and come from this package or from code of your own that is not an installed package.

    Args:
        path: a training checkpoint (.ckpt), or a published model (.safetensors).
        raw: load the weights that the optimiser worked on, in place of their moving average.

    Raises:
        ValueError: where the file is missing, is not such a file or is damaged, has weights that are not finite, or
            does not fit the settings in it; where the raw weights are asked for of a file that has none.
    """
    content = contents(path)
    if raw:
        if "current_model_state" not in content:
            raise ValueError(f"checkpoint: {path} has one set of weights alone; leave out --raw")
        content["state_dict"] = content["current_model_state"]
    return rebuilt(ScoreModule, content, path).eval()


def load_data(path: str | Path) -> DataModule:
    """The data module that the model in a file was trained on, rebuilt from the settings in it.

    Raises:
        ValueError: where the file is missing or is not such a file, was not made by the training command, or its data
            is not where it was.
    """
    settings = contents(path).get(DataModule.CHECKPOINT_HYPER_PARAMS_KEY)
    if settings is None:
        raise ValueError(f"checkpoint: {path} does not say what it was trained on")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DataModule, "data")
    data = built(parser, {"data": settings}, "data", path).data
    assert isinstance(data, DataModule)
    data.save_hyperparameters(settings, logger=False)
    return data


def contents(path: str | Path) -> dict[str, Any]:
    """The tensors and plain values in a file of either kind.

    Raises:
        ValueError: where the file is missing, is not such a file, or is damaged.
    """
    content = read_safetensors(path) if Path(path).suffix == ".safetensors" else read(path)
    if not {"hyper_parameters", "state_dict"} <= content.keys():
        raise ValueError(f"checkpoint: {path} is not a training checkpoint of this package")
    return content


def save_safetensors(module: ScoreModule, file: str | Path, data: DataModule | None = None) -> None:
    """Write a model to publish: its weights as they are now, and its settings as JSON. Whole, or not at all.

    Args:
        module: made by the training command or loaded from its checkpoint: its settings are plain values.
        file: a name that ends in .safetensors.
        data: what it was trained on, where that was made by the training command or by `load_data`.

    Raises:
        ValueError: where the module was made in Python, of parts that no setting describes, or the name ends otherwise.
    """
    if Path(file).suffix != ".safetensors":
        raise ValueError(f"file: {file} does not end in .safetensors")
    settings = {key: value for key, value in module.hparams.items() if key not in ("_instantiator", "optimizer")}
    if "denoiser" not in settings:
        raise ValueError("module: it was made in Python, of parts that no setting describes, and could not be rebuilt")
    about = {"hyper_parameters": settings}
    if data is not None and data.hparams:
        about[DataModule.CHECKPOINT_HYPER_PARAMS_KEY] = dict(data.hparams)
    weights = {name: weight.detach().cpu().contiguous().clone() for name, weight in module.state_dict().items()}
    text = json.dumps(about)
    with whole(Path(file)) as partial:
        save_file(weights, partial, metadata={"ncsn": text, "sha256": checksum(text, weights)})


def checksum(text: str, weights: dict[str, Tensor]) -> str:
    """The sha256 of a published model: of its settings, and of the names, shapes and numbers of its weights."""
    sha = hashlib.sha256(text.encode())
    for name, weight in sorted(weights.items()):
        sha.update(repr((name, tuple(weight.shape), weight.dtype)).encode())
        sha.update(weight.flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def read_safetensors(path: str | Path) -> dict[str, Any]:
    """What `save_safetensors` wrote, as the content of a checkpoint: tensors and text are read, never code.

    Raises:
        ValueError: where the file is missing, is not such a file, or has weights that are not finite.
    """
    path = local_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            about = json.loads(metadata["ncsn"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["sha256"] != checksum(metadata["ncsn"], weights):
            raise ValueError("it is not what its checksum is of")
        content = {key: about[key] for key in PUBLISHED if key in about}
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise DamagedError(
            f"checkpoint: {path} is not a safetensors file of this package, or is damaged "
            f"({path.stat().st_size:,} bytes)"
        ) from error
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise ValueError(f"checkpoint: {path} has weights that are not finite")
    return {**content, "state_dict": weights}


def newest_checkpoint(folder: str | Path) -> Path:
    """The checkpoint under `folder` that was written last, of those that a run goes on from.

    Raises:
        ValueError: where there is none.
    """
    files = [file for file in Path(folder).rglob("*.ckpt") if file.name != BEST]
    if not files:
        raise ValueError(f"there is no checkpoint under {folder}/ yet; `python train.py` trains one")
    return max(files, key=lambda file: file.stat().st_mtime_ns)


def numbered(folder: str | Path) -> dict[Path, int]:
    """The files step=N.ckpt of a run's folder, the newest first, and their steps."""
    steps = {file: re.fullmatch(r"step=(\d+)\.ckpt", file.name) for file in Path(folder).glob("*.ckpt")}
    found = {file: int(step[1]) for file, step in steps.items() if step}
    return dict(sorted(found.items(), key=lambda item: item[1], reverse=True))


def newest_whole(folder: str | Path) -> tuple[Path, list[str]]:
    """The newest checkpoint of a run's folder that is whole, and what is wrong with those that are newer.

    Raises:
        ValueError: where there is none, or the newest that is whole cannot be read.
    """
    wrong: list[str] = []
    for file in numbered(folder):
        try:
            read(file)
        except DamagedError as error:
            wrong.append(str(error))
        else:
            return file, wrong
    if wrong:
        raise ValueError(f"--ckpt_path: no checkpoint under {folder}/ is whole; {wrong[0]}")
    raise ValueError(f"--ckpt_path: there is no checkpoint under {folder}/ to go on from")
