"""A step of training or sampling reads nothing from the device, so that a GPU is never waited for.

The device of these tests is torch's "meta": its tensors have no values, so that whatever reads one fails. What it would
not notice is refused by `NoWaits`: copies between it and the CPU, and, on the CPU, the operations that read a value.
"""

import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from ncsn.data import Digits
from ncsn.networks import RBM, AutoencoderEnergy, UNet
from ncsn.noise import GeometricSchedule, KarrasSchedule, LogNormalSchedule, NoNoise
from ncsn.noise.streams import Streams, exponential, integers, normal, uniform
from ncsn.objectives import (
    CorruptionScoreMatching,
    DenoisingScoreMatching,
    EDMScoreMatching,
    FiniteDifferenceSlicedScoreMatching,
    ImplicitScoreMatching,
    LaplaceNoise,
    PseudoLikelihood,
    RatioMatching,
    SlicedScoreMatching,
    Weighted,
)
from ncsn.samplers import (
    Ancestral,
    AnnealedLangevin,
    ConsistentAnnealed,
    DPMSolver,
    Euler,
    EulerMaruyama,
    Gibbs,
    Heun,
    Langevin,
    MetropolisAdjustedLangevin,
    PredictorCorrector,
    SASolver,
)
from ncsn.score import EDMDenoiser, EnergyScore, NCSNDenoiser
from ncsn.score.guidance import GaussianBlur, Mask, classifier_free, grey, inpaint, posterior
from ncsn.training.augmentation import augmented
from ncsn.training.callbacks import EMA, LossPerLevel, RunProgress, Throughput
from ncsn.training.module import gradient_norm
from ncsn.training.optimisers import MuonAdam, skip_step
from torch.optim import Adam, AdamW
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conftest import named
from test_module import small_module, small_trainer

aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.nonzero, aten.equal, aten.is_nonzero, aten.masked_select, aten.unique_dim}
READS |= {aten._unique2, aten.bincount, aten.repeat_interleave}


