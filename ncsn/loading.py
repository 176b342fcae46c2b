"""A trained model from its checkpoint alone."""

from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser

from ncsn.module import ScoreModule

__all__ = ["load", "newest_checkpoint"]


def load(path: str | Path, raw: bool = False) -> ScoreModule:
    """The model of a training checkpoint, rebuilt from the settings in it, on the CPU and in evaluation mode.

    Nothing in the file is executed: it is read with `weights_only=True`, and its settings may name only classes of the
    kinds that `ScoreModule` takes.

    Args:
        path: a .ckpt file.
        raw: load the weights that the optimiser worked on, in place of their moving average.

    Raises:
        ValueError: where the file is missing, is not such a checkpoint, or does not fit the settings in it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"checkpoint: there is no file {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, depending on where a broken file stops making sense
        raise ValueError(
            f"checkpoint: {path} is not a checkpoint, is damaged, or holds code, which is not run "
            f"({path.stat().st_size:,} bytes)"
        ) from error
    try:
        settings = dict(checkpoint["hyper_parameters"])
        weights = checkpoint.get("current_model_state", checkpoint["state_dict"]) if raw else checkpoint["state_dict"]
    except (TypeError, KeyError) as error:
        raise ValueError(f"checkpoint: {path} is not a training checkpoint of this package") from error
    module = build(settings, path)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise ValueError(f"checkpoint: the weights in {path} do not fit its settings: {first}") from error
    return module.eval()


def build(settings: dict[str, Any], path: Path) -> ScoreModule:
    """The module that the settings saved in `path` describe, with fresh weights."""
    settings.pop("_instantiator", None)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ScoreModule, "model")
    try:
        module = parser.instantiate_classes(parser.parse_object({"model": settings})).model
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"checkpoint: the settings in {path} do not build a model: {reason}") from error
    assert isinstance(module, ScoreModule)
    module.hparams.update(settings)
    return module


def newest_checkpoint(folder: str | Path) -> Path:
    """The checkpoint under `folder` that was written last.

    Raises:
        ValueError: where there is none.
    """
    files = list(Path(folder).rglob("*.ckpt"))
    if not files:
        raise ValueError(f"there is no checkpoint under {folder}/ yet; `python train.py` trains one")
    return max(files, key=lambda file: file.stat().st_mtime)
