import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ncsn.networks import MLP, UNet
from ncsn.networks.layers import NORMS, Attention, RMSNorm, attended
from ncsn.objectives import DenoisingScoreMatching
from ncsn.score import NCSNDenoiser
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.convnext import LayerNorm2d


def unet(**settings):
    """A small U-Net with the zeroed layers shaken, so that its output depends on all that should matter."""
    network = UNet(**{"channels": 3, "width": 8, "multipliers": (1, 2, 2), "blocks": 1, "attention": (2,)} | settings)
    return shaken(network).eval()


def shaken(network):
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 45), st.integers(1, 60), st.integers(1, 5), st.integers(1, 4))
def test_unet_takes_any_number_of_channels_and_any_size(channels, height, width, depth, patch):
    network = UNet(channels, width=8, multipliers=(1,) * depth, blocks=1, attention=(depth - 1,), patch=patch)
    x = torch.randn(2, channels, height, width)
    out = shaken(network)(x, torch.tensor(0.0))
    assert out.shape == x.shape
    assert out.isfinite().all()
    assert out.std() > 0


@pytest.mark.parametrize("size", [(28, 28), (31, 31), (45, 60), (32, 1), (1, 1)])
def test_unet_at_the_sizes_people_have(size):
    x = torch.randn(2, 3, *size)
    assert unet()(x, torch.tensor(0.0)).shape == x.shape


@pytest.mark.parametrize("settings", [{"classes": 10, "patch": 3}], ids=str)
def test_unet_compiles_in_one_piece(settings):
    network, x = unet(**settings), torch.randn(2, 3, 16, 16)
    label = torch.tensor([3, -1]) if settings.get("classes") else None
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, torch.tensor(0.3), label), network(x, torch.tensor(0.3), label))


def test_a_fresh_unet_costs_half_the_dimension():
    torch.manual_seed(0)
    score = NCSNDenoiser(UNet(1, width=8)).score
    x = torch.rand(64, 1, 28, 28)
    loss = DenoisingScoreMatching()(score, x, torch.rand(64, 1, 1, 1) + 0.01).mean()
    assert loss.item() == pytest.approx(392, abs=4 * (392 / 64) ** 0.5)


def test_one_level_for_all_is_the_same_as_one_for_each():
    network, x = unet(), torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(network(x, torch.tensor(0.7)), network(x, torch.full((3, 1, 1, 1), 0.7)))


@pytest.mark.parametrize("network", [unet(), shaken(MLP(6))])
def test_examples_do_not_see_each_other_and_the_level_matters(network):
    x = torch.randn(3, *((3, 8, 8) if isinstance(network, UNet) else (6,)))
    levels = torch.tensor([0.1, 0.5, 0.9]).view(3, *[1] * (x.ndim - 1))
    together = network(x, levels)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], network(x[i : i + 1], levels[i]), rtol=1e-3, atol=1e-3)
        assert not torch.allclose(together[i : i + 1], network(x[i : i + 1], levels[i] + 0.3), rtol=1e-2)


