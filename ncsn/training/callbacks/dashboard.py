"""The TensorBoard layout of a run: its charts, and its settings next to its metrics."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from ncsn.training.callbacks.progress import LossPerLevel
from ncsn.training.callbacks.quality import FIGURE
from ncsn.training.module import ScoreModule
from ncsn.training.resume import flattened

__all__ = ["Dashboard", "writers"]

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
        for writer in writers(trainer):
            writer.add_custom_scalars(charts(self.levels.tags))
            writer.file_writer.add_summary(experiment)
            writer.file_writer.add_summary(begun)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for writer in writers(trainer):
            writer.file_writer.add_summary(self.ended)


def charts(levels: list[str]) -> dict[str, dict[str, list[Any]]]:
    """Return the custom scalars layout; `levels` are loss tags, lowest sigma first."""

    def lines(*tags: str) -> list[Any]:
        return ["Multiline", [f"^{tag}$" for tag in tags]]

    middle = len(levels) // 2
    loss = {"training and validation": lines("train/loss", "val/loss")}
    if middle:
        loss["at low noise"] = lines(*levels[:middle])
    optimiser = "train/gradient_norm", "train/learning_rate"
    return {
        "loss": {**loss, "at high noise": lines(*levels[middle:])},
        "samples": {"Frechet distance": lines(FIGURE)},
        "optimiser": {"gradient norm": lines(optimiser[0]), "learning rate": lines(optimiser[1])},
        "speed": {"samples a second": lines("images/s")},
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