class NoListsOfTheHost(TorchFunctionMode):
    """A context in which numbers of the host do not become a tensor of another device, which makes a GPU wait."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = func in (torch.tensor, torch.Tensor.new_tensor)
        made |= func is torch.as_tensor and not isinstance(args[0], torch.Tensor)
        if made and out.device.type != "cpu":
            raise AssertionError(f"{func} copies numbers of the host")
        return out


class NoWaits(TorchDispatchMode):
    """A context in which an operation that makes a GPU wait is refused."""

    def __enter__(self):
        self.lists = NoListsOfTheHost()
        self.lists.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.lists.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        devices = {x.device.type for x in (*given, *(x for x in tree_leaves(out) if isinstance(x, torch.Tensor)))}
        if func.overloadpacket in READS:
            raise AssertionError(f"{func} reads a value")
        if func.overloadpacket in (aten.index, aten.index_put_) and any(x.dtype == torch.bool for x in given[1:]):
            raise AssertionError(f"{func} counts the values that are true")
        if func.overloadpacket in (aten._to_copy, aten.copy_) and len(devices) > 1:
            raise AssertionError(f"{func} copies between {devices}")
        return out


def image_model(kind=NCSNDenoiser, **settings):
    return kind(UNet(1, width=8, multipliers=(1, 2), blocks=1, attention=(1,), dropout=0.1, **settings)).to("meta")


IMAGES = torch.empty(4, 1, 8, 8, device="meta")
BITS = torch.empty(4, 6, device="meta")
AUTOENCODER = EnergyScore(AutoencoderEnergy(6, 3)).to("meta")
MACHINE = EnergyScore(RBM(6, 3)).to("meta")


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: (x > 0).nonzero(),
        lambda x: torch.equal(x, x + 1),
        lambda x: x.to("meta"),
        lambda x: torch.tensor([1.0], device="meta"),
        lambda x: x.new_tensor([1.0], device="meta"),
    ],
)
def test_whatever_reads_a_value_is_noticed(read):
    with NoWaits(), pytest.raises(AssertionError):
        read(torch.randn(3))


@pytest.mark.parametrize(
    ("objective", "model", "x"),
    [
        (DenoisingScoreMatching(), image_model(), IMAGES),
        (DenoisingScoreMatching(), image_model(classes=10), IMAGES),
        (EDMScoreMatching(), image_model(EDMDenoiser), IMAGES),
        (CorruptionScoreMatching(LaplaceNoise()), image_model(), IMAGES),
        (Weighted(SlicedScoreMatching(), 2), image_model(), IMAGES),
        (FiniteDifferenceSlicedScoreMatching(), image_model(), IMAGES),
        (ImplicitScoreMatching(probes=1), image_model(), IMAGES),
        (ImplicitScoreMatching(), AUTOENCODER, BITS),
        (RatioMatching(), MACHINE, BITS),
        (PseudoLikelihood(), MACHINE, BITS),
    ],
    ids=lambda value: None if isinstance(value, torch.Tensor) else type(value).__name__,
)
def test_a_loss_and_its_gradient_read_nothing(objective, model, x):
    classes = getattr(getattr(model, "network", None), "classes", 0)
    label = torch.empty(4, dtype=torch.long, device="meta") if classes else None
    with NoWaits():
        objective(objective.of(model, label), x, GeometricSchedule(2, 0.1, 5).sample(x)).mean().backward()
        norm = gradient_norm(model.parameters())
    assert norm.device.type == "meta"


@pytest.mark.parametrize("schedule", [KarrasSchedule(2, 0.1, 5), LogNormalSchedule(), NoNoise()], ids=named)
def test_levels_of_training_are_made_on_the_device(schedule):
    with NoWaits():
        assert schedule.sample(IMAGES).device.type == "meta"


LEVELS = GeometricSchedule(2, 0.1, 4).sigmas()
SAMPLERS = [
    Ancestral(),
    AnnealedLangevin(),
    ConsistentAnnealed(0.0105),
    DPMSolver(),
    DPMSolver(eta=1.0),
    Euler(),
    EulerMaruyama(),
    Heun(),
    Heun(churn=10.0),
    Langevin(1e-3, 2),
    PredictorCorrector(),
    SASolver(),
]


def steps_read_nothing(states):
    next(states)  # the levels are brought to the device once
    with NoWaits():
        for x in states:
            assert x.device.type == "meta"


@pytest.mark.parametrize("sampler", SAMPLERS, ids=named)
def test_a_step_of_a_sampler_reads_nothing(sampler):
    model = image_model().eval()
    with torch.no_grad():
        steps_read_nothing(sampler(sampler.of(model), IMAGES, LEVELS))


@pytest.mark.parametrize(
    ("sampler", "model"), [(MetropolisAdjustedLangevin(1e-3, 2), AUTOENCODER), (Gibbs(1), MACHINE)], ids=named
)
def test_a_step_of_an_energy_reads_nothing(sampler, model):
    steps_read_nothing(sampler(sampler.of(model), BITS, torch.tensor([0.5, 0.3, 0.1])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_numbers_of_samples_are_made_on_the_device(dtype):
    x = torch.empty(4, 1, 8, 8, dtype=dtype, device="meta")
    with NoWaits(), Streams(0, range(4), "meta"):
        for found in (normal(x), uniform(x), exponential(x), integers(x, 9), GeometricSchedule(2, 0.1, 5).sample(x)):
            assert found.device.type == "meta"


def test_augmented_images_are_made_on_the_device():
    with NoWaits(), Streams(0, range(4), "meta"):
        assert augmented(IMAGES, None, 0.1)[0].device.type == "meta"


KNOWN = torch.empty(1, 8, 8, device="meta")
GUIDES = {
    "classifier-free": lambda score: classifier_free(score, score, 2.0),
    "inpainting": lambda score: inpaint(score, KNOWN, KNOWN > 0),
    "mask": lambda score: posterior(score, Mask(KNOWN > 0), KNOWN, 0.1),
    "blur": lambda score: posterior(score, GaussianBlur(0.5), KNOWN, 0.1),
    "grey": lambda score: posterior(score, grey, KNOWN, 0.1),
}


@pytest.mark.parametrize("guide", GUIDES)
def test_guidance_reads_nothing(guide):
    with torch.no_grad():
        steps_read_nothing(Euler()(GUIDES[guide](image_model().eval().score), IMAGES, LEVELS))


class Watched(Callback):
    """Watches the steps between two that are logged, inside a context of a kind."""

    def __init__(self, kind=NoWaits):
        self.kind, self.steps, self.mode = kind, 0, None

    def on_train_batch_start(self, trainer, pl_module, *_):
        if not pl_module.logs:
            self.mode = self.kind()
            self.mode.__enter__()

    def on_train_batch_end(self, trainer, *_):
        if self.mode:
            self.mode.__exit__(None, None, None)
            self.mode, self.steps = None, self.steps + 1


OPTIMISERS = {
    "fused Adam": lambda parameters: Adam(parameters, fused=True),
    "fused AdamW": lambda parameters: AdamW(parameters, fused=True),
    "MuonAdam": MuonAdam,
}


@pytest.mark.parametrize("optimizer", OPTIMISERS)
def test_a_step_of_training_reads_nothing_between_those_that_are_logged(tmp_path, optimizer):
    watched, module = Watched(), small_module(classes=10, optimizer=OPTIMISERS[optimizer], warmup=3)
    callbacks = [EMA(), LossPerLevel(), Throughput(), RunProgress(), watched]
    settings = {"max_steps": 6, "log_every_n_steps": 5, "accumulate_grad_batches": 2, "callbacks": callbacks}
    small_trainer(tmp_path, **settings, enable_progress_bar=True).fit(module, Digits(batch_size=64, labels=True))
    assert watched.steps == 5 * 2


@pytest.mark.parametrize("optimizer", OPTIMISERS)
def test_a_skipped_step_changes_nothing_on_the_device(optimizer):
    """Compares with an optimiser that never saw the step."""
    results = []
    for bad in ((), (2, 3)):
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 4)
        optimiser = OPTIMISERS[optimizer](layer.parameters())
        for step in range(6 if bad else 4):
            for p, gradient in zip(layer.parameters(), (torch.eye(4), torch.arange(4.0)), strict=True):
                p.grad = gradient + step - 2 * (bool(bad) and step > 3)
                if step in bad:
                    p.grad[0] = [math.nan, math.inf][step - 2]
            skip_step(optimiser, ~gradient_norm(layer.parameters()).isfinite())
            optimiser.step()
        results.append([*layer.parameters(), *(x for state in optimiser.state.values() for x in state.values())])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
