"""What every sampler promises, whatever its method; and the streams of numbers that a seed stands for."""

import gc
import math
import weakref
from dataclasses import dataclass
from types import SimpleNamespace

import ncsn.samplers
import pytest
import torch
from ncsn.model.model import Model
from ncsn.networks import MLP
from ncsn.noise import GeometricSchedule
from ncsn.noise.streams import Streams, normal, uniform
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
    Sampler,
    SASolver,
)
from ncsn.score import EDMDenoiser, NCSNDenoiser
from torch import nn

from conftest import DEVICES, named


def score(x, sigma):
    """The score of N(0.3, 0.7^2), which is exact, and goes number by number."""
    return (0.3 - x) / (0.49 + sigma**2)


def log_prob(x, sigma):
    return -((x - 0.3) ** 2).flatten(1).sum(1) / (2 * (0.49 + sigma**2))


def given(sampler):
    return log_prob if isinstance(sampler, Gibbs) else score


QUIET = [Euler(), Heun(), DPMSolver(), SASolver()]
NOISY = [
    Heun(churn=8.0, churn_min=0.2, churn_max=1.0, inflation=1.01),
    DPMSolver(eta=1.5),
    SASolver(eta=1.5),
    EulerMaruyama(),
    Ancestral(),
    PredictorCorrector(),
    PredictorCorrector(snr=0.1, corrector_steps=2),
    AnnealedLangevin(1e-3, 2),
    AnnealedLangevin("auto", 1, denoise=False),
    ConsistentAnnealed(8e-3),
    Langevin(0.05, 2),
    MetropolisAdjustedLangevin(0.3, 2, log_prob),
    Gibbs(1),
]
LADDER = GeometricSchedule(2.0, 0.1, 6).sigmas()

every = pytest.mark.parametrize("sampler", QUIET + NOISY, ids=named)
noisy = pytest.mark.parametrize("sampler", NOISY, ids=named)


def walk(sampler, x, sigmas=LADDER):
    return sampler(given(sampler), x, sigmas)


def drawn(sampler, x, indices, seed=0):
    """All the states (L, B, ...) of a walk from `x` in the streams of `indices`."""
    with Streams(seed, indices, x.device):
        return torch.stack(list(walk(sampler, x)))


def test_no_sampler_is_left_out():
    kinds = {getattr(ncsn.samplers, name) for name in ncsn.samplers.__all__} - {Sampler}
    assert {type(sampler) for sampler in QUIET + NOISY} == kinds


@every
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ladder", [torch.float32, torch.float64])
def test_a_state_a_level_like_the_start_and_the_score_is_asked_like_it(sampler, device, dtype, ladder):
    start = torch.randn(5, 2, 3, dtype=dtype, device=device)
    seen = set()

    def asked(x, sigma):
        seen.add((x.shape, x.dtype, x.device, sigma.shape, sigma.dtype, sigma.device))
        return given(sampler)(x, sigma)

    states = list(sampler(asked, start, LADDER.to(ladder)))
    assert len(states) == len(LADDER)
    assert {(x.shape, x.dtype, x.device) for x in states} == {(start.shape, dtype, start.device)}
    assert all(x.isfinite().all() for x in states)
    assert seen == {(start.shape, dtype, start.device, torch.Size(), dtype, start.device)}


@every
def test_one_level_is_a_ladder(sampler):
    if getattr(sampler, "epsilon", None) == "auto":
        with pytest.raises(ValueError, match="expected two noise levels"):
            sampler.check(LADDER[-1:])
        return
    states = list(walk(sampler, torch.randn(5, 2, 3), LADDER[-1:]))
    assert len(states) == 1
    assert states[0].isfinite().all()


@every
def test_the_precision_of_the_ladder_is_no_more_than_that_of_its_numbers(sampler):
    start = torch.randn(5, 2, 3)
    walks = []
    for ladder in (LADDER, LADDER.double()):
        torch.manual_seed(0)
        walks.append(torch.stack(list(walk(sampler, start, ladder))))
    torch.testing.assert_close(*walks)


