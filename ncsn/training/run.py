"""A training run, read from top to bottom: parse, build, check, fit."""

import math
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from inspect import signature
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, Namespace  # type: ignore[attr-defined]
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback, instantiate_class
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from ncsn.data import DataModule
from ncsn.model.files import check_writable, empty_folders_removed, exclusive_folder
from ncsn.model.labels import ALL, NONE, numbered_names
from ncsn.model.load import numbered
from ncsn.model.settings import at_most_parameters
from ncsn.training import callbacks, checks, processes
from ncsn.training.callbacks.logged import log_folder
from ncsn.training.checkpoint_io import PatientCheckpointIO
from ncsn.training.failures import explained
from ncsn.training.gpu import use_fast_kernels
from ncsn.training.module import ScoreModule
from ncsn.training.resume import (
    Record,
    Resume,
    check_resumed,
    check_state,
    checkpoint_of,
    is_finished,
    resumable,
)

__all__ = ["Run", "build", "build_parts", "check", "fit", "run"]

MAX_PARAMETERS = 20_000  # tensors in a model
MOST_NAMED = 5_000  # classes whose names a checkpoint keeps; of more it has the numbers
USAGE = "%(prog)s [--config FILE] [--SECTION.SETTING VALUE ...]"
# The sections of the settings but `data`, in the order of the help and of saved configurations.
SECTIONS = {
    "model": ScoreModule,
    "samples": callbacks.SampleGrid,
    "quality": callbacks.SampleQuality,
    "ema": callbacks.EMA,
    "checkpoint": callbacks.Checkpoint,
    "trainer": Trainer,
}
NETWORKS = ("network", "energy")  # the settings of a denoiser that hold a network
# Arguments of the model that the data determines.
OF_DATA: dict[str, Callable[[DataModule], Sequence[Any]]] = {
    "shape": lambda data: data.shape,
    "class_names": lambda data: data.class_names[: data.classes * (data.classes <= MOST_NAMED)],
}
# Network arguments inferred from the data, for networks that accept them.
FROM_DATA: dict[str, Callable[[DataModule], int | None]] = {
    "channels": lambda data: data.shape[0],
    "features": lambda data: math.prod(data.shape),
    "classes": lambda data: data.classes,
}


