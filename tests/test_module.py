import math
import re
import warnings
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from ncsn.data import BinaryDigits, Digits
from ncsn.model import checkpoint_file
from ncsn.model.load import load, load_data
from ncsn.model.pretrained import save_pretrained, save_safetensors
from ncsn.networks import MLP, UNet
from ncsn.noise import GeometricSchedule, KarrasSchedule, NoNoise
from ncsn.noise.streams import Streams, uniform
from ncsn.objectives import DenoisingScoreMatching, PseudoLikelihood, RatioMatching, Weighted
from ncsn.samplers import AnnealedLangevin, DPMSolver, Gibbs, Sampler
from ncsn.score import EDMDenoiser, NCSNDenoiser, ScoreModel
from ncsn.training.callbacks import EMA, Checkpoint
from ncsn.training.checkpoint_io import DurableCheckpointIO
from ncsn.training.module import ScoreModule, gradient_norm, mixed_seed
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from test_networks import shaken


def small_module(classes=0, kind=ScoreModule, **settings):
    return kind(
        NCSNDenoiser(UNet(1, width=8, multipliers=(1, 2), blocks=1, classes=classes)),
        GeometricSchedule(2.0, 0.05, 10),
        DenoisingScoreMatching(),
        AnnealedLangevin(epsilon=2e-4, steps=1),
        shape=(1, 8, 8),
        **settings,
    )


def small_trainer(folder, **settings):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "num_sanity_val_steps": 0}
    defaults = {"max_steps": 5, "accelerator": "cpu", "enable_checkpointing": False, "default_root_dir": folder}
    return Trainer(**(defaults | quiet | settings))


class Noted(ScoreModule):
    """Notes what it is trained on."""

    def losses(self, x, sigma, label=None):
        self.noted = [*getattr(self, "noted", []), (x, sigma, label, torch.rand(1))]
        return super().losses(x, sigma, label)


def test_training_lowers_the_loss(tmp_path):
    module, data = small_module(), Digits(batch_size=64)
    trainer = small_trainer(tmp_path, max_steps=60)
    data.setup()
    before = trainer.validate(module, data, verbose=False)[0]["val/loss"]
    assert before == pytest.approx(0.5, rel=0.05)  # per dimension
    trainer = small_trainer(tmp_path, max_steps=60)
    trainer.fit(module, data)
    assert trainer.validate(module, data, verbose=False)[0]["val/loss"] < 0.8 * before


class Watched(ScoreModule):
    """Notes whether a validation step leaves the random generator as it was."""

    def validation_step(self, batch, batch_idx):
        state = torch.random.get_rng_state()
        super().validation_step(batch, batch_idx)
        self.left_alone = torch.equal(state, torch.random.get_rng_state())


def test_validation_has_the_same_noise_every_time_and_leaves_the_generator_alone(tmp_path):
    module, data = small_module(kind=Watched), Digits()
    losses = [small_trainer(tmp_path).validate(module, data, verbose=False)[0]["val/loss"] for _ in range(2)]
    assert losses[0] == losses[1]
    assert module.left_alone


def test_the_noise_of_a_step_follows_from_seed_and_step(tmp_path):
    runs = []
    for draws in (0, 7):
        module = small_module(kind=Noted)
        torch.manual_seed(3)
        module.on_train_start = lambda draws=draws: torch.rand(draws)  # something else draws between the steps
        small_trainer(tmp_path, max_steps=4).fit(module, Digits(batch_size=64))
        runs.append(module.noted[:4])
    for (x, sigma, _, r), (y, tau, _, s) in zip(*runs, strict=True):
        assert torch.equal(x, y)
        assert torch.equal(sigma, tau)
        assert torch.equal(r, s)
    draws = [step[3].item() for step in runs[0]]
    assert len(set(draws)) == len(draws)


