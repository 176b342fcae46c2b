"""A model on a GPU: its layout, and the graphs of its score, with a fake graph on the CPU."""

import copy
import gc
import pickle
import weakref
from functools import partial

import pytest
import torch
from ncsn.model import devices
from ncsn.model.devices import by_graphs, layout_on
from ncsn.model.model import Model
from ncsn.networks import MLP, RBM, UNet
from ncsn.noise import GeometricSchedule
from ncsn.samplers import DPMSolver, Gibbs, Heun
from ncsn.score import EDMDenoiser, EnergyScore
from torch import nn

from test_networks import Layouts


def unet_model(classes=0, **settings):
    torch.manual_seed(0)
    network = UNet(1, 8, (1, 2), blocks=1, attention=(1,), classes=classes)
    for weight in network.parameters():
        nn.init.normal_(weight, 0.5 if weight.ndim == 1 else 0, 0.05)
    return Model(EDMDenoiser(network), GeometricSchedule(5, 0.1, 6), DPMSolver(eta=1.0), (1, 8, 8), **settings).eval()


def test_weights_are_channels_last_on_cuda_alone():
    names = ["cpu", "mps", "cuda", "cuda:1"]
    found = [layout_on(torch.device(name)) == torch.channels_last for name in names]
    assert found == [False, False, True, True]


def test_a_model_takes_the_layout_of_the_device_that_it_is_moved_to(monkeypatch):
    """The device is torch's "meta", in place of a GPU."""
    monkeypatch.setattr(devices, "layout_on", lambda device: layout_on(torch.device("cuda")))
    model = unet_model()
    model.denoiser.network.volume = nn.Parameter(torch.ones(1, 1, 2, 2, 2))  # has no such layout
    stem = model.denoiser.network.stem
    assert stem.weight.is_contiguous()
    model.double()  # no move
    assert stem.weight.is_contiguous()
    nn.ModuleList([model]).to("meta")
    assert {w.is_contiguous(memory_format=torch.channels_last) for w in model.parameters() if w.ndim == 4} == {True}
    assert not model.denoiser.network.resolutions.down.weight.is_contiguous()
    assert model.denoiser.network.layout() == torch.channels_last  # though the weight of its stem is in both layouts
    # What is asked for stays, and other devices have torch's own layout.
    assert model.to(memory_format=torch.contiguous_format).denoiser.network.stem.weight.is_contiguous()


def test_a_step_of_sampling_in_channels_last_changes_the_layout_of_its_state_alone():
    model = unet_model().to(memory_format=torch.channels_last)
    with torch.no_grad(), Layouts() as layouts:
        model.denoiser.score(torch.rand(2, 1, 8, 8).expand(2, 1, 8, 8), torch.tensor(0.3))
    assert layouts.convolutions > 10
    assert layouts.changes == []


class Fakes:
    """Graphs of the CPU, and clocks, that are noted."""

    def __init__(self, monkeypatch):
        self.recorded = self.replayed = 0
        self.launched, self.seconds = 1.0, [1.0, 0.5]  # of a call and of its replay
        self.turn = self.wrong = 0
        monkeypatch.setattr(devices, "is_graphed_on", lambda device: True)
        monkeypatch.setattr(devices, "record", self.record)
        monkeypatch.setattr(devices, "timed", self.timed)

    def record(self, call, device):
        self.recorded += 1
        output = call()

        def replay():
            self.replayed += 1
            output.copy_(call() + self.wrong)

        return replay, output

    def timed(self, call, device):
        self.turn += 1
        return call(), self.launched, self.seconds[(self.turn - 1) % 2]


@pytest.fixture
def fakes(monkeypatch):
    return Fakes(monkeypatch)


