"""The TensorBoard layout of a run: its charts, and its settings next to its metrics."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from ncsn.training.callbacks.progress import LossPerLevel
from ncsn.training.callbacks.quality import FIGURE
from ncsn.training.module import ScoreModule

__all__ = ["Dashboard"]

FIGURES = ("val/loss", FIGURE, "train/loss", "images/s")  # metrics in the hparams tab

# Settings shown in the hparams tab, and their names there.
PARTS = {
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
        all_settings = settings(
            {"model": dict(pl_module.hparams), "data": dict(data.hparams) if data else {}}, ""
        )
        described = {
            **compared(all_settings),
            "max_steps": trainer.max_steps,
            "precision": str(trainer.precision),
            "seed": pl_module.seed,
        }
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
    middle = len(levels) // 2
    by_level = {"at low noise": levels[:middle], "at high noise": levels[middle:]}
    loss = {"training and validation": ["train/loss", "val/loss"], **by_level}
    optimiser = {"gradient norm": ["train/gradient_norm"], "learning rate": ["train/learning_rate"]}
    sections = {
        "loss": {name: tags for name, tags in loss.items() if tags},
        "samples": {"Frechet distance": [FIGURE]},
        "optimiser": optimiser,
        "speed": {"samples a second": ["images/s"]},
    }
    return {
        section: {name: ["Multiline", [f"^{tag}$" for tag in tags]] for name, tags in parts.items()}
        for section, parts in sections.items()
    }


def writers(trainer: Trainer) -> Iterator[Any]:
    """Yield the TensorBoard writers, on rank 0 alone."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            yield logger.experiment


def settings(value: Any, name: str) -> dict[str, Any]:
    """Flatten nested settings to dotted names, without those that are off or empty."""
    if not isinstance(value, dict):
        plain = value if isinstance(value, (bool, int, float, str)) else str(value)
        return {name: plain} if value else {}
    if "class_path" in value:
        return {name: value["class_path"].rpartition(".")[2]} | settings(
            value.get("init_args") or {}, name
        )
    inside = [
        settings(one, f"{name}.{key}".strip("."))
        for key, one in value.items()
        if not key.startswith("_")
    ]
    return {key: one for part in inside for key, one in part.items()}


def compared(every: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of `PARTS` and of the network, under short names."""
    of_network, of_data = "model.denoiser.network.", ("channels", "features", "classes")
    named = {PARTS[name]: value for name, value in every.items() if name in PARTS}
    inside = {
        name[len(of_network) :]: value
        for name, value in every.items()
        if name.startswith(of_network)
    }
    return named | {
        f"network.{name}": value for name, value in inside.items() if name not in of_data
    }