def test_an_example_of_a_step_has_its_numbers_by_seed_step_and_place(tmp_path):
    """Catches levels and dropped labels of torch's generator, which differ by device."""
    module, data = small_module(classes=10, kind=Noted, label_dropout=0.3), Digits(batch_size=64, labels=True)
    small_trainer(tmp_path, max_steps=3).fit(module, data)
    for step, (x, sigma, label, _) in enumerate(module.noted[:3]):
        with Streams(mixed_seed(module.seed, step, 0), range(64)):
            assert torch.equal(label == -1, uniform(torch.empty(64)) < 0.3)
            assert torch.equal(sigma, module.schedule.sample(x))
    module.noted = []
    small_trainer(tmp_path, limit_val_batches=1).validate(module, data, verbose=False)
    [(x, sigma, _, _)] = module.noted
    with Streams(mixed_seed(module.seed, 0, 0), range(len(x))):
        assert torch.equal(sigma, module.schedule.sample(x))


def test_mixed_seeds_differ():
    seeds = {mixed_seed(seed, step, rank) for seed in range(5) for step in range(50) for rank in range(4)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_labels_reach_the_network_and_are_dropped_as_often_as_stated(tmp_path):
    module = small_module(classes=10, kind=Noted, label_dropout=0.3)
    small_trainer(tmp_path, max_steps=20).fit(module, Digits(batch_size=128, labels=True))
    labels = torch.cat([label for _, _, label, _ in module.noted[:20]])
    assert (labels == -1).float().mean().item() == pytest.approx(0.3, abs=4 * (0.21 / 2560) ** 0.5)
    assert set(labels.tolist()) == set(range(-1, 10))


def test_the_learning_rate_warms_up(tmp_path):
    module = small_module(warmup=4, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    rates = []
    module.on_train_batch_end = lambda *_: rates.append(module.optimizers().param_groups[0]["lr"])
    small_trainer(tmp_path, max_steps=6).fit(module, Digits())
    assert rates == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    "length", [{"max_steps": 6}, {"max_steps": -1, "max_epochs": 3, "limit_train_batches": 2}], ids=str
)
def test_the_learning_rate_cools_down_at_the_end_of_the_run(tmp_path, length):
    module = small_module(warmup=1, cooldown=3, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    rates = []
    module.on_train_batch_start = lambda *_: rates.append(module.optimizers().param_groups[0]["lr"])
    small_trainer(tmp_path, **length).fit(module, Digits())
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])