def test_replayed_samples_are_those_of_calls(fakes, monkeypatch):
    model = unet_model()
    found = [model.sample(4, seed=seed) for seed in (0, 1)]
    assert fakes.recorded == 1
    assert fakes.replayed == 2 + 4 + 6
    monkeypatch.setattr(devices, "is_graphed_on", lambda device: False)
    expected = [model.sample(4, seed=seed) for seed in (0, 1)]
    assert fakes.replayed == 12
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_later_replay_leaves_an_earlier_result(fakes):
    model = unet_model()
    score = by_graphs(model, model.denoiser, partial(model.denoiser.score, label=None))
    with torch.no_grad():
        for _ in range(3):
            first = score(torch.rand(2, 1, 8, 8), torch.tensor(0.3))
        kept = first.clone()
        second = score(torch.rand(2, 1, 8, 8), torch.tensor(0.7))
    assert fakes.replayed == 4
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)


def test_there_is_a_graph_for_each_shape_dtype_label_and_autocast_and_few_at_once(fakes, monkeypatch):
    model = unet_model(classes=3)
    kinds = [
        (torch.rand(2, 1, 8, 8), torch.tensor(0.3), None),
        (torch.rand(3, 1, 8, 8), torch.tensor(0.3), None),
        (torch.rand(2, 1, 8, 8), torch.full((2, 1, 1, 1), 0.3), None),
        (torch.rand(2, 1, 8, 8), torch.tensor(0.3), torch.tensor([0, -1])),
    ]

    def drawn(kind):
        x, sigma, label = kind
        score = by_graphs(model, model.denoiser, partial(model.denoiser.score, label=label))
        return score(x, sigma)

    with torch.no_grad():
        expected = [model.denoiser.score(*kind) for kind in kinds]
        for _ in range(4):
            for kind, wanted in zip(kinds, expected, strict=True):
                torch.testing.assert_close(drawn(kind), wanted)
        assert (fakes.recorded, fakes.replayed) == (4, 4 * 4)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = [drawn(kinds[0]) for _ in range(3)][-1]
            torch.testing.assert_close(rounded, model.denoiser.score(*kinds[0]))
        assert not torch.equal(rounded, expected[0])
        assert fakes.recorded == 5
        assert sum(isinstance(call, devices.Replay) for call in devices._graphs[model].calls.values()) == 1
        drawn(kinds[1])  # is a first call again
        assert fakes.recorded == 5
    with torch.inference_mode():
        for _ in range(3):
            drawn(kinds[1])
    with torch.no_grad():  # where a tensor of the other context cannot be written
        for _ in range(3):
            drawn(kinds[1])
    assert fakes.recorded == 7


def test_weights_that_autocast_has_cast_are_no_part_of_a_graph(fakes, monkeypatch):
    """They are freed with the context, and a graph would go on to read them."""
    seen, forward = [], EDMDenoiser.forward

    def noted(self, *inputs):
        seen.append(torch.is_autocast_cache_enabled())
        return forward(self, *inputs)

    monkeypatch.setattr(EDMDenoiser, "forward", noted)
    with torch.autocast("cpu", torch.bfloat16):
        unet_model().sample(2)
    assert seen == [True] * 2 + [False] * (1 + fakes.replayed)