class SaveConfig(SaveConfigCallback):
    """The whole configuration, saved with the logs and shown in TensorBoard."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Without a folder of its own, it would replace a config.yaml in the working folder.
        if isinstance(logger := trainer.logger, (TensorBoardLogger, CSVLogger)):
            text, folder = self.parser.dump(self.config, skip_unset=False), Path(logger.log_dir)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.yaml").write_text(text, "utf-8")
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("config", f"```yaml\n{text}\n```")


@dataclass
class Run:
    """A training run that is built, with the parts of each section of its settings."""

    config: Namespace
    parts: Namespace
    model: ScoreModule
    datamodule: DataModule
    trainer: Trainer
    stop: callbacks.GracefulStop
    record: Record
    files: PatientCheckpointIO
    resumed_from: Path | None = None
    changes: Sequence[str] = ()  # of the settings, since that checkpoint
    finished: bool = False  # the run resumes from its end

    @property
    def folder(self) -> Path:
        """The folder of the checkpoints."""
        return Path("checkpoints", self.config.name)


def run(arguments: Sequence[str]) -> None:
    """Train as the arguments of the command line say.

    Raises:
        ArgumentError, ValueError, MisconfigurationException: if a setting is wrong.
        OSError: if the disk or a worker process fails.
        FloatingPointError: if too many steps have no finite gradient.
    """
    use_fast_kernels()
    with at_most_parameters(MAX_PARAMETERS):
        built = build(arguments)
    with ExitStack() as held:
        with processes.agreed(built.trainer):
            held.enter_context(processes.hold_outputs("name", exclusive_folder(built.folder)))
            check(built)
        fit(built)


@cache
def make_parser() -> LightningArgumentParser:
    """Return the parser of all settings of a run, made once in a process."""
    parser = LightningArgumentParser(prog="ncsn train", usage=USAGE, exit_on_error=False)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="A YAML file of settings.")
    folders = "The run's folders: checkpoints/NAME, logs/NAME."
    parser.add_argument("--name", type=str, default="run", help=folders)
    resume = "Resume from this checkpoint, or from the run's `last`."
    parser.add_argument("--ckpt_path", type=str | None, default=None, help=resume)
    accept = "Resume with other data, batch size, devices or noise; not an exact continuation."
    parser.add_argument("--accept_changes", type=bool, default=False, help=accept)
    parser.add_argument("--seed_everything", type=int, default=0, help="The seed of the run.")
    parser.add_lightning_class_args(DataModule, "data", subclass_mode=True)
    for name, section in SECTIONS.items():
        parser.add_lightning_class_args(section, name)
    parser.set_defaults(
        {
            "trainer.check_val_every_n_epoch": None,  # validation is by steps
            "trainer.num_sanity_val_steps": 0,
            "trainer.enable_model_summary": False,
        }
    )
    parser.link_arguments("name", "checkpoint.dirpath", lambda name: f"checkpoints/{name}")
    for key, given in OF_DATA.items():
        parser.link_arguments("data", f"model.{key}", given, apply_on="instantiate")
    for network, (key, of) in product(NETWORKS, FROM_DATA.items()):
        target = f"model.denoiser.init_args.{network}.init_args.{key}"
        parser.link_arguments("data", target, of, apply_on="instantiate")
    return parser


def build(arguments: Sequence[str]) -> Run:
    """Parse the arguments of the command line, and build what they describe.

    Raises:
        ArgumentError, ValueError, MisconfigurationException: if a setting is wrong.
    """
    parser, config, settings, parts = build_parts(arguments)
    stop, record = callbacks.GracefulStop(parts.checkpoint), Record(settings)
    files = PatientCheckpointIO()
    own: list[Callback] = [stop, record]
    if not config.trainer.fast_dev_run:
        own.append(SaveConfig(parser, config, save_to_log_dir=False))
    trainer = make_trainer(config, parts, own, files)
    return Run(config, parts, parts.model, parts.data, trainer, stop, record, files)


def build_parts(
    arguments: Sequence[str],
) -> tuple[LightningArgumentParser, Namespace, dict[str, Any], Namespace]:
    """Return the parser, the settings twice, and what they describe but the trainer."""
    parser = make_parser()
    try:
        config = parser.parse_args(arguments)
    except ArgumentError as error:
        raise ValueError(checks.with_hint(str(error), parser)) from error
    checks.check_settings(config)
    seed_everything(config.seed_everything, workers=True)
    text = parser.dump(config, skip_link_targets=False, skip_unset=False, format="yaml")
    settings = yaml.safe_load(text)
    for name, section in {"data": DataModule, **SECTIONS}.items():
        checks.check_nulls(settings[name], section, name)
    if config.ckpt_path is not None:
        config.model.weights = None  # a resumed run has its own
    try:
        parts = parser.instantiate(config)
    except (RuntimeError, OverflowError, MemoryError) as error:  # torch, out of memory
        raise ValueError(f"model: it cannot be made: {error}") from error
    add_settings(parts.model, parts.data, deepcopy(settings))
    return parser, config, settings, parts


def add_settings(model: ScoreModule, data: DataModule, settings: dict[str, Any]) -> None:
    """Give the model and the data the settings that checkpoints hold."""
    arguments = settings["model"]["denoiser"].get("init_args", {})
    for name in NETWORKS:
        if "class_path" in (arguments.get(name) or {}):
            network = type(getattr(model.denoiser, name))
            accepted = signature(network).parameters
            if data.classes and "classes" not in accepted:
                raise ValueError(
                    f"data.labels: true, but the network {network.__name__} has no argument "
                    "`classes` and takes no labels"
                )
            inferred = {key: of(data) for key, of in FROM_DATA.items() if key in accepted}
            arguments[name].setdefault("init_args", {}).update(inferred)
    model.hparams.update({**settings["model"], **{key: of(data) for key, of in OF_DATA.items()}})
    data.save_hyperparameters(settings["data"], logger=False)
    # The parser's own maker of optimisers would keep the parser, the trainer and the data alive.
    model.optimizer = partial(instantiate_class, init=model.hparams["optimizer"])


def make_trainer(
    config: Namespace, parts: Namespace, own: list[Callback], files: PatientCheckpointIO
) -> Trainer:
    """Return the trainer, with the callbacks and plugins of every run and those of the user."""
    given, levels, folder = dict(parts.trainer), callbacks.LossPerLevel(), parts.checkpoint.folder
    if config.trainer.logger in (None, True):
        logger = TensorBoardLogger("logs", config.name, default_hp_metric=False, flush_secs=30)
        given["logger"] = logger
    for logger in as_list(given["logger"]):
        if isinstance(logger, (TensorBoardLogger, CSVLogger)) and logger.name == "lightning_logs":
            logger._name = config.name
    # SampleGrid and SampleQuality need the averaged weights, which EMA holds in place until its
    # own hook runs after theirs.
    given["callbacks"] = [
        *as_list(given["callbacks"]),
        *(parts.samples, parts.quality, parts.ema, parts.checkpoint),
        *(levels, callbacks.Dashboard(levels), callbacks.Throughput()),
        *([callbacks.DenoisingStrips()] if config.samples.count else []),
        *own,
        *([callbacks.RunProgress()] if config.trainer.enable_progress_bar is not False else []),
        *([callbacks.BestCheckpoint(folder)] if config.quality.features is not None else []),
        Resume(),
    ]
    given["plugins"] = [*as_list(given["plugins"]), files, *processes.plugins()]
    interval, steps = given["val_check_interval"], given["max_steps"]
    if isinstance(interval, int) and 0 < steps < interval:  # a short run shows samples, too
        given["val_check_interval"] = steps
    try:
        return Trainer(**given)
    except (TypeError, ModuleNotFoundError) as error:
        raise ValueError(f"trainer: {error}") from error


def as_list(value: Any) -> list[Any]:
    """Return a list of nothing, of one value, or of the values given."""
    return value if isinstance(value, list) else [] if value is None else [value]


def check(run: Run) -> None:
    """Find the checkpoint to resume from, try the optimiser, and get the data."""
    trainer, model, data = run.trainer, run.model, run.datamodule
    processes.check_processes(trainer.world_size, trainer.num_devices, trainer.num_nodes)
    # SLURM starts a requeued job by the command that began the run.
    resumes = processes.requeued() and any(numbered(run.folder))
    run.resumed_from = checkpoint_of("last" if resumes else run.config.ckpt_path, run.folder)
    checkpoint = resumable(run.resumed_from) if run.resumed_from else None
    run.finished = checkpoint is not None and is_finished(checkpoint, trainer.max_steps)
    keeps_state = checks.check_optimizer(model, trainer.strategy.root_device)
    checks.check_precision(run.config, trainer.strategy.root_device)
    if trainer.is_global_zero:  # the other ranks do this when the first has the data
        for logger in trainer.loggers:
            if isinstance(logger, (TensorBoardLogger, CSVLogger)):
                check_writable(Path(logger.root_dir))
        data.prepare_data()
        data.setup()
        data.check_share(trainer.world_size)
        checks.check_accumulation(trainer, data)
        checks.check_loss(model, data)
        model.model.check(model.sampler, model.schedule.sigmas())
        run.parts.quality.check(model.model, data)
        run.record.describe(data, trainer.world_size)
        if checkpoint is not None:
            source, accept = str(run.resumed_from), run.config.accept_changes
            run.changes = check_resumed(run.record.run, checkpoint, source, accept)
            check_state(model, keeps_state, checkpoint, source)


def fit(run: Run) -> None:
    """Train, print where the results are, and end as a signal asked for."""
    trainer, last = run.trainer, run.resumed_from
    if run.finished:
        end = f"{last} is of the end of the run: trainer.max_steps is {trainer.max_steps}."
        rank_zero_only(print)(end)
        return
    announce(run)
    try:
        with no_logs_without_training(run), suppress(callbacks.RunStopped):
            trainer.fit(run.model, datamodule=run.datamodule, ckpt_path=last, weights_only=True)
    except Exception as error:
        failure = explained(run, error)
        if failure is None:
            raise
        raise failure from error
    if run.files.failure is not None:
        raise run.files.failure
    report(run)
    if run.stop.signal == processes.REQUEUE:
        try:
            rank_zero_only(processes.requeue)()
        finally:  # a process that ends before may take the others with it
            trainer.strategy.barrier()
    if run.stop.signal is not None:
        sys.exit(128 + run.stop.signal)


@contextmanager
def no_logs_without_training(run: Run) -> Iterator[None]:
    """Remove the new log folders of a run that ends before its training begins."""
    loggers = run.trainer.loggers if run.trainer.is_global_zero else []
    logs = [Path(one.log_dir) for one in loggers if isinstance(one, (TensorBoardLogger, CSVLogger))]
    new = [folder for folder in logs if not folder.exists()]
    with ExitStack() as parents:
        for folder in new:
            parents.enter_context(empty_folders_removed(folder))
        try:
            yield
        finally:
            for folder in new if not run.stop.began else []:
                shutil.rmtree(folder, ignore_errors=True)


@rank_zero_only
def announce(run: Run) -> None:
    """Print what is trained, and from where it is resumed."""
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    examples = f"{len(run.datamodule.splits['train']):,} examples of {run.model.shape}"
    trainer, batch = run.trainer, run.datamodule.batch_size
    print(f"Training {run.config.name}: {parameters:,} parameters on {examples}")
    device = f"{trainer.num_devices * trainer.num_nodes} x {trainer.strategy.root_device.type}"
    ends = {"step": trainer.max_steps, "epoch": trainer.max_epochs or -1}
    end = " or ".join(f"{unit} {count:,}" for unit, count in ends.items() if count > 0)
    end = f", up to {end}" if end else ""
    print(f"Device:      {device}, {trainer.precision}; batches of {batch}{end}")
    show_logs(trainer)
    if run.datamodule.classes:
        names = run.model.model.labels.names
        print(f"{len(names)} classes: {numbered_names(names)}; samples are of each in turn")
        for word in sorted({ALL, NONE}.intersection(names)):
            meaning = "each class in turn" if word == ALL else "no class"
            print(
                f"--label {word} is {meaning}; the class of this name is --label {names.index(word)}"
            )
    if run.resumed_from:
        print(f"Resuming from {run.resumed_from}")
        for change in run.changes:
            print(f"Changed:     {change}")


@rank_zero_only
def report(run: Run) -> None:
    """Print where the checkpoint and the logs are, and how to sample."""
    print(f"Trained {run.trainer.global_step:,} steps.")
    checkpoint = next(iter(numbered(run.folder)), None)
    if checkpoint is not None:  # `trainer.fast_dev_run` saves none
        print(f"Checkpoint:  {checkpoint}")
    show_logs(run.trainer)
    if run.stop.signal is not None:
        print("Resume:      the same command with --ckpt_path last")
    elif checkpoint is not None:
        print(f"Sample:      ncsn sample {checkpoint}")


def show_logs(trainer: Trainer) -> None:
    """Print where the logs are (`trainer.log_dir` would wait for other ranks)."""
    for logger in trainer.loggers:
        is_shown = isinstance(logger, TensorBoardLogger)
        command = f"  (tensorboard --logdir {logger.root_dir})" if is_shown else ""
        print(f"Logs:        {log_folder(logger)}{command}")