def test_a_second_fit_has_a_schedule_of_its_own(tmp_path):
    module = small_module(warmup=1, cooldown=2, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    rates = []
    module.on_train_batch_start = lambda *_: rates.append(module.optimizers().param_groups[0]["lr"])
    trainer = small_trainer(tmp_path, max_steps=4)
    trainer.fit(module, Digits())
    trainer.fit_loop.epoch_loop.max_steps = 9
    trainer.fit(module, Digits())
    assert rates == pytest.approx([0.5, 1.0, 2 / 3, 1 / 3, 0.5, 1.0, 1.0, 2 / 3, 1 / 3])


class Decaying(ScoreModule):
    """A subclass with a schedule of its own for two groups of parameters."""

    def configure_optimizers(self):
        first, *others = self.parameters()
        optimizer = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": others}], lr=0.01)
        schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def test_the_schedule_of_a_subclass_is_left_alone(tmp_path):
    module, rates = small_module(kind=Decaying), []
    module.on_train_batch_start = lambda *_: rates.append([g["lr"] for g in module.optimizers().param_groups])
    small_trainer(tmp_path, max_steps=3).fit(module, Digits())
    assert rates == [pytest.approx([0.1 / n, 0.01 / n]) for n in (1, 2, 3)]


def test_a_run_of_lightning_s_own_is_resumed_at_the_end_of_an_epoch(tmp_path):
    loader = DataLoader(TensorDataset(torch.rand(40, 1, 8, 8)), batch_size=10)
    trainer = small_trainer(tmp_path, max_steps=8, plugins=[DurableCheckpointIO()])
    trainer.fit(small_module(), loader)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    resumed = small_trainer(tmp_path, max_steps=10)
    resumed.fit(small_module(), loader, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert resumed.global_step == 10


def test_few_batches_for_overfitting_are_refused_because_they_would_be_single_images(tmp_path):
    with pytest.raises(ValueError, match="overfit_batches: train on a folder of a few images instead"):
        small_trainer(tmp_path, overfit_batches=2).fit(small_module(), Digits())


@pytest.mark.parametrize(
    ("warmup", "cooldown", "expected"),
    [(100, 100, [1 / 4, 1 / 2, 3 / 4, 1, 3 / 4, 1 / 2, 1 / 4]), (12, 0, [i / 7 for i in range(1, 8)])],
)
def test_a_schedule_longer_than_the_run_is_shortened_to_it(tmp_path, warmup, cooldown, expected):
    optimizer = partial(torch.optim.SGD, lr=1.0)
    module, rates = small_module(warmup=warmup, cooldown=cooldown, optimizer=optimizer), []
    module.on_train_batch_start = lambda *_: rates.append(module.optimizers().param_groups[0]["lr"])
    with pytest.warns(UserWarning, match=rf"\({warmup}, {cooldown}\) steps are shortened to .* the 7 steps of the run"):
        small_trainer(tmp_path, max_steps=7).fit(module, Digits())
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(("accumulate", "batches"), [(2, 3), (3, 4), (20, 3)])
def test_every_step_has_the_mean_gradient_of_its_batches(tmp_path, accumulate, batches):
    module, norms = small_module(), []
    weight = next(module.parameters())
    module.losses = lambda x, *_: weight.sum().expand(len(x))  # of which the gradient is one
    module.on_before_optimizer_step = lambda _: norms.append(weight.grad.flatten()[0].item())
    limits = {"accumulate_grad_batches": accumulate, "limit_train_batches": batches}
    small_trainer(tmp_path, max_steps=4, **limits).fit(module, Digits())
    assert norms == pytest.approx([1.0] * 4)


def test_a_run_without_an_end_does_not_cool_down(tmp_path):
    module = small_module(cooldown=3, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    rates = []

    def noted(*_):
        rates.append(module.optimizers().param_groups[0]["lr"])
        module.trainer.should_stop = len(rates) == 5

    module.on_train_batch_end = noted
    small_trainer(tmp_path, max_steps=-1).fit(module, Digits())
    assert rates == [1.0] * 5


def test_another_ladder_is_between_the_ends_of_the_schedule_s_and_spaced_for_the_sampler():
    module = small_module()
    trained = module.schedule.sigmas()
    for sampler, expected in (
        (DPMSolver(), KarrasSchedule(trained[0].item(), trained[-1].item(), 30, rho=7)),
        (AnnealedLangevin("auto", 2), GeometricSchedule(trained[0].item(), trained[-1].item(), 30)),
    ):
        torch.testing.assert_close(module.model.sigmas_for(sampler, 30), expected.sigmas())


def test_the_start_is_at_the_largest_noise_level():
    start = small_module().model.start(5000)
    assert start.shape == (5000, 1, 8, 8)
    assert start.mean().item() == pytest.approx(0.5, abs=0.02)
    assert start.var().item() == pytest.approx(2.0**2 + 1 / 12, rel=0.02)


def test_a_new_learning_rate_takes_effect_on_a_resumed_run(tmp_path):
    rates = []

    def module(rate):
        module = small_module(warmup=3, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=rate))
        module.on_train_batch_end = lambda *_: rates.append(module.optimizers().param_groups[0]["lr"])
        return module

    trainer = small_trainer(tmp_path, max_steps=2)
    trainer.fit(module(1.0e-3), Digits())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    trainer = small_trainer(tmp_path, max_steps=5)
    trainer.fit(module(4.0e-3), Digits(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert rates == pytest.approx([1e-3, 1e-3, 4e-3, 4e-3, 4e-3])  # the first of two steps


@dataclass(frozen=True)
class Careless(Sampler):
    """A sampler of one's own that does nothing about graphs."""

    def __call__(self, score, x, sigmas):
        for sigma in sigmas:
            x = x + score(x, sigma)
            yield x


def test_drawing_keeps_no_graph_whatever_the_sampler():
    module = shaken(small_module()).model
    states = list(module.trajectory(module.start(2), sampler=Careless()))
    assert len(states) == 10
    assert not any(state.requires_grad for state in states)
    assert torch.is_grad_enabled()


def test_draw_yields_a_state_a_level_and_takes_another_sampler():
    module = small_module().model
    assert len(list(module.trajectory(module.start(2)))) == 10
    with pytest.raises(ValueError, match="epsilon"):
        next(module.trajectory(module.start(2), sampler=AnnealedLangevin(1.0, 1)))


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"warmup": -1}, "warmup"), ({"cooldown": -1}, "cooldown")]
    + [({"label_dropout": dropout}, "label_dropout") for dropout in (-0.1, 1.0, 1.5)],
)
def test_impossible_settings_are_refused(settings, field):
    with pytest.raises(ValueError, match=field):
        small_module(**settings)