@pytest.mark.parametrize(
    "make", [lambda classes: unet(classes=classes), lambda classes: shaken(MLP(6, classes=classes))]
)
def test_labels(make):
    network = make(4)
    x = torch.randn(3, *((3, 8, 8) if isinstance(network, UNet) else (6,)))
    level = torch.tensor(0.1)
    none = network(x, level)
    torch.testing.assert_close(network(x, level, torch.full((3,), -1)), none)
    outs = [network(x, level, torch.full((3,), label)) for label in range(4)]
    for i, out in enumerate([*outs, none]):
        assert all(not torch.allclose(out, other) for other in [*outs, none][:i])
    with pytest.raises(ValueError, match="takes no labels"):
        make(0)(x, level, torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize("network", [unet(attention=(0, 1, 2), dropout=0.1, patch=2), shaken(MLP(6))])
def test_every_parameter_is_used(network):
    x = torch.randn(2, *((3, 8, 8) if isinstance(network, UNet) else (6,)))
    network(x, torch.tensor(0.1)).square().sum().backward()
    # A convolution's bias before a norm over its whole group has a gradient of zero up to rounding, but it has one.
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_dropout_drops_in_training_only():
    network, x = unet(dropout=0.5), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(network(x, torch.tensor(0.0)), network(x, torch.tensor(0.0)))
    network.train()
    assert not torch.allclose(network(x, torch.tensor(0.0)), network(x, torch.tensor(0.0)))


def test_attention_is_softmax_attention():
    attention = shaken(Attention(16, head=8))
    x = torch.randn(2, 16, 3, 5)
    q, k, v = attention.qkv(attention.norm(x)).flatten(2).reshape(2, 3, 2, 8, 15).unbind(1)
    weights = torch.softmax(q.transpose(-1, -2) @ k / 8**0.5, dim=-1)
    mixed = (v @ weights.transpose(-1, -2)).reshape(2, 16, 3, 5)
    torch.testing.assert_close(attention(x), x + attention.project(mixed), rtol=1e-4, atol=1e-4)


def test_rms_norm_makes_the_root_mean_square_of_each_pixel_one():
    norm, x = RMSNorm(6), 3 * torch.randn(2, 6, 4, 5)
    torch.testing.assert_close(norm(x).square().mean(1), torch.ones(2, 4, 5))
    nn.init.normal_(norm.gain)
    other = nn.functional.rms_norm(x.movedim(1, -1), (6,), norm.gain.flatten(), eps=1e-6).movedim(-1, 1)
    torch.testing.assert_close(norm(x), other)
    assert norm(x.bfloat16()).dtype == torch.bfloat16


def test_layer_norm_is_over_the_channels_of_each_pixel():
    norm, x = NORMS["layer"](6), 3 + 2 * torch.randn(2, 6, 4, 5)
    torch.testing.assert_close(norm(x).mean(1), torch.zeros(2, 4, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(norm(x).var(1, correction=0), torch.ones(2, 4, 5), atol=1e-3, rtol=0)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    other = LayerNorm2d(6, eps=norm.eps)
    other.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm(x), other(x))


class Layouts(TorchDispatchMode):
    """Lists what takes an image in one layout and gives it in another, and counts convolutions."""

    def __init__(self):
        super().__init__()
        self.convolutions, self.changes = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name, images = func.overloadpacket.__name__, [x for x in (*args[:3], out) if is_image(x)]
        views = len({x.untyped_storage().data_ptr() for x in images}) < len(images)
        self.changes += [name] * (len({x.stride(1) == 1 for x in images}) > 1 and not views)
        self.convolutions += name.startswith("convolution")
        return out


def is_image(x):
    """True if `x` has channels and places, and is not expanded, so that its layout is one of two."""
    sizes = isinstance(x, torch.Tensor) and x.ndim == 4 and x.shape[1] > 1 and x.shape[2:].numel() > 1
    return sizes and 0 not in x.stride()


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_is_copied_into_another_layout_between_convolutions(norm):
    network = unet(norm=norm, classes=3, patch=2, dropout=0.1).to(memory_format=torch.channels_last).train()
    x, label = torch.randn(2, 3, 16, 16), torch.tensor([1, -1])
    with Layouts() as forward:
        out = network(x, torch.tensor(0.3), label)
    with Layouts() as backward:
        out.square().sum().backward()
    assert forward.convolutions == backward.convolutions > 20
    # Images and the gradient of the output are given in torch's own layout.
    assert (forward.changes, backward.changes) == (["clone"], ["convolution_backward"])
    contiguous = network.to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(
        contiguous.eval()(x, torch.tensor(0.3), label), network.eval()(x, torch.tensor(0.3), label)
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_channels_of_attention_are_next_to_each_other_in_memory(monkeypatch, layout):
    seen = []
    attention = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", lambda *qkv: seen.extend(qkv) or attention(*qkv))
    with torch.no_grad():
        Attention(16, head=8).to(memory_format=layout)(torch.randn(2, 16, 4, 4).contiguous(memory_format=layout))
    assert [x.stride(-1) for x in seen] == [1, 1, 1]


@pytest.mark.parametrize("pixels", [16, 101])
def test_attention_of_few_pixels_is_that_of_torch_with_its_gradient(pixels, monkeypatch):
    calls, attention = [], nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", lambda *qkv: calls.append(1) or attention(*qkv))
    found = []
    for function in (attended, attention):
        torch.manual_seed(0)
        qkv = [torch.randn(2, 3, pixels, 8, requires_grad=True) for _ in range(3)]
        out = function(*qkv)
        found.append((out, *torch.autograd.grad(out.square().sum(), qkv)))
    torch.testing.assert_close(*found)
    assert len(calls) == (pixels > 100)


@given(st.integers(1, 600))
def test_group_norm_has_no_group_of_a_few_channels(channels):
    for norm, least in (("group", 4), ("group8", 8)):
        groups = NORMS[norm](channels).num_groups
        assert channels % groups == 0
        assert 1 <= groups <= 32
        assert channels < least or channels // groups >= least
    assert [NORMS[norm](128).num_groups for norm in ("group", "group8")] == [32, 16]


@pytest.mark.parametrize(
    ("kind", "wrong", "field"),
    [
        (UNet, {"channels": 0}, "got channels=0"),
        (UNet, {"channels": 1, "width": 2}, "width=2"),
        (UNet, {"channels": 1, "multipliers": []}, "got multipliers="),
        (UNet, {"channels": 1, "attention": [3]}, "got attention="),
        (UNet, {"channels": 1, "dropout": 1.0}, "got dropout=1"),
        (UNet, {"channels": 1, "classes": -1}, "got classes=-1"),
        (UNet, {"channels": 1, "norm": "batch"}, "expected group, group8, layer or rms, got norm="),
        (MLP, {"features": 0}, "got features=0"),
        (MLP, {"features": 2, "width": 3}, "got width=3"),
    ],
)
def test_impossible_sizes_are_refused(kind, wrong, field):
    with pytest.raises(ValueError, match=field):
        kind(**wrong)
