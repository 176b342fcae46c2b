"""The TensorBoard layout of a run: its charts, and its settings next to its metrics."""

import re
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from ncsn.training.callbacks.progress import LossPerLevel
from ncsn.training.callbacks.quality import FIGURE, SampleQuality
from ncsn.training.module import ScoreModule
from ncsn.training.resume import flattened

__all__ = ["Dashboard"]

FIGURES = ("val/loss", FIGURE, "train/loss", "images/s")  # metrics in the hparams tab

# Settings shown in the hparams tab, and their names there; the network's own are shown too.
SHOWN = {
    "data": "data",
    "data.batch_size": "batch_size",
    "data.labels": "labels",
    "model.denoiser.network": "network",
    "model.denoiser.energy": "energy",
    "model.objective": "objective",
    "model.schedule": "schedule",
    "model.sampler": "sampler",
    "model.optimizer": "optimizer",
    "model.optimizer.lr": "lr",
    "model.warmup": "warmup",
    "model.cooldown": "cooldown",
}
OF_NETWORK = "model.denoiser.network."
FROM_DATA = ("channels", "features", "classes")  # network arguments that are not shown


class Dashboard(Callback):
    """The layout of a run's charts, and its entry in TensorBoard's hparams tab.

    Args:
        levels: the callback that logs the loss per level; list it before this one.
    """

    def __init__(self, levels: LossPerLevel) -> None:
        self.levels = levels

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ScoreModule)
        data = trainer.datamodule  # type: ignore[attr-defined]
        known = {"model": dict(pl_module.hparams), "data": dict(data.hparams) if data else {}}
        described = named(flattened(known))
        described |= {"max_steps": trainer.max_steps, "precision": str(trainer.precision)}
        described |= {"seed": pl_module.seed}
        experiment, begun, self.ended = hparams(described, dict.fromkeys(FIGURES, 0.0))  # type: ignore[no-untyped-call]
        quality = next((c for c in trainer.callbacks if isinstance(c, SampleQuality)), None)  # type: ignore[attr-defined]
        measured = quality is not None and quality.extractor is not None
        for writer in writers(trainer):
            writer.add_custom_scalars(charts(self.levels.tags, measured))
            writer.file_writer.add_summary(experiment)
            writer.file_writer.add_summary(begun)
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(described)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for writer in writers(trainer):
            writer.file_writer.add_summary(self.ended)


def charts(levels: list[str], measured: bool) -> dict[str, dict[str, list[Any]]]:
    """Return the custom scalars layout, a chart for each curve, which all have the run's colour.

    Args:
        levels: tags of the loss per level, lowest sigma first.
        measured: the quality of samples is logged.
    """
    sections = {
        "loss per dimension": {"training": "train/loss", "validation": "val/loss"},
        "samples": {"Frechet distance": FIGURE} if measured else {},
        "training loss per dimension at a noise level": {
            tag.rpartition("/")[2]: tag for tag in levels
        },
        "optimiser": {
            "gradient norm": "train/gradient_norm",
            "learning rate": "train/learning_rate",
        },
        "speed": {"images/s": "images/s"},
    }
    return {
        section: {title: ["Multiline", [f"^{re.escape(tag)}$"]] for title, tag in curves.items()}
        for section, curves in sections.items()
        if curves
    }


def writers(trainer: Trainer) -> list[Any]:
    """Return the TensorBoard writers, on rank 0 alone."""
    loggers = trainer.loggers if trainer.is_global_zero else []
    return [logger.experiment for logger in loggers if isinstance(logger, TensorBoardLogger)]


def named(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of `SHOWN` and of the network that are on, under short names."""
    found = {}
    for name, value in settings.items():
        argument = name.removeprefix(OF_NETWORK)
        if name in SHOWN:
            short = SHOWN[name]
        elif argument != name and argument not in FROM_DATA:
            short = f"network.{argument}"
        else:
            continue
        if value:
            found[short] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return found