def test_only_the_steps_that_are_logged_are_measured(tmp_path, monkeypatch):
    named = []
    monkeypatch.setattr(ScoreModule, "log", lambda self, name, *_, **__: named.append((self.global_step, name)))
    small_trainer(tmp_path, max_steps=6, log_every_n_steps=3, limit_val_batches=0).fit(small_module(), Digits())
    of_a_step = ["train/loss", "train/gradient_norm", "train/skipped_steps", "train/learning_rate"]
    assert named == [(step, name) for step in (2, 5) for name in of_a_step]


@pytest.mark.parametrize("dimensions", [{1}, {2, 4}, {1, 2, 4}])
def test_the_norm_of_the_gradients_is_of_all_together(dimensions):
    parameters = list(shaken(UNet(1, width=8)).parameters())
    assert gradient_norm(parameters) == 0
    moving = [parameter for parameter in parameters[1:] if parameter.ndim in dimensions]
    for parameter in moving:
        parameter.grad = torch.randn_like(parameter)
    expected = nn.utils.get_total_norm([parameter.grad for parameter in moving])
    torch.testing.assert_close(gradient_norm(parameters), expected)
    for number in (torch.inf, torch.nan):
        moving[3].grad.view(-1)[0] = number
        assert not gradient_norm(parameters).isfinite()


def test_the_norm_of_the_gradients_is_of_numbers_and_long_vectors_too():
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((), (3,), (4096,), (4097,), (2, 3))]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 2.0)
    numbers = sum(parameter.numel() for parameter in parameters)
    assert gradient_norm(parameters).item() == pytest.approx(2 * math.sqrt(numbers))


def test_a_sampler_that_cannot_walk_the_ladder_is_refused_before_training():
    with pytest.raises(ValueError, match=r"diverges; .* got epsilon"):
        ScoreModule(
            NCSNDenoiser(UNet(1, width=8)),
            GeometricSchedule(1, 0.01, 10),
            DenoisingScoreMatching(),
            AnnealedLangevin(epsilon=1e-3, steps=1),
            shape=(1, 8, 8),
        )


class Unkept(nn.Module):
    """A network of one's own that does not keep its argument."""

    def __init__(self, width: int):
        super().__init__()
        self.convolution = nn.Conv2d(1, width, 1)

    def forward(self, x, c_noise, label=None):
        return self.convolution(x).mean(1, keepdim=True)


def saved(module, folder, data=None, **settings):
    """A checkpoint of a module after two steps, as Lightning writes it."""
    trainer = small_trainer(folder, max_steps=2, limit_val_batches=0, **settings)
    trainer.fit(module, Digits() if data is None else data)
    trainer.save_checkpoint(folder / "live.ckpt")
    return folder / "live.ckpt"


def is_same(module, loaded):
    """Whether all weights are equal."""
    pairs = zip(module.state_dict().items(), loaded.state_dict().items(), strict=True)
    return all(name == other and torch.equal(one, two) for (name, one), (other, two) in pairs)


