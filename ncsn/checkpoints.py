"""Checkpoints: written so that they survive, and read so that nothing in them is run."""

import importlib
import importlib.util
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn

from ncsn.data import DataModule
from ncsn.densities import Density
from ncsn.errors import reason
from ncsn.files import whole
from ncsn.module import ScoreModule
from ncsn.noise import NoiseSchedule
from ncsn.objectives import Corruption, Objective
from ncsn.samplers import Sampler
from ncsn.score import ScoreModel

__all__ = ["BEST", "DurableCheckpointIO", "load", "load_data", "newest_checkpoint", "read"]

BEST = "best.ckpt"
"""The checkpoint of a run whose samples scored best: a copy of an older state, and not what the run goes on from."""
KINDS: dict[str, type] = {
    "denoiser": ScoreModel,
    "network": nn.Module,
    "energy": nn.Module,
    "schedule": NoiseSchedule,
    "objective": Objective,
    "corruption": Corruption,
    "target": Density,
    "density": Density,
    "sampler": Sampler,
    "data": DataModule,
}
"""The settings of a model, and of its data, that name a class, and what it must be."""


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target, flushes it to the disk and renames it: whole, or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with whole(Path(path)) as partial:
            torch.save(checkpoint, partial)


def load(path: str | Path, raw: bool = False) -> ScoreModule:
    """The model of a training checkpoint, rebuilt from the settings in it, on the CPU and in evaluation mode.

    The file is read with `weights_only=True`. The classes that its settings name must be of the kinds that
    `ScoreModule` is made of, and come from this package or from code of your own that is not an installed package.

    Args:
        path: a .ckpt file.
        raw: load the weights that the optimiser worked on, in place of their moving average.

    Raises:
        ValueError: where the file is missing, is not such a checkpoint, or does not fit the settings in it.
    """
    checkpoint = read(path)
    module = build(checkpoint["hyper_parameters"], path)
    weights = checkpoint["state_dict"]
    if raw:
        weights = checkpoint.get("current_model_state", weights)
    check_weights(module, weights, path)
    module.load_state_dict(weights)
    return module.eval()


def load_data(path: str | Path) -> DataModule:
    """The data module that the model of a training checkpoint was trained on, rebuilt from the settings in it.

    Raises:
        ValueError: where the file is missing or is not such a checkpoint, was not made by the training command, or
            its data is not where it was.
    """
    settings = read(path).get(DataModule.CHECKPOINT_HYPER_PARAMS_KEY)
    if settings is None:
        raise ValueError(f"checkpoint: {path} does not say what it was trained on")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DataModule, "data")
    data = built(parser, {"data": settings}, "data", path)
    assert isinstance(data, DataModule)
    return data


def read(path: str | Path) -> dict[str, Any]:
    """The content of a training checkpoint: tensors and plain values.

    Raises:
        ValueError: where the file is missing, or is not such a checkpoint.
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
    if not isinstance(checkpoint, dict) or not {"hyper_parameters", "state_dict"} <= checkpoint.keys():
        raise ValueError(f"checkpoint: {path} is not a training checkpoint of this package")
    return checkpoint


def build(hyper_parameters: dict[str, Any], path: str | Path) -> ScoreModule:
    """The module that the settings saved in `path` describe, with fresh weights.

    Raises:
        ValueError: where they name a class that is not of the right kind, or do not describe a module.
    """
    # The optimiser is not needed here: what is not built can do no harm.
    settings = {key: value for key, value in hyper_parameters.items() if key not in ("_instantiator", "optimizer")}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ScoreModule, "model")
    module = built(parser, {"model": settings}, "model", path)
    assert isinstance(module, ScoreModule)
    module.hparams.update(hyper_parameters)
    return module


def built(parser: ArgumentParser, settings: dict[str, Any], name: str, path: str | Path) -> Any:
    """What a parser makes of the settings `name` in the checkpoint `path`, once all of their classes are checked.

    Raises:
        ValueError: where they name a class that is not of the right kind, or do not describe what they should.
    """
    try:
        for kind, class_path in named_classes(settings):
            check_class(kind, class_path)
        return parser.instantiate_classes(parser.parse_object(settings))[name]
    except Exception as error:
        raise ValueError(f"checkpoint: the settings in {path} do not build its {name}: {reason(error)}") from error


def named_classes(settings: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every setting that names a class, or should, with the import path that it names."""
    if key in KINDS:
        yield key, settings["class_path"] if isinstance(settings, dict) else str(settings)
    elif isinstance(settings, dict) and "class_path" in settings:
        yield key, settings["class_path"]
    if isinstance(settings, dict):
        for name, value in settings.items():
            yield from named_classes(value, name)


def check_class(kind: str, path: str) -> None:
    """Refuse an import path that does not lead to a class of the kind, without importing what has no business here.

    Raises:
        ValueError: with the path.
    """
    module, _, name = path.rpartition(".")
    package = module.partition(".")[0]
    if package != "ncsn" and (not package or is_installed(package)):
        raise ValueError(f"{kind} names {path}, which is neither of this package nor code of your own")
    named = getattr(importlib.import_module(module), name, None)
    if not isinstance(named, type) or not issubclass(named, KINDS.get(kind, tuple(KINDS.values()))):
        raise ValueError(f"{kind} names {path}, which is not a class of that kind")


def is_installed(package: str) -> bool:
    """Whether a top-level package is Python's own, or was installed among its libraries."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return True
    libraries = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return not Path(spec.origin).is_file() or any(library in Path(spec.origin).parents for library in libraries)


def check_weights(module: nn.Module, weights: dict[str, Any], path: str | Path) -> None:
    """Refuse weights that are not those of the module.

    Raises:
        ValueError: with the first that is missing, not known, or of another shape.
    """
    expected = module.state_dict()
    for name in [*expected, *weights]:
        theirs = tuple(weights[name].shape) if name in weights else "missing"
        ours = tuple(expected[name].shape) if name in expected else "not known"
        if theirs != ours:
            raise ValueError(f"checkpoint: {path} is of another network: its {name} is {theirs}, here it is {ours}")


def newest_checkpoint(folder: str | Path) -> Path:
    """The checkpoint under `folder` that was written last, of those that a run goes on from.

    Raises:
        ValueError: where there is none.
    """
    files = [file for file in Path(folder).rglob("*.ckpt") if file.name != BEST]
    if not files:
        raise ValueError(f"there is no checkpoint under {folder}/ yet; `python train.py` trains one")
    return max(files, key=lambda file: file.stat().st_mtime_ns)
