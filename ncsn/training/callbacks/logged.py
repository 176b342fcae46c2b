"""Output of a run in the logger that the user has chosen."""

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

__all__ = ["log_folder", "show_image"]


def show_image(trainer: Trainer, name: str, image: Tensor) -> None:
    """Log an image, uint8 (3, H, W), with every logger that takes images."""
    step = trainer.global_step
    for logger in trainer.loggers if trainer.is_global_zero else []:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, image, step)
        elif isinstance(logger, MLFlowLogger):
            shown = to_pil_image(image)
            logger.experiment.log_image(logger.run_id, shown, key=name, step=step)
        elif hasattr(logger, "log_image"):  # Weights & Biases
            logger.log_image(name, [to_pil_image(image)], step=step)


def log_folder(logger: Logger) -> Path:
    """Return the folder of a logger's files on this machine."""
    return Path(logger.log_dir or logger.save_dir or ".")