def test_a_module_made_in_python_is_loaded_from_its_checkpoint(tmp_path):
    module = small_module(warmup=3)
    file = saved(module, tmp_path, plugins=[DurableCheckpointIO()])
    loaded = ScoreModule.load_from_checkpoint(file, weights_only=True)
    assert loaded.warmup == 3
    assert (loaded.schedule, loaded.objective, loaded.sampler) == (module.schedule, module.objective, module.sampler)
    assert is_same(module, loaded)
    model = load(file)
    assert torch.equal(model.sample(2), module.eval().model.sample(2))
    assert type(load_data(file)) is Digits
    assert ScoreModule.load_from_checkpoint(file, sampler=DPMSolver()).sampler == DPMSolver()


def test_what_lightning_writes_of_a_module_is_loaded_with_a_warning(tmp_path):
    module = small_module()
    loader = DataLoader(TensorDataset(torch.rand(20, 1, 8, 8)), batch_size=10)
    checkpoints = ModelCheckpoint(tmp_path / "own", every_n_train_steps=1)
    trainer = small_trainer(tmp_path, max_steps=2, enable_checkpointing=True, callbacks=[checkpoints])
    trainer.fit(module, loader)
    with pytest.warns(UserWarning, match=r"\.ckpt has no checksum at its end, as Lightning wrote it; Trainer\(plugins"):
        model = load(checkpoints.best_model_path)
    assert is_same(module, model)
    assert model.trained_on is None


def test_a_part_that_does_not_describe_itself_is_told_when_training_starts_and_given_when_it_is_loaded(tmp_path):
    module = small_module()
    module.denoiser = NCSNDenoiser(Unkept(2))
    with pytest.warns(
        UserWarning, match=r"^model\.denoiser\.network: Unkept does not keep its argument width; set self"
    ):
        file = saved(module, tmp_path, plugins=[DurableCheckpointIO()])
    given = r"ncsn\.ScoreModule\.load_from_checkpoint\(FILE, denoiser=\.\.\.\)\.model$"
    for read in (load, ScoreModule.load_from_checkpoint):
        with pytest.raises(ValueError, match=f"they do not describe its denoiser; give what was trained: {given}"):
            read(file)
    loaded = ScoreModule.load_from_checkpoint(file, denoiser=NCSNDenoiser(Unkept(2)))
    assert is_same(module, loaded)
    with pytest.raises(ValueError, match="is of another network"):
        ScoreModule.load_from_checkpoint(file, denoiser=NCSNDenoiser(Unkept(3)))


class Scaled(ScoreModule):
    """A subclass with arguments of its own, of which a file can hold one."""

    def __init__(self, *parts, scale: float = 1.0, after=None, **settings):
        super().__init__(*parts, **settings)
        self.scale, self.after = scale, after


def test_a_subclass_keeps_its_own_arguments_and_its_model_is_loaded(tmp_path):
    module = small_module(kind=Scaled, scale=0.5, after=nn.Linear)
    file = saved(module, tmp_path, plugins=[DurableCheckpointIO()])
    assert is_same(module, load(file))
    loaded = Scaled.load_from_checkpoint(file)
    assert (loaded.scale, loaded.after) == (0.5, None)
    assert Scaled.load_from_checkpoint(file, scale=2.0).scale == 2.0


class Whole(ScoreModule):
    """A subclass that makes its parts, and has weights beside the denoiser's."""

    def __init__(self, width: int = 8):
        super().__init__(
            NCSNDenoiser(UNet(1, width=width, multipliers=(1,), blocks=1)),
            GeometricSchedule(2.0, 0.05, 10),
            DenoisingScoreMatching(),
            DPMSolver(),
            shape=(1, 8, 8),
        )
        self.head = nn.Linear(width, 1)
        self.save_hyperparameters()


