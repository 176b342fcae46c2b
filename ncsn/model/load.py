"""Loading of models and data from files, and the checkpoints in the folder of a run.

`ncsn.model.checkpoint_file` describes training checkpoints (.ckpt), which a run can
resume from, and `ncsn.model.pretrained` describes models to be shared.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ncsn.model.checkpoint_file import DamagedError, read
from ncsn.model.model import DATA, Model
from ncsn.model.pretrained import read_folder, read_safetensors, save_safetensors
from ncsn.model.settings import rebuilt_data, rebuilt_model
from ncsn.model.shipped import SHIPPED_MODEL, check_name, model_file

if TYPE_CHECKING:
    from ncsn.data import DataModule

__all__ = [
    "BEST",
    "CHECKPOINTS",
    "default_checkpoint",
    "load",
    "load_data",
    "newest_checkpoint",
    "newest_whole",
    "numbered",
    "save_safetensors",
]

CHECKPOINTS = Path("checkpoints")  # the folder of runs
BEST = "best.ckpt"  # the state of best sample quality, which a run does not resume from


def load(
    path: str | Path,
    raw: bool = False,
    trust: Collection[str] = (),
    device: torch.device | str = "cpu",
) -> Model:
    """Return the model in a file or folder, in evaluation mode.

    No code in the file is run, and no module it names is imported. Its settings may
    name the public classes of this package, and classes of yours that you trust.

    Args:
        path: a training checkpoint (.ckpt), a model (.safetensors), a local folder in the
            layout of the Hugging Face Hub, or else the name of a shipped model, as "digits".
        raw: load the raw weights, instead of their moving average.
        trust: dotted names of your own classes that the file may name ("mine.MyUNet").
        device: where to put the model, as "cuda".

    Raises:
        ValueError: if the file is missing or damaged, or its settings are invalid.
    """
    content = contents(path)
    if raw:
        if "current_model_state" not in content:
            raise ValueError(f"checkpoint: {path} has one set of weights alone; leave out --raw")
        content["state_dict"] = content["current_model_state"]
    return rebuilt_model(content, path, trust).eval().to(device)


def load_data(path: str | Path, trust: Collection[str] = (), **changes: Any) -> "DataModule":
    """Return the data module that the model in a file was trained on.

    Nothing is downloaded, and no folder is made. `path` and `trust` are those of `load`;
    `changes` replace settings of the data, such as `root`.

    Raises:
        ValueError: if the file does not describe its data, or the data has moved.
    """
    settings = contents(path).get(DATA)
    if settings is None:
        raise ValueError(f"checkpoint: {path} does not say what it was trained on; give --data")
    known = settings.get("init_args") or {} if isinstance(settings, dict) else None
    if changes and isinstance(known, dict):
        settings = {**settings, "init_args": {**known, **changes}}
    return rebuilt_data(settings, path, trust)


def contents(path: str | Path) -> dict[str, Any]:
    """Return the tensors and plain values in the file or folder of a model."""
    path = model_file(path)
    check_name(path)
    if path.is_dir():
        content = read_folder(path)
    else:
        content = read_safetensors(path) if path.suffix == ".safetensors" else read(path)
    if not all(isinstance(content.get(key), dict) for key in ("hyper_parameters", "state_dict")):
        raise ValueError(f"checkpoint: {path} is not a training checkpoint of this package")
    return content


def default_checkpoint(folder: str | Path) -> Path:
    """Return the newest checkpoint of a run under `folder`, or the shipped model."""
    try:
        return newest_checkpoint(folder)
    except ValueError:
        return SHIPPED_MODEL


def newest_checkpoint(folder: str | Path) -> Path:
    """Return the last checkpoint of the newest run under `folder`, which can be resumed.

    Runs are compared by the time of their newest file, checkpoints of a run by step.

    Raises:
        ValueError: if there is none.
    """
    files = [file for file in Path(folder).rglob("*.ckpt") if file.name != BEST]
    if not files:
        raise ValueError(f"there is no checkpoint under {folder}/ yet; `ncsn train` trains one")
    newest = max(files, key=lambda file: file.stat().st_mtime_ns)
    of_run = numbered(newest.parent)
    return next(iter(of_run)) if newest in of_run else newest


def numbered(folder: str | Path) -> dict[Path, int]:
    """Return the files step=N.ckpt of a run and their steps, newest first."""
    found = {
        file: int(step[1])
        for file in Path(folder).glob("*.ckpt")
        if (step := re.fullmatch(r"step=(\d+)\.ckpt", file.name))
    }
    return dict(sorted(found.items(), key=lambda item: item[1], reverse=True))


def newest_whole(folder: str | Path) -> tuple[Path, list[str]]:
    """Return the newest intact checkpoint of a run, and the errors of the newer ones.

    Raises:
        ValueError: if no checkpoint is intact, or the newest intact one is invalid.
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
        raise ValueError(f"--ckpt_path: no checkpoint under {folder}/ is intact; {wrong[0]}")
    raise ValueError(f"--ckpt_path: there is no checkpoint under {folder}/ to resume from")