@every
def test_no_graph_is_kept_and_gradients_are_as_they_were(sampler):
    weight = nn.Parameter(torch.tensor(1.0))
    start = torch.randn(5, 2, 3, requires_grad=True)
    for x in sampler(lambda x, sigma: weight * given(sampler)(x, sigma), start, LADDER):
        assert not x.requires_grad
        assert torch.is_grad_enabled()


@every
def test_states_share_no_memory_and_are_never_written_to_again(sampler):
    start = torch.rand(5, 2, 3).round()  # which is a state of Gibbs's, too
    states, copies = [start], [start.clone()]
    for x in walk(sampler, start):
        states.append(x)
        copies.append(x.clone())
    assert len({x.untyped_storage().data_ptr() for x in states}) == len(LADDER) + 1
    assert all(torch.equal(x, copy) for x, copy in zip(states, copies, strict=True))


@pytest.fixture
def only_new():
    """The garbage collector sees only what is made from now on, and so is quick."""
    gc.freeze()
    yield
    gc.unfreeze()


@every
def test_a_walk_holds_no_more_the_longer_it_is(sampler, only_new):
    yielded, alive, start = [], [], torch.randn(5, 2, 3)
    for x in walk(sampler, start, GeometricSchedule(2.0, 0.1, 200).sigmas()):
        yielded.append(weakref.ref(x))
        if len(yielded) in (20, 199):
            gc.collect()
            alive.append(sum(type(held) is torch.Tensor for held in gc.get_objects()))
    assert sum(state() is not None for state in yielded) <= 3
    assert alive[1] <= alive[0] + 3


@every
def test_a_seed_gives_the_same_walk_and_leaves_the_global_generator_alone(sampler):
    start = torch.randn(7, 2, 3)
    before = torch.get_rng_state()
    one = drawn(sampler, start, range(7))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(one, drawn(sampler, start, range(7)))


@noisy
def test_another_seed_and_another_index_give_another_walk(sampler):
    start = torch.rand(1, 2, 3).round().expand(7, 2, 3)
    x = drawn(sampler, start, range(7))
    others = torch.cat([x[:, 1:], drawn(sampler, start, range(7), seed=1)], dim=1)
    assert not any(torch.equal(x[:, 0], other) for other in others.unbind(1))


@pytest.mark.parametrize("sampler", QUIET, ids=named)
def test_the_flow_has_no_noise(sampler):
    start = torch.randn(7, 2, 3)
    assert torch.equal(drawn(sampler, start, range(7)), drawn(sampler, start, range(7), seed=1))


@every
def test_a_sample_is_the_same_whatever_its_batch_and_its_place_there(sampler):
    start = torch.randn(7, 2, 3)
    whole = drawn(sampler, start, range(7))
    parts = drawn(sampler, start[:3], range(3)), drawn(sampler, start[3:], range(3, 7))
    assert torch.equal(whole, torch.cat(parts, dim=1))
    places = torch.tensor([4, 0, 6, 2, 5, 1, 3])
    assert torch.equal(whole[:, places], drawn(sampler, start[places], places.tolist()))


@every
def test_without_streams_the_noise_is_of_torch(sampler):
    start, walks = torch.randn(5, 2, 3), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        walks.append(torch.stack(list(walk(sampler, start))))
    assert torch.equal(walks[0], walks[1])
    assert torch.equal(walks[0], walks[2]) == (sampler in QUIET)


# The streams.


def numbers(seed, indices, count=4, dtype=torch.float32):
    with Streams(seed, indices):
        return normal(torch.empty(len(indices), count, dtype=dtype))


def test_the_stream_of_a_sample_is_of_its_seed_and_index_alone():
    first = numbers(3, range(50))
    assert torch.equal(first[[7, 2]], numbers(3, [7, 2]))
    assert torch.equal(first[20:30], numbers(3, range(20, 30)))
    every = torch.cat([first, numbers(4, range(50)), numbers(2**32 + 3, range(50))])
    assert len(every.unique(dim=0)) == 150


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbouring_streams_are_independent_and_normal(dtype):
    z = numbers(0, range(2000), 20, dtype)
    assert z.dtype == dtype
    n = z.numel()
    assert abs(z.mean().item()) < 4 / n**0.5
    assert z.var().item() == pytest.approx(1, abs=4 * (2 / n) ** 0.5)
    assert abs((z[1:] * z[:-1]).mean().item()) < 4 / n**0.5
    assert abs((z[:, 1:] * z[:, :-1]).mean().item()) < 4 / n**0.5


