"""Random numbers by counters: Philox, and what is made of its words."""

import math
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ncsn.noise import GeometricSchedule, LogNormalSchedule, streams
from ncsn.noise.distributions import one_kernel
from ncsn.noise.gaussian import noisy
from ncsn.noise.philox import philox
from ncsn.noise.streams import Streams, exponential, integers, mixed_seed, normal, uniform
from ncsn.objectives import LaplaceNoise
from ncsn.objectives.directions import PROJECTIONS

from test_likelihood import NoFloat64

WORD = 2**32 - 1
DRAWS = [normal, uniform, exponential, lambda x: integers(x, 1000)]
NAMES = ["normal", "uniform", "exponential", "integers"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

every = pytest.mark.parametrize("draw", DRAWS, ids=NAMES)


def reference(counter, key):
    """Philox 4x32-10 as the paper has it, of Python's integers."""
    (x0, x1, x2, x3), (k0, k1) = counter, key
    for _ in range(10):
        p, q = 0xD2511F53 * x0, 0xCD9E8D57 * x2
        x0, x1, x2, x3 = q >> 32 ^ x1 ^ k0, q & WORD, p >> 32 ^ x3 ^ k1, p & WORD
        k0, k1 = k0 + 0x9E3779B9 & WORD, k1 + 0xBB67AE85 & WORD
    return [x0, x1, x2, x3]


# Those of Random123, the paper's library.
KNOWN = [
    ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([WORD] * 4, (WORD, WORD), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_known_answers(counter, key, words):
    assert torch.stack(philox(torch.tensor(counter), key)).tolist() == words
    assert reference(counter, key) == words


word = st.integers(0, WORD)


@settings(max_examples=25)
@given(st.lists(st.lists(word, min_size=4, max_size=4), min_size=1, max_size=6), st.tuples(word, word))
def test_philox_of_many_counters_is_that_of_each(counters, key):
    found = torch.stack(philox(torch.tensor(counters).T.reshape(4, 1, -1), key))
    assert found.reshape(4, -1).T.tolist() == [reference(counter, key) for counter in counters]


def test_the_words_of_a_stream_are_of_seed_index_draw_and_place():
    seed = mixed_seed(5)
    assert seed == mixed_seed(np.int64(5)) == mixed_seed(torch.tensor(5)) != mixed_seed(5, 0)
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        mixed_seed(5.0)
    samples = Streams(5, [3, 2**33 + 7])
    samples.words(torch.empty(2, 1))
    found = samples.words(torch.empty(2, 9))
    assert found.shape == (4, 2, 3)
    for place in range(3):
        for at, index in enumerate(([3, 0], [7, 2])):
            expected = reference([place, 4, *index], (seed & WORD, seed >> 32))
            assert found[:, at, place].tolist() == expected


@every
def test_a_sample_has_its_numbers_in_any_batch_order_and_place(draw):
    def three(indices):
        with Streams(3, indices):
            return torch.stack([draw(torch.empty(len(indices), 2, 3)) for _ in range(3)])

    whole = three(range(40))
    for part in (range(5, 20), [7], [33, 2, 39, 0], range(39, -1, -1)):
        assert torch.equal(three(part), whole[:, list(part)])


@every
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_are_like_the_tensor_that_they_are_for(draw, dtype):
    x = torch.empty(3, 2, 5, dtype=dtype, requires_grad=True)
    with Streams(0, range(3)):
        for like in (x, x[:, 0, 0], x[:, :0], x[..., :1]):
            found = draw(like)
            assert found.shape == like.shape
            assert found.dtype == (torch.int64 if draw is DRAWS[-1] else dtype)
            assert not found.requires_grad
    with Streams(0, []):
        assert draw(x[:0]).shape == (0, 2, 5)


@every
def test_numbers_never_repeat_in_samples_draws_or_seeds(draw):
    seen = []
    for seed in (0, 1, 2**32):
        with Streams(seed, [0, 1, 2**32, 2**32 + 1]):
            seen += [row for _ in range(50) for row in draw(torch.empty(4, 8)).tolist()]
    assert len({tuple(row) for row in seen}) == 600
    first = torch.cat([torch.tensor(seen)[:, :4], torch.tensor(seen)[:, 4:]])
    assert len(first.unique(dim=0)) == 1200


@every
def test_the_numbers_of_a_sample_are_the_same_in_any_precision(draw):
    rows = []
    for dtype in DTYPES:
        with Streams(0, range(64)):
            rows.append(torch.stack([draw(torch.empty(64, 7, dtype=dtype)).double() for _ in range(2)]))
    for row, eps in zip(rows, (2**-9, 2**-6, 2**-22, 0), strict=True):
        torch.testing.assert_close(row, rows[-1], rtol=eps, atol=eps)


def kolmogorov(values, cdf):
    """sqrt(n) times the largest distance of the empirical distribution from the true one."""
    n = len(values)
    at, steps = cdf(values.sort().values), torch.arange(n + 1, dtype=torch.float64) / n
    return max((at - steps[:-1]).max(), (steps[1:] - at).max()).item() * math.sqrt(n)


CDFS = {
    "normal": torch.special.ndtr,
    "uniform": lambda u: u,
    "exponential": lambda t: -torch.expm1(-t),
}


@pytest.mark.parametrize(("draw", "name"), list(zip(DRAWS, CDFS, strict=False)))
def test_a_million_numbers_have_their_distribution(draw, name):
    with Streams(0, range(1000)):
        values = draw(torch.empty(1000, 1000, dtype=torch.float64)).flatten()
    assert kolmogorov(values, CDFS[name]) < 1.63  # once in a hundred, of true numbers
    assert kolmogorov(values + 0.003, CDFS[name]) > 1.63


def test_normal_numbers_have_the_moments_of_a_normal():
    with Streams(1, range(1000)):
        z = normal(torch.empty(1000, 1000, dtype=torch.float64))
    n = z.numel()
    assert abs(z.mean().item()) < 4 / n**0.5
    assert abs(z.var().item() - 1) < 4 * (2 / n) ** 0.5
    assert abs((z**3).mean().item()) < 4 * (15 / n) ** 0.5
    assert abs((z**4).mean().item() - 3) < 4 * (96 / n) ** 0.5
    assert z.abs().max() > 4.5


def test_samples_draws_and_elements_are_independent():
    with Streams(2, range(500)):
        z = torch.stack([normal(torch.empty(500, 48, dtype=torch.float64)) for _ in range(20)])
    for pair in (z, z.square().sub(1) / 2**0.5):  # the radius of a pair is common to both
        for dimension in range(3):
            for step in (1, 2, 3, 12, 16, 24):  # 12 and 24: the words of a block of a sample
                shifted = (pair * pair.roll(step, dimension)).mean().item()
                assert abs(shifted) < 4.5 / z.numel() ** 0.5


def test_uniform_numbers_are_below_one_and_use_every_bit():
    top = torch.full((4, 1, 2), WORD)
    for dtype, bits in zip(DTYPES, (11, 8, 24, 53), strict=True):
        same = Streams(0, [0])
        same.words = lambda x, lower=False: top
        assert same.uniform(torch.empty(1, 8, dtype=dtype)).eq(1 - 2.0**-bits).all()
        same.words = lambda x, lower=False: 0 * top
        assert same.uniform(torch.empty(1, 8, dtype=dtype)).eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_extreme_words_give_finite_numbers(dtype, monkeypatch):
    monkeypatch.setattr(streams, "finest_dtype", lambda device: dtype)
    for words in torch.cartesian_prod(*[torch.tensor([0, 1, WORD - 1, WORD])] * 4):
        same = Streams(0, [0])
        same.words = lambda x, words=words: words.view(4, 1, 1)
        z = same.normal(torch.empty(1, 4))
        assert z.isfinite().all()
        assert z.abs().max() < 6.8
        assert same.exponential(torch.empty(1, 4)).isfinite().all()


def test_a_device_without_float64_has_the_same_normal_numbers_up_to_rounding(monkeypatch):
    with Streams(0, range(50)):
        expected = normal(torch.empty(50, 100))
    monkeypatch.setattr(streams, "finest_dtype", lambda device: torch.float32)
    with Streams(0, range(50)), NoFloat64():
        torch.testing.assert_close(normal(torch.empty(50, 100)), expected, rtol=0, atol=3e-3)


def test_integers_are_equally_likely():
    with Streams(0, range(1000)):
        counts = integers(torch.empty(1000, 70), 7).flatten().bincount()
    assert len(counts) == 7
    assert (counts - 10_000).abs().max() < 4 * 10_000**0.5


TRAINING = {
    "noise": lambda x: noisy(x, torch.tensor(0.5)),
    "Laplace's noise": lambda x: LaplaceNoise().draw(x),
    "levels": GeometricSchedule(5, 0.01, 1000).sample,
    "EDM's levels": LogNormalSchedule().sample,
    **PROJECTIONS,
}


@pytest.mark.parametrize("name", TRAINING)
def test_what_training_draws_for_an_example_is_of_its_stream(name):
    x, draw = torch.rand(9, 1, 3, 4), TRAINING[name]
    with Streams(0, range(9)):
        whole = draw(x)
    torch.rand(1)
    before = torch.get_rng_state()
    with Streams(0, range(2, 7)):
        torch.testing.assert_close(draw(x[2:7]), whole[2:7], rtol=1e-6, atol=0)
    with Streams(1, range(9)):
        assert not torch.equal(draw(x), whole)
    assert torch.equal(torch.get_rng_state(), before)


# On a GPU the numbers of a draw come from one kernel, which torch compiles.


# Operations on each number alone, and their inputs; an `item` would be a number from the device.
ALONE = {"add", "and_", "cos", "floordiv", "log", "lt", "mod", "mul", "neg", "rshift", "lshift", "or_", "sin", "sqrt"}
ALONE |= {"to", "where", "xor", "arange", "getitem", "unbind"}


def compiled(monkeypatch, backend):
    """Make the numbers as a GPU does, by another compiler."""
    monkeypatch.setattr(streams, "one_kernel", partial(one_kernel, backend))
    monkeypatch.setattr(streams, "is_compiled_on", lambda device: True)
    monkeypatch.setattr(Streams, "compiles", True)


def some_draws(draw, dtype=torch.float32):
    """Draws from three seeds, of two batches that have another shape, under autocast and in inference mode."""
    found = []
    for seed in range(3):
        for count, shape in ((5, (1, 7, 3)), (9, (2, 2, 2))):
            with Streams(seed, range(2**40, 2**40 + count)):
                x = torch.empty(count, *shape, dtype=dtype)
                found += [draw(x), draw(x)]
                with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
                    found.append(draw(x.to(memory_format=torch.channels_last)))
            with torch.inference_mode(), Streams(seed, range(count)):  # as validation and sample grids
                found.append(draw(torch.empty(count, *shape, dtype=dtype)))
    return found


@every
def test_a_draw_on_a_gpu_is_one_graph_which_is_compiled_once_for_all_draws_seeds_and_shapes(monkeypatch, draw):
    expected, graphs, calls = some_draws(draw), [], []

    def counting(graph, inputs):
        graphs.append(graph)
        return lambda *inputs: calls.append(graph) or graph(*inputs)

    compiled(monkeypatch, counting)
    found = some_draws(draw)
    assert len(graphs) == 1
    assert len(calls) == len(found) == 24
    assert Streams.compiles
    # The kernel takes one array, and numbers; each of its own is computed from these alone.
    nodes = [(node, node.meta.get("example_value")) for node in graphs[0].graph.nodes]
    inputs = [value for node, value in nodes if node.op == "placeholder" and isinstance(value, torch.Tensor)]
    assert sorted(value.ndim for value in inputs) == [0] * (2 if draw is DRAWS[-1] else 1) + [3]
    assert {value.dtype for value in inputs} == {torch.int64}
    names = {getattr(node.target, "__name__", node.target) for node, _ in nodes if node.op.startswith("call")}
    assert names <= ALONE
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("draw", DRAWS[:2], ids=NAMES[:2])
def test_what_the_compiler_makes_of_a_draw_has_its_numbers(monkeypatch, draw):
    expected = some_draws(draw, torch.float64)
    compiled(monkeypatch, "inductor")
    found = some_draws(draw, torch.float64)
    assert Streams.compiles
    exact = draw in (DRAWS[1], DRAWS[3])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0 if exact else 2.0**-50, atol=0 if exact else 2.0**-50)


def test_without_a_compiler_a_draw_has_its_numbers_and_a_warning_says_so_once(monkeypatch):
    expected = some_draws(normal)

    def failing(graph, inputs):
        raise OSError("no compiler\nand more")

    compiled(monkeypatch, failing)
    with pytest.warns(
        UserWarning, match="noise takes longer, as torch.compile failed: .*OSError: no compiler and more"
    ) as caught:
        found = some_draws(normal)
    assert len(caught) == 1
    assert not Streams.compiles
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_a_lack_of_memory_is_no_failure_of_the_compiler(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(streams, "one_kernel", lambda: full)
    monkeypatch.setattr(streams, "is_compiled_on", lambda device: True)
    with pytest.raises(torch.OutOfMemoryError), Streams(0, range(2)):
        normal(torch.empty(2, 3))
    assert Streams.compiles


def test_numbers_are_compiled_on_cuda_alone():
    devices = ["cpu", "mps", "meta", "cuda", "cuda:1"]
    assert [streams.is_compiled_on(torch.device(name)) for name in devices] == [False, False, False, True, True]


@pytest.mark.gpu
@every
def test_a_draw_on_a_gpu_is_one_kernel(draw):
    x = torch.empty(64, 3, 8, 8, device="cuda")
    with Streams(0, range(64), "cuda"):
        draw(x)  # compiles
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            draw(x)
            torch.cuda.synchronize()
    kernels = [event.name for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert Streams.compiles
    assert len(kernels) == 1, kernels


@pytest.mark.gpu
@every
def test_a_gpu_has_the_numbers_of_the_cpu(draw):
    rows = []
    for device in ("cpu", "cuda"):
        with Streams(0, range(64), device):
            rows.append(torch.stack([draw(torch.empty(64, 100, device=device)) for _ in range(3)]).cpu())
    exact = draw in (DRAWS[1], DRAWS[3])
    torch.testing.assert_close(*rows, rtol=0 if exact else 2.0**-22, atol=0 if exact else 1e-9)