@pytest.mark.parametrize("case", ["busy", "slower", "wrong", "refused"])
def test_what_gains_nothing_or_cannot_be_recorded_is_called(fakes, monkeypatch, case):
    def refused(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    model = unet_model()
    expected = model.sample(4)
    fakes.replayed = fakes.recorded = 0
    devices._graphs.clear()
    if case == "busy":
        fakes.launched = 0.5
    if case == "slower":
        fakes.seconds = [1.0, 1.5]
    if case == "wrong":
        fakes.wrong = 1
    if case == "refused":
        monkeypatch.setattr(devices, "record", refused)
    assert torch.equal(model.sample(4), expected)
    assert torch.equal(model.sample(4), expected)
    assert fakes.recorded == (case in ("slower", "wrong"))
    assert fakes.replayed == 2 * fakes.recorded


def test_what_is_differentiated_is_called(fakes):
    model = Model(EDMDenoiser(MLP(2)), GeometricSchedule(5, 0.1, 6), Heun(), (2,))
    score = by_graphs(model, model.denoiser, partial(model.denoiser.score, label=None))
    x, sigma = torch.rand(3, 2), torch.tensor(0.3)
    with torch.no_grad():
        for _ in range(3):
            score(x, sigma)
        replayed = fakes.replayed
        tangent = torch.func.jvp(lambda x: score(x, sigma), (x,), (torch.ones_like(x),))[1]
        pulled = torch.func.vjp(lambda x: score(x, sigma), x)[1](torch.ones_like(x))[0]
        stacked = torch.func.vmap(lambda x: score(x.unsqueeze(0), sigma))(x)
        with torch.autograd.forward_ad.dual_level():
            dual = score(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)), sigma)
            assert torch.autograd.forward_ad.unpack_dual(dual).tangent.any()
    assert tangent.any()
    assert pulled.any()
    assert stacked.shape == (3, 1, 2)
    x.requires_grad_()
    score(x, sigma).sum().backward()
    assert x.grad.any()
    assert fakes.replayed == replayed


def test_what_does_more_than_kernels_is_called(fakes):
    seen, model = [], unet_model()
    for _ in range(2):
        model.sample(2)
    assert fakes.replayed
    replayed = fakes.replayed
    hook = model.denoiser.network.stem.register_forward_hook(lambda *_: seen.append(1))
    model.sample(2)
    assert len(seen) == 6
    assert fakes.replayed == replayed
    hook.remove()
    model.sample(2)
    assert fakes.replayed > replayed
    replayed = fakes.replayed
    with torch.compiler.set_stance("force_eager"):
        model.compile_network()
        model.sample(2)
    assert fakes.replayed == replayed
    energy = Model(EnergyScore(RBM(6, 3)), GeometricSchedule(5, 0.1, 6), Gibbs(1), (6,))
    assert by_graphs(energy, energy.denoiser, energy.denoiser.log_prob) == energy.denoiser.log_prob


def test_weights_that_change_are_followed_and_weights_that_move_forget_the_graphs(fakes):
    model = unet_model()
    for change in (
        lambda: model.denoiser.network.stem.weight.data.mul_(1.5),  # as an average is swapped in
        lambda: setattr(model.denoiser.network.stem.weight, "data", 2 * model.denoiser.network.stem.weight.data),
        lambda: model.to(memory_format=torch.channels_last),
        lambda: model.double(),
        lambda: setattr(model, "denoiser", unet_model().denoiser),
    ):
        model.sample(2)
        recorded = fakes.recorded
        change()
        expected = copy.deepcopy(model)
        assert torch.equal(model.sample(2, seed=3), expected.sample(2, seed=3))
    assert recorded == 4 + 4


def test_classifier_free_guidance_takes_two_graphs(fakes):
    model = unet_model(classes=3)
    found = model.sample(6, guidance=2.0)
    assert fakes.recorded == 2
    devices._graphs.clear()
    fakes.launched = 0
    torch.testing.assert_close(found, model.sample(6, guidance=2.0), rtol=0, atol=0)
    assert fakes.recorded == 2


def test_graphs_end_with_their_model_and_are_no_part_of_it(fakes):
    model = unet_model()
    model.sample(2)
    assert len(devices._graphs) == 1
    assert torch.equal(pickle.loads(pickle.dumps(model)).sample(2), model.sample(2))
    graphs = weakref.ref(devices._graphs[model])
    del model
    gc.collect()
    assert graphs() is None


def test_a_model_of_points_is_replayed_as_well(fakes):
    model = Model(EDMDenoiser(MLP(2)), GeometricSchedule(5, 0.1, 6), Heun(), (2,))
    model.sample(5)
    assert fakes.replayed
