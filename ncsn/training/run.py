"""The training command: settings from YAML and the command line, by LightningCLI; a run, by Lightning's Trainer."""

import math
import sys
from contextlib import ExitStack, suppress
from copy import deepcopy
from datetime import timedelta
from functools import partial
from importlib import import_module
from inspect import signature
from itertools import product
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import (
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
    instantiate_class,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from ncsn.data import DataModule
from ncsn.model.files import check_writable, exclusive_folder
from ncsn.model.load import numbered
from ncsn.model.settings import at_most_parameters, check_weights
from ncsn.training.callbacks import (
    EMA,
    BestCheckpoint,
    Checkpoint,
    Dashboard,
    DenoisingStrips,
    GracefulStop,
    LossPerLevel,
    RunProgress,
    RunStopped,
    SampleGrid,
    SampleQuality,
    Throughput,
)
from ncsn.training.checkpoint_io import PatientCheckpointIO
from ncsn.training.module import ScoreModule
from ncsn.training.processes import REQUEUE, check_processes, plugins, requeue, requeued
from ncsn.training.resume import Record, Resume, check_resumed, checkpoint_of, recorded, resumable

__all__ = ["TrainCLI", "run"]


MOST_PARAMETERS = 20_000
"""Tensors of parameters in a model: more is a mistake, which would take hours to make."""
TRIED = 16  # examples
PRECISIONS = (None, 32, "32", "32-true", "16-mixed", "bf16-mixed")
USAGE = "%(prog)s [--config FILE] [--SECTION.SETTING VALUE ...]"
DESCRIPTION = """Train a score model, as the files of --config say (configs/digits.yaml where none is given) and the
settings after them, of which a later one holds. Classes are given by name, and their settings after it:
--data ImageFolder --data.root PICTURES --model.sampler DPMSolver --model.sampler.eta 1."""
NETWORKS = ("network", "energy")
"""The settings of a denoiser that hold a network."""
FROM_DATA = {
    "channels": lambda data: data.shape[0],
    "features": lambda data: math.prod(data.shape),
    "classes": lambda data: data.classes,
}
"""What a network is told of the data, if it has such an argument."""


class ResumeError(ValueError):
    """A checkpoint that the run cannot be resumed from."""


class SaveConfig(SaveConfigCallback):
    """Keeps the whole configuration beside the logs, and shows it in TensorBoard."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(trainer.logger, TensorBoardLogger):
            text = self.parser.dump(self.config, skip_none=False)
            trainer.logger.experiment.add_text("config", f"```yaml\n{text}\n```")


class TrainCLI(LightningCLI):
    """All settings of a run: `name`, `model`, `data`, `trainer`, and its standing callbacks."""

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--name",
            type=str,
            default="run",
            help="The run's folders: checkpoints/NAME, logs/NAME.",
        )
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="Go on from this checkpoint, or from the run's `last`.",
        )
        super().add_default_arguments_to_parser(parser)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # In the order in which they are read in the help and in the saved configuration: Lightning's own come last.
        parser.add_lightning_class_args(DataModule, "data", subclass_mode=True)
        parser.add_lightning_class_args(ScoreModule, "model")
        # The order matters: SampleGrid and SampleQuality draw while EMA has its weights in place.
        parser.add_lightning_class_args(SampleGrid, "samples")
        parser.add_lightning_class_args(SampleQuality, "quality")
        parser.add_lightning_class_args(EMA, "ema")
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.link_arguments(
            "name", "checkpoint.dirpath", compute_fn=lambda name: f"checkpoints/{name}"
        )
        parser.link_arguments(
            "data", "model.shape", compute_fn=lambda data: data.shape, apply_on="instantiate"
        )
        for network, (key, of) in product(NETWORKS, FROM_DATA.items()):
            told = f"model.denoiser.init_args.{network}.init_args.{key}"
            parser.link_arguments("data", told, compute_fn=of, apply_on="instantiate")
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults(
            {f"trainer.{name}": value for name, value in self.trainer_defaults.items()}
        )

    def before_instantiate_classes(self) -> None:
        # For the checkpoint, Lightning notes what each link gave, in settings that must be there: even of the networks
        # that there are not.
        self._dump_config()
        self.settings = deepcopy(self.config_dump)
        settings = self.config_dump["model"]["denoiser"].setdefault("init_args", {})
        for name in NETWORKS:
            settings.setdefault(name, {}).setdefault("init_args", {})

    def after_instantiate_classes(self) -> None:
        # The parser's own maker of optimisers holds on to the parser, and so to the trainer and the data, all of which
        # would be copied with the model for its moving average.
        self.model.optimizer = partial(instantiate_class, init=self.model.hparams["optimizer"])
        settings = self.model.hparams["denoiser"]["init_args"]
        for name in NETWORKS:
            if "class_path" in settings[name]:
                self._drop_unused(settings[name]["init_args"], getattr(self.model.denoiser, name))
            else:
                del settings[name]
        # Kept in the checkpoints, to say what the model was trained on.
        self.datamodule.save_hyperparameters(self.config_dump["data"], logger=False)

    def _drop_unused(self, settings: dict[str, Any], network: nn.Module) -> None:
        """Take out of a network's settings what the links gave to arguments that it does not have.

        Raises:
            ValueError: where it has none for the labels that the data gives.
        """
        accepted = signature(type(network)).parameters
        for key in FROM_DATA.keys() - accepted.keys():
            settings.pop(key, None)
        if self.datamodule.classes and "classes" not in accepted:
            name = type(network).__name__
            raise ValueError(
                f"data.labels: true, but the network {name} has no argument `classes` and takes no labels"
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        name, seed, trainer = self.config.name, self.config.seed_everything, self.config.trainer
        optimizer = self.config.model.optimizer.class_path
        if not subclass_of(optimizer, torch.optim.Optimizer):  # it would be called, whatever it is
            raise ValueError(
                f"model.optimizer: {optimizer} is not a subclass of torch.optim.Optimizer"
            )
        if name in ("", "..") or Path(name).name != name:
            raise ValueError(f"name: {name!r} is not the name of a folder")
        if (
            seed is None or seed is False or not 0 <= seed < 2**32
        ):  # without one, a run could not be gone on from to the bit
            raise ValueError(f"seed_everything: {seed} is not a whole number from 0 to {2**32 - 1}")
        for key in ("max_steps", "max_epochs", "limit_train_batches", "val_check_interval"):
            if trainer[key] == 0:
                raise ValueError(f"trainer.{key}: 0 leaves nothing to do")
        if trainer.accumulate_grad_batches < 1:
            raise ValueError(
                f"trainer.accumulate_grad_batches: {trainer.accumulate_grad_batches} is not at least 1"
            )
        if isinstance(trainer.val_check_interval, dict):
            try:
                timedelta(**trainer.val_check_interval)
            except TypeError as error:
                raise ValueError(
                    f"trainer.val_check_interval: {error}; give steps, or {{minutes: 5}}"
                ) from error
        if trainer.precision not in PRECISIONS:
            allowed = ", ".join(str(precision) for precision in PRECISIONS if precision is not None)
            raise ValueError(
                f"trainer.precision: {trainer.precision} is none of {allowed}: noise levels stay in float32, and only "
                "the network may run in less"
            )
        if trainer.overfit_batches:
            raise ValueError(
                "trainer.overfit_batches: is not there; train on a folder of a few pictures instead"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        if self.config.trainer.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(
                "logs", name=self.config.name, default_hp_metric=False, flush_secs=30
            )
        self.stop, self.record, self.files = (
            GracefulStop(self.config_init.checkpoint),
            Record(),
            PatientCheckpointIO(),
        )
        bar = [RunProgress()] if self.config.trainer.enable_progress_bar is not False else []
        scored = self.config.quality.features is not None
        best = [BestCheckpoint(f"checkpoints/{self.config.name}")] if scored else []
        strips = [DenoisingStrips()] if self.config.samples.count else []
        levels = LossPerLevel()
        shown = [levels, Dashboard(levels), Throughput(), *strips]
        self.trainer_defaults["callbacks"] = [*shown, self.stop, self.record, *bar, *best, Resume()]
        asked = self.config_init.trainer.plugins or []
        kwargs["plugins"] = [
            *(asked if isinstance(asked, list) else [asked]),
            self.files,
            *plugins(),
        ]
        return super().instantiate_trainer(**kwargs)

    def prepare(self) -> None:
        """Find the checkpoint to go on from, try the optimiser, and get the data.

        Raises:
            ValueError: where there is no such checkpoint or it is of another network, where the optimiser refuses its
                settings, where the data is not what it should be, or something started too many processes.
            OSError: where the data cannot be had, or the logs cannot be written.
        """
        trainer = self.trainer
        check_processes(trainer.world_size, trainer.num_devices, trainer.num_nodes)
        # By the same command that began the run, where SLURM gives it again.
        going_on = requeued() and any(numbered(self.folder))
        self.ckpt_path = checkpoint_of("last" if going_on else self.config.ckpt_path, self.folder)
        checkpoint = resumable(self.ckpt_path) if self.ckpt_path else None
        self.finished = checkpoint is not None and self.is_finished(checkpoint)
        rate = self.model.hparams["optimizer"].get("init_args", {}).get("lr")
        if rate is not None and not 0 < rate < math.inf:
            raise ValueError(f"model.optimizer.lr: {rate}, and must be positive and finite")
        self._try_a_step()
        precision = str(self.config.trainer.precision)
        if self.config.model.optimizer.get("init_args", {}).get("fused"):
            clipped = precision.endswith("mixed") and self.config.trainer.gradient_clip_val
            if precision == "16-mixed" or clipped:
                what = (
                    "trainer.precision: 16-mixed"
                    if not clipped
                    else f"trainer.gradient_clip_val: in {precision} it"
                )
                raise ValueError(
                    f"{what} does not go with model.optimizer.fused: true; set it to false"
                )
        if (
            self.config.trainer.precision == "16-mixed"
            and self.trainer.strategy.root_device.type == "cpu"
        ):
            raise ValueError("trainer.precision: 16-mixed is not there on a CPU; bf16-mixed is")
        if rank_zero_only(lambda: True)():  # the other ranks do this when the first has the data
            for logger in self.trainer.loggers:
                if isinstance(logger, (TensorBoardLogger, CSVLogger)):
                    check_writable(Path(logger.root_dir))
            self.datamodule.prepare_data()
            self.datamodule.setup()
            self.datamodule.check_share(self.trainer.world_size)
            self._try_examples()
            self.config_init.quality.check(self.model.model, self.datamodule)
            self.record.run = recorded(self.settings, self.datamodule, self.trainer.world_size)
            if checkpoint is not None:
                check_resumed(self.record.run, checkpoint, str(self.ckpt_path))
                check_weights(self.model, checkpoint["state_dict"], str(self.ckpt_path))

    def is_finished(self, checkpoint: dict[str, Any]) -> bool:
        """Return True if a checkpoint is of the end of the run; it is not if a last validation was broken off."""
        step, last = checkpoint["global_step"], self.trainer.max_steps
        return 0 < last < step or (last == step and bool(checkpoint.get("complete", True)))

    def _try_a_step(self) -> None:
        """Make the optimiser, and let another like it take a step.

        Raises:
            ValueError: where it refuses its settings, or computes with numbers that 32 bits do not hold.
        """
        weights = nn.Parameter(torch.zeros(2, 2, device=self.trainer.strategy.root_device))
        weights.grad = torch.ones_like(weights)
        try:
            self.model.configure_optimizers()
            with torch.enable_grad():
                self.model.optimizer([weights]).step(weights.sum)
        except (ValueError, RuntimeError, AssertionError) as error:
            settings = self.model.hparams["optimizer"].get("init_args", {})
            raise ValueError(f"model.optimizer: {error}, with lr {settings.get('lr')}") from error

    @property
    def folder(self) -> Path:
        """Where the run's checkpoints are."""
        return Path("checkpoints", self.config.name)

    def _try_examples(self) -> None:
        """Compute the loss of some examples, before a run's folders are made for one that cannot be.

        Raises:
            ValueError: where they do not fit the network, the objective or the schedule.
        """
        examples = self.datamodule.splits["train"]
        several = examples[list(range(min(TRIED, len(examples))))]
        x, label = self.datamodule.on_after_batch_transfer(several, 0)
        if self.model.objective.binary_data and not ((x == 0) | (x == 1)).all():
            name = type(self.model.objective).__name__
            raise ValueError(f"model.objective: {name} expects data of zeros and ones (data)")
        try:
            self.model.eval()  # a trial is no part of the training: whatever counts or averages there is left alone
            with torch.random.fork_rng(), torch.no_grad():
                losses = self.model.losses(x, self.model.schedule.sample(x), label)
            self.model.train()
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"model: it has no loss on this data, examples of shape {self.model.shape}: {error}"
            ) from error
        if not losses.isfinite().all():
            raise ValueError(
                f"model: its loss on the data is {losses[:2].tolist()}; is a level of the schedule 0?"
            )

    @rank_zero_only
    def announce(self) -> None:
        """Say what is trained, and from where it goes on."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        pictures = len(self.datamodule.splits["train"])
        print(
            f"Training {self.config.name}: {parameters:,} parameters on {pictures:,} examples of {self.model.shape}"
        )
        if self.ckpt_path:
            print(f"Going on from {self.ckpt_path}")

    def fit(self) -> None:
        """Train, say where the results are, and end as a signal asked for.

        Raises:
            FloatingPointError: where too many steps in a row have no finite gradient.
            OSError: where the last checkpoint could not be written, figures were not logged, or SLURM did not take the
                job into its queue again.
        """
        if self.finished:
            print(
                f"{self.ckpt_path} is of the end of the run: trainer.max_steps is {self.trainer.max_steps}."
            )
            return
        self.announce()
        try:
            with suppress(RunStopped):
                self.trainer.fit(
                    self.model,
                    datamodule=self.datamodule,
                    ckpt_path=self.ckpt_path,
                    weights_only=True,
                )
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if self.ckpt_path is None or self.stop.began:
                raise
            raise ResumeError(
                f"--ckpt_path: {self.ckpt_path} cannot be resumed: {' '.join(str(error).split())}"
            ) from error
        if self.files.failure is not None:
            raise self.files.failure
        self.report()
        if self.stop.signal == REQUEUE:
            try:
                rank_zero_only(requeue)()
            finally:  # a process that ends before may take the others with it
                self.trainer.strategy.barrier()
        if self.stop.signal is not None:
            sys.exit(128 + self.stop.signal)

    @rank_zero_only
    def report(self) -> None:
        """Print where the checkpoint and the logs are, and how to draw."""
        print(f"Trained {self.trainer.global_step:,} steps.")
        checkpoint = next(iter(numbered(self.folder)), None)
        if checkpoint is not None:  # a run of `trainer.fast_dev_run` saves none
            print(f"Checkpoint:  {checkpoint}")
        if (
            self.trainer.logger is not None and self.trainer.logger.log_dir
        ):  # `trainer.log_dir` waits for other ranks
            print(f"Logs:        {self.trainer.logger.log_dir}  (tensorboard --logdir logs)")
        if self.stop.signal is not None:
            print("Resume:      the same command with --ckpt_path last")
        elif checkpoint is not None:
            print(f"Sample:      ncsn sample {checkpoint}")


def subclass_of(path: str, kind: type) -> bool:
    """Return True if an import path leads to a subclass of `kind`."""
    module, _, name = path.rpartition(".")
    found = getattr(import_module(module), name, None)
    return isinstance(found, type) and issubclass(found, kind)


def build() -> TrainCLI:
    """Parse the command line, and build what it describes.

    Raises:
        ArgumentError, ValueError, MisconfigurationException: where a setting is wrong.
    """
    make = partial(
        TrainCLI,
        ScoreModule,
        DataModule,
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
        parser_kwargs={"exit_on_error": False, "usage": USAGE, "description": DESCRIPTION},
    )
    try:
        return make()
    except (
        RuntimeError,
        OverflowError,
        MemoryError,
    ) as error:  # of torch, where no memory holds what is asked for
        raise ValueError(f"model: it cannot be made: {error}") from error


def run() -> None:
    """Parse, build, check and train.

    Raises:
        ArgumentError, ValueError, MisconfigurationException: if a setting is wrong.
        OSError: if the disk or a worker process fails.
        FloatingPointError: if too many steps have no finite gradient.
    """
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32, if the precision is 32-true
    with at_most_parameters(MOST_PARAMETERS):
        cli = build()
    with ExitStack() as held:
        if rank_zero_only(lambda: True)():
            held.enter_context(exclusive_folder(cli.folder))
        cli.prepare()
        try:
            cli.fit()
        except ResumeError:
            raise
        except ValueError as error:  # of the user's own code, whose traceback is of use
            raise RuntimeError("training failed") from error
        except RuntimeError as error:
            if not str(error).startswith("DataLoader"):
                raise
            # A worker was killed for want of memory, say, or waits for a dead disk.
            raise OSError(f"data.workers: {error}") from error