def test_a_subclass_may_make_its_parts_and_have_further_weights(tmp_path):
    module = Whole(width=12)
    file = saved(module, tmp_path, plugins=[DurableCheckpointIO()])
    assert is_same(module, Whole.load_from_checkpoint(file))
    assert is_same(module.denoiser, load(file).denoiser)


@pytest.mark.parametrize("batch", [lambda x, y: x, lambda x, y: (x,), lambda x, y: [x, y], lambda x, y: (x, None)])
def test_batches_of_a_loader_of_ones_own_train_a_model_without_labels(tmp_path, batch):
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    module, warned = small_module(kind=Noted), "the batches have labels, which the model does not take"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        small_trainer(tmp_path, max_steps=1).fit(module, DataLoader([batch(x, y)], batch_size=None))
    assert torch.equal(module.noted[0][0], x)
    assert module.noted[0][2] is None
    assert (warned in {str(each.message) for each in told}) == isinstance(batch(x, y), list)


def test_labels_of_a_loader_of_ones_own_reach_a_network_that_takes_them(tmp_path):
    batch = torch.rand(4, 1, 8, 8), torch.arange(4)
    unsaid = small_module(kind=Noted, label_dropout=0.0)
    unsaid.denoiser = NCSNDenoiser(Unkept(2))  # which has no attribute `classes`
    for module in (small_module(classes=5, kind=Noted, label_dropout=0.0), unsaid):
        small_trainer(tmp_path, max_steps=1).fit(module, DataLoader([batch], batch_size=None))
        assert torch.equal(module.noted[0][2], batch[1])


@pytest.mark.parametrize(
    ("shape", "dtype"), [((4, 3, 8, 8), torch.float), ((4, 8, 8), torch.float), ((4, 1, 8, 8), torch.uint8)]
)
def test_batches_of_another_shape_or_of_bytes_are_refused(shape, dtype):
    x = torch.zeros(shape, dtype=dtype)
    with pytest.raises(ValueError, match=r"^expected batches of floats \(B, 1, 8, 8\), got torch\.\w+ of shape \(4, "):
        small_module().training_step((x,), 0)


def test_a_new_run_starts_from_the_weights_of_a_file_as_far_as_they_fit(tmp_path, capsys):
    old = shaken(small_module(classes=3))
    save_safetensors(old.model, tmp_path / "a.safetensors")
    save_pretrained(old.model, tmp_path / "folder")
    for file in ("a.safetensors", "folder"):
        assert is_same(small_module(classes=3, weights=tmp_path / file), old)
        count = len(old.state_dict())
        assert capsys.readouterr().err == f"Starting from {count} of {count} weights in {tmp_path / file}\n"
    new, fresh = small_module(classes=5, weights=tmp_path / "a.safetensors"), small_module(classes=5)
    name = "denoiser.network.conditioning.label.weight"
    line = (
        rf"Starting from {count - 1} of {count} weights in \S+; not taken: '{name}' is \(4, 32\), here it is \(6, 32\)"
    )
    assert re.fullmatch(line, capsys.readouterr().err.strip())
    for key, weight in new.state_dict().items():
        assert weight.shape == fresh.state_dict()[key].shape
        assert key == name or torch.equal(weight, old.state_dict()[key])
    other = EDMDenoiser(MLP(3)), KarrasSchedule(5, 0.1, 10), DenoisingScoreMatching(), DPMSolver()
    with pytest.raises(
        ValueError, match=r"^model\.weights: \S+ is of another network, \d of \d+ weights fit: 'denoiser"
    ):
        ScoreModule(*other, (3,), weights=tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"^model\.weights: there is no file gone\.ckpt$"):
        ScoreModule(*other, (3,), weights="gone.ckpt")


class Ising(ScoreModel):
    """A density of one's own, of binary pictures: its pixels and their neighbours, down and to the right."""

    def __init__(self):
        super().__init__()
        self.alone = nn.Parameter(torch.zeros(8, 8))
        self.down, self.right = nn.Parameter(torch.zeros(7, 8)), nn.Parameter(torch.zeros(8, 7))

    def log_prob(self, x, sigma):
        pairs = (self.down * x[..., 1:, :] * x[..., :-1, :]).flatten(1).sum(1)
        pairs = pairs + (self.right * x[..., 1:] * x[..., :-1]).flatten(1).sum(1)
        return pairs + (self.alone * x).flatten(1).sum(1)

    def score(self, x, sigma, label=None):
        raise NotImplementedError("zeros and ones have no score")