def test_uniform_numbers_fill_the_unit_interval():
    with Streams(0, range(2000)):
        u = uniform(torch.empty(2000, 10))
    assert u.min() >= 0
    assert u.max() < 1
    assert u.mean().item() == pytest.approx(0.5, abs=4 / (12 * u.numel()) ** 0.5)
    assert u.var().item() == pytest.approx(1 / 12, rel=0.03)


@pytest.mark.parametrize("draw", [normal, uniform])
def test_a_wrong_number_of_samples_is_refused_in_one_line(draw):
    with Streams(0, range(3)), pytest.raises(ValueError, match="streams=3, samples=2"):
        draw(torch.empty(2, 4))


def test_streams_go_on_where_they_were_within_and_after_one_another():
    x, alone = torch.empty(2, 4), Streams(0, range(2))
    with alone:
        expected = [normal(x) for _ in range(4)]
    one, other = Streams(0, range(2)), Streams(1, range(2))
    with one:
        seen = [normal(x)]
        with other:
            assert torch.equal(normal(x), numbers(1, range(2)))
        seen.append(normal(x))
        with one:
            seen.append(normal(x))
    with one:
        seen.append(normal(x))
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_streams_and_their_numbers_are_gone_as_soon_as_they_are_let_go():
    streams = Streams(0, range(2))
    gc.disable()
    try:
        with streams:
            z = normal(torch.empty(2, 4))
        left = [weakref.ref(z), weakref.ref(streams), weakref.ref(streams.index)]
        del z, streams
        assert not any(one() for one in left)
    finally:
        gc.enable()


def test_outside_of_streams_numbers_are_those_of_torch():
    x = torch.empty(3, 4)
    with pytest.raises(KeyError), Streams(0, range(2)):
        raise KeyError
    for draw, truth in ((normal, torch.randn_like), (uniform, torch.rand_like)):
        torch.manual_seed(5)
        z = draw(x)
        torch.manual_seed(5)
        assert torch.equal(z, truth(x))


# The walks of a model.


