"""Gibbs sampling, on all the states of a small machine."""

import math

import pytest
import torch
from ncsn.samplers import Gibbs

from test_objectives_binary import NONE, STATES, log_prob, machine, moments


def test_gibbs_sampling_keeps_the_distribution():
    rbm, probabilities = machine()
    start = STATES[torch.multinomial(probabilities, 40_000, replacement=True)]
    *_, x = Gibbs(sweeps=3)(log_prob(rbm), start, NONE[None])
    assert not torch.equal(x, start)
    observed = x.T @ x / len(x)
    assert (observed - moments(probabilities)).abs().max() < 4 * 0.5 / math.sqrt(40_000)


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_gibbs_sampling_forgets_where_it_started(start):
    rbm, probabilities = machine()
    *_, x = Gibbs(sweeps=25)(log_prob(rbm), torch.full((20_000, 8), start).double(), NONE[None])
    observed = x.T @ x / len(x)
    assert (observed - moments(probabilities)).abs().max() < 4 * 0.5 / math.sqrt(20_000)
    # One sweep is not enough for that, as a sampler would have it that does not heed `sweeps`.
    *_, x = Gibbs(sweeps=1)(log_prob(rbm), torch.full((20_000, 8), start).double(), NONE[None])
    assert (x.T @ x / len(x) - moments(probabilities)).abs().max() > 8 * 0.5 / math.sqrt(20_000)


def test_each_bit_is_drawn_by_two_probabilities_in_each_sweep_of_each_level():
    calls = []

    def counted(x, sigma):
        calls.append((x.shape, sigma.item()))
        return 0 * x.flatten(1).sum(1)

    frames = list(Gibbs(sweeps=3)(counted, torch.rand(7, 1, 2, 2), torch.tensor([0.5, 0.25])))
    assert [frame.shape for frame in frames] == [(7, 1, 2, 2)] * 2
    a_level = 3 * 4 * 2
    assert calls == [((7, 1, 2, 2), 0.5)] * a_level + [((7, 1, 2, 2), 0.25)] * a_level


def test_one_sweep_turns_every_bit_of_a_frozen_target():
    bits = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])

    def frozen(x, sigma):
        return 1e6 * (x * (2 * bits - 1)).sum(1)

    *_, x = Gibbs(sweeps=1)(frozen, torch.stack([1 - bits, bits]), torch.zeros(1))
    assert torch.equal(x, torch.stack([bits, bits]))


def test_a_walk_starts_from_the_bits_above_a_half():
    def frozen(x, sigma):
        return 1e6 * (x.flatten(1) * torch.tensor([1.0, -1.0, 1.0])).sum(1)

    *_, x = Gibbs(sweeps=1)(frozen, torch.tensor([[0.2, 0.7, 3.0]]), torch.zeros(2))
    assert x.tolist() == [[1.0, 0.0, 1.0]]


@pytest.mark.parametrize("sweeps", [0, -1, 1.5, 10**9, math.inf, math.nan])
def test_impossible_sweeps_are_refused(sweeps):
    with pytest.raises(ValueError, match=f"expected an integer sweeps from 1 to 1,000,000, got sweeps={sweeps} "):
        Gibbs(sweeps)
