"""How good the samples are, as a run goes on."""

import math
import warnings

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ncsn.data import DataModule, ImageData
from ncsn.evaluation.extractors import look_at, reference_looks
from ncsn.evaluation.features import load_features
from ncsn.evaluation.metrics import frechet
from ncsn.model.draws import Request, batches, draws
from ncsn.model.model import Model
from ncsn.samplers import DPMSolver, Sampler
from ncsn.training.module import ScoreModule
from ncsn.training.processes import gathered

__all__ = ["FIGURE", "SampleQuality"]

FIGURE = "val/frechet_distance"
"""The name under which the score is logged."""


class SampleQuality(Callback):
    """The Frechet distance of samples to the training pictures, at each validation; the same samples every time.

    It draws with the averaged weights, which `EMA` puts in place for the time of a validation: list it before `EMA`.
    Cheap by default, it is for comparing the states of one run. `ncsn evaluate` gives figures to report.

    Args:
        features: weights of `ncsn features`, by which it is on.
        count: how many samples, shared out among the devices.
        sampler: how they are drawn; `DPMSolver(eta=1)` where none is given.
        levels: of the ladder between the ends of the schedule, down which they are.
        batch_size: how many are drawn at once, on each device.
        seed: of the samples.

    Raises:
        ValueError: where a number is too small, or the file of features is missing or damaged.
    """

    def __init__(
        self,
        features: str | None = None,
        count: int = 500,
        sampler: Sampler | None = None,
        levels: int = 20,
        batch_size: int = 250,
        seed: int = 0,
    ) -> None:
        for name, value, least in (("levels", levels, 2), ("batch_size", batch_size, 1)):
            if value < least:
                raise ValueError(f"SampleQuality: {name} is {value}, and must be at least {least}")
        # Not a part of the module: it has no place in the checkpoints, and is neither trained nor averaged.
        self.judge = load_features(features) if features is not None else None
        if self.judge is not None and count <= self.judge.num_features:
            raise ValueError(
                f"SampleQuality: count is {count}, and must be above the features' {self.judge.num_features}"
            )
        self.count = count
        self.sampler = sampler or DPMSolver(eta=1.0)
        self.levels = levels
        self.batch_size = batch_size
        self.seed = seed
        self.reference: Tensor | None = None

    def check(self, module: Model, data: DataModule | None) -> None:
        """Refuse what cannot be scored, before a run begins.

        Raises:
            ValueError: where the data is not of pictures that the features take, or the sampler does not fit the model.
        """
        if self.judge is None:
            return
        if not isinstance(data, ImageData):
            raise ValueError(f"quality.features: {type(data).__name__} is not of pictures")
        look_at(self.judge, torch.zeros(1, *data.shape))
        self.sampler.of(module.denoiser)
        self.sampler.check(module.sigmas_for(self.sampler, self.levels))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ScoreModule)
        data = trainer.datamodule  # type: ignore[attr-defined]
        self.check(pl_module.model, data)
        if self.judge is not None and trainer.is_global_zero:
            self.reference = reference_looks(self.judge.to(pl_module.device), data).features

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ScoreModule)
        if self.judge is None or trainer.state.fn != "fit":
            return
        with trainer.precision_plugin.forward_context():
            seen = self.seen(
                pl_module.model, range(trainer.global_rank, self.count, trainer.world_size)
            )
        features, value = torch.cat(gathered([seen])), math.inf
        if not features.isfinite().all():
            warnings.warn(
                f"the samples at step {trainer.global_step} diverged, and have no score",
                stacklevel=2,
            )
        elif self.reference is not None:
            value = frechet(features, self.reference)
        # The first rank alone has the reference. All log one value, by which all keep the same best checkpoint.
        pl_module.log(FIGURE, trainer.strategy.broadcast(value), prog_bar=True)

    def seen(self, module: Model, indices: range) -> Tensor:
        """The features (N, F) of samples, NaN where they diverged."""
        assert self.judge is not None
        judge, parts = self.judge.to(module.device), []
        sigmas = module.sigmas_for(self.sampler, self.levels)
        for batch in batches(indices, self.batch_size):
            try:
                ((_, x),) = draws(module, Request([batch], self.sampler, sigmas, self.seed))
                parts.append(look_at(judge, x).features.float().cpu())
            except FloatingPointError:
                parts.append(torch.full((len(batch), judge.num_features), torch.nan))
        return torch.cat(parts)