class Elementwise(nn.Module):
    """A network of which each number is the same bit for bit in any batch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, c_noise, label=None):
        return -self.weight * x / (1 + x**2)


def module(network, sampler=EulerMaruyama(), kind=NCSNDenoiser, shape=(2,)):  # noqa: B008 (it is frozen)
    return Model(kind(network), GeometricSchedule(2.0, 0.1, 6), sampler, shape)


@dataclass(frozen=True)
class Shown(Sampler):
    """A sampler that goes through the given states, tensors of a kind; or that stays where it is."""

    states: tuple[float, ...] = ()
    kind: type = torch.Tensor

    def __call__(self, score, x, sigmas):
        yield from [torch.tensor([state]).as_subclass(self.kind) for state in self.states] or [x] * len(sigmas)


MODELS = {
    "perceptron": lambda: module(MLP(2, width=8, depth=2), kind=EDMDenoiser),
    "exact": lambda: module(Elementwise()),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_sample_of_a_model_is_the_same_whatever_is_drawn_beside_it(name):
    model = MODELS[name]()
    whole = torch.stack(list(model.trajectories(range(9), seed=3)))
    for indices in ([8], [5, 2], range(4, 8)):
        part = torch.stack(list(model.trajectories(indices, seed=3)))
        expected = whole[:, list(indices)]
        if name == "exact":
            assert torch.equal(part, expected)
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.sample(5, seed=3), whole[-1, :5], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.sample(9, seed=4), whole[-1])


def test_a_walk_neither_takes_numbers_of_others_nor_gives_them_any():
    model = module(Elementwise())
    undisturbed = list(model.trajectories(range(4)))
    torch.manual_seed(6)
    before = torch.get_rng_state()
    walk, other = model.trajectories(range(4)), model.trajectories(range(4), seed=1)
    for expected in undisturbed:
        assert torch.equal(next(walk), expected)
        assert torch.equal(torch.get_rng_state(), before)
        next(other)
    for _ in model.trajectories(range(4)):
        z = normal(torch.empty(3, 2))  # of three, not of the four streams of the walk
    torch.set_rng_state(before)
    assert torch.equal(z, [torch.randn(3, 2) for _ in undisturbed][-1])


def test_a_walk_that_is_left_or_fails_leaves_no_streams_behind():
    left = module(Elementwise()).trajectories(range(4))
    next(left)
    assert normal(torch.empty(3, 2)).shape == (3, 2)
    walk = module(Elementwise(), Langevin(0.1, 2)).trajectories(range(4), guide=lambda score: lambda x, sigma: 1e15 * x)
    with pytest.raises(FloatingPointError, match=r"^Langevin diverged at noise level 1\.099; lower epsilon$"):
        list(walk)
    assert normal(torch.empty(3, 2)).shape == (3, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_walk_goes_on_while_its_states_are_finite(dtype):
    model = module(Elementwise(), Shown())
    large = torch.full((1, 100), 1000.0, dtype=dtype)  # a sum of 100,000 is beyond what float16 holds
    assert [x is large for x in model.trajectory(large)] == [True] * 6
    for broken in (math.nan, math.inf, -math.inf):
        for others in (0.0, math.inf):
            x = torch.tensor([[broken, others]], dtype=dtype)
            with pytest.raises(FloatingPointError, match=r"^Shown diverged at noise level 2; take more steps$"):
                next(model.trajectory(x))


class Elsewhere(torch.Tensor):
    """A tensor that says that it is on another device."""

    device = property(lambda _: SimpleNamespace(type="elsewhere"))


@pytest.mark.parametrize(("kind", "seen"), [(torch.Tensor, 1), (Elsewhere, 5)])
def test_the_first_level_whose_state_is_not_finite_is_named_at_once_or_at_the_end(kind, seen):
    sampler = Shown((0.0, math.inf, 0.0, math.nan, 0.0, 0.0), kind)
    walk = module(Elementwise(), sampler).trajectory(torch.zeros(1))
    for _ in range(seen):
        next(walk)
    with pytest.raises(FloatingPointError, match=r"^Shown diverged at noise level 1\.099; take more steps$"):
        next(walk)


@pytest.mark.parametrize("sampler", [DPMSolver(), SASolver(eta=1.0)], ids=named)
@pytest.mark.parametrize("levels", [(2.0, 2.0, 1.0), (2.0, 1.0, 1.5)])
def test_a_ladder_that_does_not_fall_is_refused_where_it_is_divided_by_its_steps(sampler, levels):
    with pytest.raises(ValueError, match=r"^expected decreasing noise levels .take fewer"):
        sampler.check(torch.tensor(levels))


@pytest.mark.parametrize("sampler", [DPMSolver(eta=1.0), SASolver()], ids=named)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_solver_takes_a_score_of_another_dtype_than_its_state(sampler, dtype):
    x = torch.linspace(-1, 1, 6).view(3, 2)
    ladder = torch.tensor([1.0, 0.5, 0.1])
    with Streams(0, range(3)):
        expected = list(sampler(score, x, ladder))
    with Streams(0, range(3)):
        found = list(sampler(lambda x, sigma: score(x, sigma).to(dtype), x, ladder))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("sampler", [*QUIET, *NOISY], ids=named)
def test_a_ladder_that_ends_at_0_is_for_those_that_stay_at_a_level(sampler):
    ladder = torch.zeros(1)
    if isinstance(sampler, Langevin | Gibbs):
        sampler.check(ladder)
        return
    with pytest.raises(ValueError, match=f"lowest noise level above 0 .* got sigma=0.0 .{type(sampler).__name__}"):
        sampler.check(ladder)