@pytest.mark.parametrize(
    ("objective", "schedule"),
    [
        (RatioMatching(), NoNoise()),
        (PseudoLikelihood(), NoNoise()),
        (Weighted(RatioMatching(), power=1.0), GeometricSchedule(0.5, 0.5, 1)),
    ],
)
def test_a_log_probability_of_ones_own_trains_and_draws(objective, schedule, tmp_path):
    module = ScoreModule(Ising(), schedule, objective, Gibbs(2), (1, 8, 8), partial(torch.optim.Adam, lr=0.05))
    data, trainer = BinaryDigits(batch_size=128), small_trainer(tmp_path, max_steps=30)
    data.setup()
    before = trainer.validate(module, data, verbose=False)[0]["val/loss"]
    # A fresh one knows nothing: each bit costs (1/2)^2, or log 2.
    fresh = math.log(2) if isinstance(objective, PseudoLikelihood) else 1 / 4
    assert before == pytest.approx(fresh * (0.5 if isinstance(objective, Weighted) else 1), rel=1e-5)
    trainer.fit(module, data)
    assert trainer.validate(module, data, verbose=False)[0]["val/loss"] < 0.6 * before
    # Some pixels are nearly always black, and some nearly always white.
    drawn = module.model.sample(200)
    assert drawn.unique().tolist() == [0, 1]
    mean = data.splits["train"].values.float().mean(0) / 255
    assert (drawn.mean(0) - mean).abs().mean() < 0.1


@pytest.mark.parametrize(("device", "stage", "count"), [("cuda", "fit", 1), ("cuda", "validate", 0), ("cpu", "fit", 0)])
def test_the_layout_is_that_of_the_device_before_the_run_begins(device, stage, count, monkeypatch):
    """Catches a layout that changes after the strategy has made its views of the gradients."""
    module, asked = small_module(), []
    monkeypatch.setattr("ncsn.training.module.use_layout_of", lambda *on: asked.append(on))
    module._trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    module.setup(stage)
    assert asked == [(torch.device(device), module)] * count


def test_a_run_is_resumed_in_another_layout_and_its_files_are_contiguous(tmp_path):
    """Catches a fused optimiser whose state lies in another layout than its weights, which it does not notice."""

    def run(layout, name, steps, ckpt_path=None):
        torch.manual_seed(5)
        module = small_module(optimizer=partial(torch.optim.Adam, fused=True)).to(memory_format=layout)
        settings = {"callbacks": [EMA(), Checkpoint(tmp_path / name)], "plugins": [DurableCheckpointIO()]}
        trainer = small_trainer(tmp_path, max_steps=steps, enable_checkpointing=True, **settings)
        trainer.fit(module, Digits(batch_size=64), ckpt_path=ckpt_path, weights_only=True)
        weight = module.denoiser.network.resolutions.down.weight
        assert (weight.stride(1) == 1) == (layout == torch.channels_last)
        content = checkpoint_file.read(tmp_path / name / f"step={steps}.ckpt")
        momenta = [state["exp_avg"] for state in content["optimizer_states"][0]["state"].values()]
        return [*content["state_dict"].values(), *content["current_model_state"].values(), *momenta]

    begun = run(torch.contiguous_format, "begun", 3)
    path = tmp_path / "begun" / "step=3.ckpt"
    one, other = (run(layout, str(layout), 6, path) for layout in (torch.contiguous_format, torch.channels_last))
    assert all(tensor.is_contiguous() for tensor in other)
    for end, found, start in zip(one, other, begun, strict=True):
        torch.testing.assert_close(found, end, rtol=0, atol=0.02 * (end - start).abs().max().item())
