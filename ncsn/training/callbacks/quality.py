"""The Fréchet distance of samples during training."""

import math
import warnings

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ncsn.data import DataModule, ImageData
from ncsn.evaluation.classifier import load_classifier
from ncsn.evaluation.extractors import extract, reference_features
from ncsn.evaluation.metrics import frechet
from ncsn.model.draws import Request, batches, draws
from ncsn.model.model import Model
from ncsn.samplers import DPMSolver, Sampler
from ncsn.training.module import ScoreModule
from ncsn.training.processes import gathered

__all__ = ["FIGURE", "SampleQuality"]

FIGURE = "val/frechet_distance"  # the name of the metric in the logs


class SampleQuality(Callback):
    """The Fréchet distance of samples to the training images, at each validation.

    Every validation uses the same seed. `EMA` swaps in the averaged weights for the
    validation: list this callback before it. The defaults are cheap and suit
    comparisons within a run; report the metrics of `ncsn evaluate`.

    Args:
        features: weights from `ncsn features`; without them the callback is off.
        count: the number of samples, split over the devices.
        sampler: `DPMSolver(eta=1)` by default.
        levels: the number of noise levels of a trajectory.
        batch_size: samples per batch, on each device.
        seed: of the samples.

    Raises:
        ValueError: if a number is too small, or the features cannot be loaded.
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
        # The extractor is not a submodule: it is neither trained, averaged nor saved.
        self.extractor = load_classifier(features) if features is not None else None
        if self.extractor is not None and count <= self.extractor.num_features:
            raise ValueError(
                f"SampleQuality: count is {count}, and must be above the features' {self.extractor.num_features}"
            )
        self.count = count
        self.sampler = sampler or DPMSolver(eta=1.0)
        self.levels = levels
        self.batch_size = batch_size
        self.seed = seed
        self.reference: Tensor | None = None

    def check(self, module: Model, data: DataModule | None) -> None:
        """Check the data and the sampler before a run begins.

        Raises:
            ValueError: if the features do not fit the data, or the sampler the model.
        """
        if self.extractor is None:
            return
        if not isinstance(data, ImageData):
            raise ValueError(f"quality.features: {type(data).__name__} has no images")
        extract(self.extractor, torch.zeros(1, *data.shape))
        module.check(self.sampler, module.sigmas_for(self.sampler, self.levels))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ScoreModule)
        data = trainer.datamodule  # type: ignore[attr-defined]
        self.check(pl_module.model, data)
        if self.extractor is not None and trainer.is_global_zero:
            self.reference = reference_features(self.extractor.to(pl_module.device), data).features

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ScoreModule)
        if self.extractor is None or trainer.state.fn != "fit":
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
        # Rank 0 alone has the reference; all ranks log its value, for the same best.
        pl_module.log(FIGURE, trainer.strategy.broadcast(value), prog_bar=True)

    def seen(self, module: Model, indices: range) -> Tensor:
        """Return the features (N, F) of samples, NaN for batches that diverged."""
        assert self.extractor is not None
        extractor, parts = self.extractor.to(module.device), []
        sigmas = module.sigmas_for(self.sampler, self.levels)
        for batch in batches(indices, self.batch_size):
            try:
                ((_, x),) = draws(module, Request([batch], self.sampler, sigmas, self.seed))
                parts.append(extract(extractor, x).features.float().cpu())
            except FloatingPointError:
                parts.append(torch.full((len(batch), extractor.num_features), torch.nan))
        return torch.cat(parts)
