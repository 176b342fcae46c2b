import copy
import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ncsn.networks import UNet
from ncsn.training import optimisers as optim
from ncsn.training.optimisers import MuonAdam, has_bfloat16, orthogonal
from torch import nn
from torch.optim import Adam, Muon


def with_gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def twins(*shapes):
    return tuple([nn.Parameter(torch.linspace(-1, 1, math.prod(shape)).view(shape)) for shape in shapes] for _ in "ab")


@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 99), st.sampled_from([1e-6, 1.0, 1e6]))
def test_what_is_orthogonal_keeps_its_directions_and_none_is_much_longer_than_another(rows, columns, seed, scale):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).double()
    u, lengths, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = u.T @ orthogonal(scale * matrix[None])[0] @ vh.T
    torch.testing.assert_close(found, found.diagonal().diag(), rtol=0, atol=1e-6)
    assert found.diagonal().max() < 1.25
    assert found.diagonal()[lengths > lengths.max() / 100].min() > 0.3


@pytest.mark.parametrize("fast", [True, False])
def test_a_matrix_moves_as_by_torch_s_muon_and_a_vector_as_by_its_adam(monkeypatch, fast):
    monkeypatch.setattr(optim, "has_bfloat16", lambda _: fast)
    mine, others = twins((6, 30), (30, 6), (6,), ())
    matrices, vectors = others[:2], others[2:]
    optimizer = MuonAdam(mine, lr=0.01)
    theirs = Muon(matrices, lr=0.01, weight_decay=0, adjust_lr_fn="match_rms_adamw"), Adam(vectors, lr=0.01)
    for step in range(5):
        for parameters in (mine, others):
            with_gradients(parameters, step)
        optimizer.step()
        for other in theirs:
            other.step()
    for one, other in zip(mine[:2], matrices, strict=True):  # theirs computes in bfloat16
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)
    torch.testing.assert_close(mine[2:], vectors, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("fast", "given", "expected"),
    [
        (True, torch.float32, torch.bfloat16),
        (False, torch.float32, torch.float32),
        (True, torch.float64, torch.float64),
    ],
)
def test_values_are_set_in_bfloat16_where_that_is_fast(monkeypatch, fast, given, expected):
    seen = []
    monkeypatch.setattr(optim, "has_bfloat16", lambda _: fast)
    monkeypatch.setattr(optim, "orthogonal", lambda matrices: seen.append(matrices.dtype) or orthogonal(matrices))
    parameter = nn.Parameter(torch.zeros(2, 3, dtype=given))
    parameter.grad = torch.ones_like(parameter)
    MuonAdam([parameter]).step()
    assert seen == [expected]
    assert parameter.dtype == given


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_device_has_bfloat16_where_its_instructions_are_known(monkeypatch, capability, fast):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    known = {kind: has_bfloat16.__wrapped__(torch.device(kind)) for kind in ("cuda", "cpu", "mps", "meta")}
    assert known == {"cuda": fast, "cpu": fast, "mps": False, "meta": False}


def test_a_convolution_moves_as_the_matrix_of_its_outputs():
    (kernel, matrix), _ = twins((4, 3, 3, 3), (4, 27))
    with_gradients([kernel], 0)
    matrix.grad = kernel.grad.flatten(1)
    MuonAdam([kernel, matrix], lr=0.1).step()
    assert torch.equal(kernel.flatten(1), matrix)


def test_updates_are_as_large_as_adam_s():
    net = UNet(1, width=8, multipliers=(1, 2), blocks=1)
    before = [parameter.clone() for parameter in net.parameters()]
    with_gradients(net.parameters(), 0)
    MuonAdam(net.parameters(), lr=1.0).step()
    for old, new in zip(before, net.parameters(), strict=True):
        size = (new - old).detach().square().mean().sqrt().item()
        assert 0.12 < size < 0.25 if old.ndim > 1 else size == pytest.approx(1, rel=1e-3)


def test_a_loaded_state_goes_on_to_the_bit():
    shapes = (5, 3, 3, 3), (5,), (7, 5)
    mine, others = twins(*shapes)
    first, second = MuonAdam(mine, lr=0.1), MuonAdam(others, lr=0.3)
    for step in range(3):
        with_gradients(mine, step)
        first.step()
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    second.load_state_dict(torch.load(saved, weights_only=True))
    for one, other in zip(mine, others, strict=True):
        other.data.copy_(one.data)
    for optimizer, parameters in ((first, mine), (second, others)):
        with_gradients(parameters, 7)
        optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(mine, others, strict=True))


def test_a_closure_is_called_with_gradients_and_its_loss_returned():
    (weight, bias), _ = twins((2, 3), (2,))
    optimizer = MuonAdam([weight, bias], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum() + bias.square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] * 0.7


def test_what_has_no_gradient_stays():
    mine, others = twins((2, 3), (2,))
    MuonAdam(mine).step()
    assert all(torch.equal(one, other) for one, other in zip(mine, others, strict=True))


def test_what_is_rounded_off_does_not_grow_in_the_directions_that_a_matrix_hardly_has():
    generator = torch.Generator().manual_seed(0)
    for rank in (1, 4, 30):
        left, right = torch.randn(64, rank, generator=generator), torch.randn(rank, 64, generator=generator)
        matrix = left @ right + 1e-6 * torch.randn(64, 64, generator=generator)
        found = orthogonal(matrix[None].bfloat16())[0].float()
        assert torch.linalg.matrix_norm(found, 2) < 1.3


def test_a_copy_goes_on_as_the_one_that_it_is_of():
    mine, _ = twins((3, 4), (3,))
    optimizer = MuonAdam(mine, lr=0.1)
    with_gradients(mine, 0)
    optimizer.step()
    copied = copy.deepcopy(optimizer)
    others = [p for group in reversed(copied.param_groups) for p in group["params"]]
    for one, parameters in ((optimizer, mine), (copied, others)):
        with_gradients(parameters, 1)
        one.step()
    assert all(torch.equal(one, other) for one, other in zip(mine, others, strict=True))


def test_what_is_no_list_of_parameters_with_a_matrix_among_them_is_refused():
    weight, bias = nn.Linear(2, 3).parameters()
    with pytest.raises(ValueError, match="neither groups"):
        MuonAdam([{"params": [weight]}])
    with pytest.raises(ValueError, match="neither groups"):
        MuonAdam(nn.Linear(2, 3).named_parameters())
    with pytest.raises(ValueError, match="no matrix"):
        MuonAdam([bias])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"momentum": 1.0}, "momentum=1"), ({"lr": -1.0}, "learning rate: -1"), ({"betas": (1.0, 0.9)}, "beta")],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        MuonAdam([nn.Parameter(torch.zeros(2, 2))], **wrong)
