"""The training command: settings from YAML and the command line, by LightningCLI; a run, by Lightning's Trainer."""

import logging
import sys
import warnings
from inspect import signature
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from ncsn.callbacks import EMA, Checkpoint, GracefulStop, LossPerLevel, RunProgress, SampleGrid, Throughput
from ncsn.data import ImageData
from ncsn.errors import fail, reason
from ncsn.loading import newest_checkpoint
from ncsn.module import ScoreModule

__all__ = ["TrainCLI", "run"]


NETWORK = "denoiser.init_args.network"
FROM_DATA = {"channels": lambda data: data.shape[0], "classes": lambda data: data.classes}
"""What a network is told of the data, if it has such an argument."""


def network_settings(model: dict[str, Any]) -> dict[str, Any]:
    """The network's part of a model's settings; empty where its denoiser has no such setting."""
    settings: dict[str, Any] = model["denoiser"].get("init_args", {}).get("network", {})
    return settings


class SaveConfig(SaveConfigCallback):
    """Keeps the whole configuration beside the logs, and shows it in TensorBoard."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(trainer.logger, TensorBoardLogger):
            text = self.parser.dump(self.config, skip_none=False)
            trainer.logger.experiment.add_text("config", f"```yaml\n{text}\n```")


class TrainCLI(LightningCLI):
    """All settings of a run: `name`, `model`, `data`, `trainer`, and its standing callbacks."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, default="run", help="The run's folders: checkpoints/NAME, logs/NAME.")
        parser.add_argument(
            "--ckpt_path", type=str | None, default=None, help="Go on from this checkpoint, or from the run's `last`."
        )
        # The order matters: SampleGrid draws while EMA has its weights in place.
        parser.add_lightning_class_args(SampleGrid, "samples")
        parser.add_lightning_class_args(EMA, "ema")
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.link_arguments("name", "checkpoint.dirpath", compute_fn=lambda name: f"checkpoints/{name}")
        parser.link_arguments("data", "model.shape", compute_fn=lambda data: data.shape, apply_on="instantiate")
        for key, of in FROM_DATA.items():
            parser.link_arguments("data", f"model.{NETWORK}.init_args.{key}", compute_fn=of, apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        # For the checkpoint, Lightning notes what the links gave in the network's init_args, which must be there.
        self._dump_config()
        network_settings(self.config_dump["model"]).setdefault("init_args", {})

    def after_instantiate_classes(self) -> None:
        # It notes it even where a network of somebody's own has no such argument.
        accepted = signature(type(self.model.denoiser.network)).parameters
        for key in FROM_DATA.keys() - accepted.keys():
            network_settings(self.model.hparams).get("init_args", {}).pop(key, None)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        seed = self.config.seed_everything
        if not isinstance(seed, bool) and not 0 <= seed < 2**32:
            raise ValueError(f"seed_everything: {seed} is not a whole number from 0 to {2**32 - 1}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        if self.config.trainer.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger("logs", name=self.config.name, default_hp_metric=False)
        self.stop = GracefulStop()
        self.trainer_defaults["callbacks"] = [
            LossPerLevel(),
            Throughput(),
            RunProgress(),
            self.stop,
            LearningRateMonitor(),
        ]
        return super().instantiate_trainer(**kwargs)

    def prepare(self) -> None:
        """Find the checkpoint to go on from, and get the data.

        Raises:
            ValueError: where there is no such checkpoint, or the data is not what it should be.
            OSError: where the data cannot be had.
        """
        path = self.config.ckpt_path
        if path == "last":
            path = newest_checkpoint(Path("checkpoints", self.config.name))
        elif path is not None and not Path(path).is_file():
            raise ValueError(f"ckpt_path: there is no file {path}")
        self.ckpt_path = path
        if rank_zero_only(lambda: True)():  # the other ranks do this when the first has the data
            self.datamodule.prepare_data()
            self.datamodule.setup()

    @rank_zero_only
    def announce(self) -> None:
        """Say what is trained, and from where it goes on."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        pictures = len(self.datamodule.splits["train"])
        print(f"Training {self.config.name}: {parameters:,} parameters on {pictures:,} examples of {self.model.shape}")
        if self.ckpt_path:
            print(f"Going on from {self.ckpt_path}")

    def fit(self) -> None:
        """Train, say where the results are, and end as a signal asked for."""
        self.announce()
        self.trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=self.ckpt_path, weights_only=True)
        self.report()
        if self.stop.signal is not None:
            sys.exit(128 + self.stop.signal)

    @rank_zero_only
    def report(self) -> None:
        """Print where the checkpoint and the logs are, and how to draw."""
        checkpoint = newest_checkpoint(Path("checkpoints", self.config.name))
        print(f"Trained {self.trainer.global_step:,} steps.")
        print(f"Checkpoint:  {checkpoint}")
        print(f"Logs:        {self.trainer.log_dir}  (tensorboard --logdir logs)")
        print(f"Draw:        python sample.py {checkpoint}")


def hush() -> None:
    """Leave out what Lightning says that a user of this package cannot act on."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec.* is deprecated",  # Lightning's own use of torch
        ".*You have overridden `on_before_batch_transfer` in `LightningModule`",  # meant so: it seeds the step
        ".*The number of training batches .* is smaller than the logging interval",  # we log by steps, not by epochs
        ".*does not have many workers",  # data in memory needs none
        ".*your dataloader is not resumable",  # it is: see `Batches`
        ".*Checkpoint directory .* exists and is not empty",  # checkpoints are numbered, and the newest is the last
    ):
        warnings.filterwarnings("ignore", message)


def build() -> TrainCLI:
    """Parse the command line, and build what it describes.

    Raises:
        ArgumentError, ValueError, MisconfigurationException: where a setting is wrong.
    """
    return TrainCLI(
        ScoreModule,
        ImageData,
        subclass_mode_data=True,
        run=False,
        auto_configure_optimizers=False,
        save_config_callback=SaveConfig,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        trainer_defaults={
            "check_val_every_n_epoch": None,  # validation is by steps
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
        },
        parser_kwargs={"exit_on_error": False},
    )


def run() -> None:
    """Parse, build and train."""
    hush()
    try:
        cli = build()
        cli.prepare()
    except (ArgumentError, ValueError, MisconfigurationException) as error:
        fail(2, reason(error))
    except OSError as error:
        fail(1, error)
    try:
        cli.fit()
    except OSError as error:
        fail(1, error)
