"""Ratio matching and pseudo-likelihood, on all the states of a small machine."""

import itertools
import math

import pytest
import torch
from ncsn.networks import RBM
from ncsn.objectives import PseudoLikelihood, RatioMatching

STATES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8)), dtype=torch.float64)
NONE = torch.zeros((), dtype=torch.float64)
OBJECTIVES = [RatioMatching(), PseudoLikelihood()]


def machine(seed=0):
    """A machine whose units depend on one another, and the probabilities of its states."""
    torch.manual_seed(seed)
    rbm = RBM(8, 4).double()
    for parameter in rbm.parameters():
        torch.nn.init.normal_(parameter, std=0.8)
    return rbm, (-rbm(STATES)).softmax(0).detach()


def log_prob(rbm):
    return lambda x, sigma: -rbm(x, sigma)


def moments(probabilities):
    return torch.einsum("n,ni,nj->ij", probabilities, STATES, STATES)


def test_both_are_recomputed_bit_by_bit():
    rbm, _ = machine()
    ratio, pseudo = (objective(log_prob(rbm), STATES[100:110], NONE) for objective in OBJECTIVES)
    for n, x in enumerate(STATES[100:110]):
        ratios, conditionals = 0.0, 0.0
        for i in range(8):
            flipped = x.clone()
            flipped[i] = 1 - flipped[i]
            u = math.exp(-rbm(x[None]).item()) / math.exp(-rbm(flipped[None]).item())
            ratios += (1 / (1 + u)) ** 2
            conditionals -= math.log(u / (1 + u))
        assert ratio[n].item() == pytest.approx(ratios)
        assert pseudo[n].item() == pytest.approx(conditionals)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_gradient_is_zero_at_the_truth_and_not_beside_it(objective):
    rbm, probabilities = machine()

    def gradient():
        loss = (probabilities * objective(log_prob(rbm), STATES, NONE)).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, rbm.parameters())])

    assert gradient().abs().max() < 1e-12
    torch.nn.init.normal_(rbm.visible_bias)
    assert gradient().abs().max() > 1e-3


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_recovers_the_pairwise_moments(objective):
    _, truth = machine()
    rbm, before = machine(seed=1)
    data = STATES[torch.multinomial(truth, 20_000, replacement=True)]
    states, counts = data.unique(dim=0, return_counts=True)
    weights = counts / len(data)
    optimizer = torch.optim.LBFGS(rbm.parameters(), max_iter=400, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = (weights * objective(log_prob(rbm), states, NONE)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    learned = moments((-rbm(STATES)).softmax(0).detach())
    assert (moments(before) - moments(truth)).abs().max() > 0.3
    assert (learned - moments(truth)).abs().max() < 0.02


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_pictures_and_a_level_for_each_example(objective):
    rbm, x = RBM(12, 3), torch.bernoulli(torch.full((5, 1, 3, 4), 0.5))
    seen = []

    def density(x, sigma):
        seen.append((x.shape, sigma.shape))
        return -rbm(x) + 0 * sigma.flatten()

    assert objective(density, x, torch.rand(5, 1, 1, 1)).shape == (5,)
    assert seen == [((5, 1, 3, 4), (5, 1, 1, 1)), ((60, 1, 3, 4), (60, 1, 1, 1))]


def test_the_energy_is_the_sum_over_all_states_of_the_hidden_units():
    rbm, _ = machine()
    hidden = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=torch.float64)
    a, b, w = rbm.visible_bias, rbm.hidden_bias, rbm.weight
    # exp(-energy(x)) = sum_h exp(a . x + b . h + h . W x), whatever the shape of x.
    joint = (STATES @ a).unsqueeze(1) + hidden @ b + STATES @ w.T @ hidden.T
    expected = -joint.logsumexp(1)
    torch.testing.assert_close(rbm(STATES), expected)
    torch.testing.assert_close(rbm(STATES.view(-1, 1, 2, 4), NONE), expected)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="got features=0"):
        RBM(0, 2)
