"""What holds on a CUDA GPU alone: run by `pytest -m gpu`."""

import copy
import os
import warnings
from contextlib import contextmanager

import pytest
import torch
from lightning.pytorch import Callback
from ncsn.cli.main import main
from ncsn.data import Digits
from ncsn.model import checkpoint_file, devices
from ncsn.model.load import load
from ncsn.model.model import Model
from ncsn.model.pretrained import save_safetensors
from ncsn.networks import UNet
from ncsn.noise import GeometricSchedule
from ncsn.noise.streams import Streams
from ncsn.samplers import Heun
from ncsn.score import EDMDenoiser
from ncsn.training import compilation
from ncsn.training.compilation import Compilation
from torch import nn
from torch.optim import SGD
from torch.profiler import ProfilerActivity, profile

from conftest import named
from runs import same
from test_cli import REPOSITORY, refusal, run_train, train_small
from test_compilation import EndsAfter
from test_module import small_module, small_trainer
from test_networks import shaken, unet
from test_no_waits import LEVELS, OPTIMISERS, SAMPLERS, Watched

# Deterministic matrix products need it, from before the first one.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
DEVICE = "cuda"
DIGITS = REPOSITORY / "checkpoints" / "digits.safetensors"


def test_only_the_tests_of_gpus_see_them():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert not torch.cuda.is_available()


@contextmanager
def no_waits():
    """A context in which torch refuses whatever waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_whatever_waits_is_noticed():
    x = torch.ones(3, device=DEVICE)
    with no_waits(), pytest.raises(RuntimeError, match="synchroniz"):
        x.sum().item()


class WatchedLater(Watched):
    """Watches from the second step on; before the first one, steps are timed and compiled."""

    def on_train_batch_start(self, trainer, *rest):
        if trainer.global_step:
            super().on_train_batch_start(trainer, *rest)


def trained(folder, monkeypatch, how, *callbacks, optimizer=SGD, **settings):
    """The choice of a run of six steps on the GPU that is compiled in a given way, or as it chooses itself."""
    if how != "auto":
        monkeypatch.setattr(compilation, "choose", lambda *_: how)
    torch.manual_seed(0)
    module = small_module(optimizer=optimizer, **settings)
    shaken(module.denoiser.network)
    settings = {"accelerator": DEVICE, "devices": 1, "max_steps": 10**7, "log_every_n_steps": 5, "limit_val_batches": 0}
    trainer = small_trainer(folder, **settings, callbacks=[*callbacks, EndsAfter(6)])
    labels = bool(module.denoiser.network.classes)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch cannot compile")
        trainer.fit(module, Digits(batch_size=64, labels=labels))
    return next(callback.choice for callback in trainer.callbacks if isinstance(callback, Compilation))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("optimizer", "how"),
    [*((name, "eager") for name in OPTIMISERS), ("fused Adam", "parts"), ("fused Adam", "graphs")],
)
def test_a_step_of_training_does_not_wait(tmp_path, monkeypatch, optimizer, how):
    watched = WatchedLater(no_waits)
    assert trained(tmp_path, monkeypatch, how, watched, classes=10, optimizer=OPTIMISERS[optimizer]) == how
    assert watched.steps == 4  # of the second to the sixth, the fifth is logged


class Kernels(Callback):
    """The names of the kernels of the third step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 2:
            self.profile = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
            self.profile.__enter__()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 2:
            torch.cuda.synchronize()
            self.profile.__exit__(None, None, None)
            self.names = [event.name for event in self.profile.events()]


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["parts", "graphs", "auto"])
def test_a_long_run_is_compiled(tmp_path, monkeypatch, how):
    kernels = Kernels()
    choice = trained(tmp_path, monkeypatch, how, kernels)
    assert choice == ("graphs" if how == "auto" else how)  # it is small, so that launches dominate
    assert any("GraphLaunch" in name for name in kernels.names) == (choice == "graphs")
    assert choice == "graphs" or any(name.startswith("triton_") for name in kernels.names)


class Gradients(Callback):
    """The gradients of each step."""

    def __init__(self):
        self.found = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.found += [p.grad.clone() for p in pl_module.parameters()]


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["parts", "graphs"])
def test_the_gradients_of_compiled_steps_are_those_of_eager_ones(tmp_path, monkeypatch, how):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    eager, compiled = Gradients(), Gradients()
    trained(tmp_path, monkeypatch, "eager", eager)
    assert trained(tmp_path, monkeypatch, how, compiled) == how
    assert len(eager.found) == len(compiled.found) > 0
    largest = max(gradient.norm() for gradient in eager.found)
    for one, other in zip(eager.found, compiled.found, strict=True):
        assert (one - other).norm() < 0.01 * (one.norm() + 1e-3 * largest)


@pytest.mark.gpu
@pytest.mark.parametrize("sampler", SAMPLERS, ids=named)
def test_a_step_of_sampling_does_not_wait(sampler):
    model = small_module().denoiser.eval().to(DEVICE)
    with torch.no_grad(), Streams(0, range(4), DEVICE):
        states = sampler(sampler.of(model), torch.rand(4, 1, 8, 8, device=DEVICE), LEVELS)
        next(states)  # the levels are brought to the device once
        with no_waits():
            count = sum(1 for _ in states)
    assert count == len(LEVELS) - 1


def gradients(network, x, autocast):
    """The gradients of a loss by the parameters' names, in float64."""
    target = torch.linspace(-1, 1, x.numel(), dtype=x.dtype, device=x.device).view_as(x)
    level = torch.linspace(-2, 2, len(x), dtype=x.dtype, device=x.device).view(-1, 1, 1, 1)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        out = network(x, level)
    (out.to(x.dtype) - target).square().mean().backward()
    return {name: p.grad.double() for name, p in network.named_parameters()}


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("norm", "width"), [("group", 64), ("group", 128), ("group8", 128), ("layer", 128), ("rms", 128)]
)
def test_the_gradients_of_a_compiled_network_in_bf16_are_those_of_float64(norm, width):
    """Catches wrong kernels of group norm's gradient in channels_last, which torch has had."""
    network = UNet(3, width=width, multipliers=(1, 1), blocks=1, attention=(1,), norm=norm)
    for p in network.parameters():
        if p.ndim > 1 and not p.any():  # the layers that start at zero
            nn.init.normal_(p, std=0.5 / p[0].numel() ** 0.5)
    network, x = network.to(DEVICE), torch.randn(8, 3, 16, 16).to(DEVICE)
    exact = gradients(copy.deepcopy(network).double(), x.double(), autocast=False)
    network.to(memory_format=torch.channels_last).compile(dynamic=False)
    for name, found in gradients(network, x, autocast=True).items():
        # A bias before a norm has hardly any gradient.
        scale = exact[name].norm() + 1e-3 * max(value.norm() for value in exact.values())
        assert (found - exact[name]).norm() < 0.05 * scale, name


@pytest.mark.gpu
@pytest.mark.parametrize("norm", ["group", "layer", "rms"])
def test_a_cuda_graph_of_a_network_gives_its_numbers(norm):
    network = unet(norm=norm, classes=3).to(DEVICE)
    x, level = torch.randn(4, 3, 16, 16, device=DEVICE), torch.full((4, 1, 1, 1), 0.3, device=DEVICE)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.no_grad():
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up, which no graph may hold
            network(x, level)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            out = network(x, level)
        x.normal_()
        level.fill_(-0.7)
        graph.replay()
        torch.testing.assert_close(out, network(x, level))


@pytest.mark.gpu
def test_a_resumed_run_is_equal_to_the_bit(tmp_path, monkeypatch):
    options = ["--trainer.accelerator", DEVICE, "--trainer.devices", "1", "--trainer.deterministic", "true"]
    try:
        whole = train_small(tmp_path, *options, "--samples.count", "0")
        monkeypatch.chdir(tmp_path)
        alone = checkpoint_file.read(whole)
        whole.unlink()
        run_train("--config", "small.yaml", *options, "--samples.count", "0", "--ckpt_path", "last")
    finally:
        torch.use_deterministic_algorithms(False)
    resumed = checkpoint_file.read(whole)
    for state in ("state_dict", "current_model_state", "optimizer_states"):
        assert same(alone[state], resumed[state]), state


@pytest.mark.gpu
@pytest.mark.parametrize("seed", [0, 7])
def test_a_seed_has_the_samples_of_the_cpu(seed, monkeypatch):
    # By default convolutions round to TF32, of 10 bits, and after a run of training so do matrix products.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    samples = [load(DIGITS, device=device).sample(8, seed=seed).cpu() for device in ("cpu", DEVICE)]
    torch.set_float32_matmul_precision(precision)
    torch.testing.assert_close(*samples, rtol=0, atol=1e-3)


@pytest.fixture
def graphed(monkeypatch):
    """A function that samples with graphs, whatever they gain, and without; it returns both samples."""
    clock, timed = [1.0], devices.timed

    def faster(call, device):  # than the call before
        clock[0] /= 2
        return timed(call, device)[0], clock[0], clock[0]

    def run(model, count, **options):
        found = []
        for graphs in (True, False):
            with monkeypatch.context() as patch:
                patch.setattr(devices, "timed", faster)
                patch.setattr(devices, "is_graphed_on", lambda device, graphs=graphs: graphs)
                found.append(model.sample(count, **options))
        calls = devices._graphs[model].calls.values()
        assert [call for call in calls if isinstance(call, devices.Replay)]
        return found

    return run


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_samples_by_graphs_are_those_without(graphed, precision):
    model = load(DIGITS, device=DEVICE)
    with torch.autocast(DEVICE, precision, enabled=precision != torch.float32):
        for count, seed in ((4, 0), (9, 0), (4, 1)):
            torch.testing.assert_close(*graphed(model, count, seed=seed), rtol=0, atol=1e-5)
    assert sum(isinstance(call, devices.Replay) for call in devices._graphs[model].calls.values()) == 2
    with torch.no_grad():  # in place, as an average is swapped in
        model.denoiser.network.stem.weight.mul_(1.1)
    torch.testing.assert_close(*graphed(model, 4), rtol=0, atol=1e-5)


@pytest.mark.gpu
def test_a_graph_needs_no_memory_that_others_free():
    """Catches a graph that points to a workspace of cuBLAS outside its own memory, which compilation frees."""
    x, weight = torch.randn(64, 256, device=DEVICE), torch.randn(256, 256, device=DEVICE)
    replay, output = devices.record(lambda: x @ weight @ weight, torch.device(DEVICE))
    expected = x @ weight @ weight
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    others = [torch.full((2**20,), torch.nan, device=DEVICE) for _ in range(64)]
    replay()
    torch.testing.assert_close(output, expected)
    assert all(other.isnan().all() for other in others)


@pytest.mark.gpu
def test_a_graph_takes_the_labels_of_its_batch(graphed):
    network = unet(classes=3).to(DEVICE)
    model = Model(EDMDenoiser(network), GeometricSchedule(5, 0.1, 6), Heun(), (3, 16, 16))
    for label in ("0", "2", "all"):
        torch.testing.assert_close(*graphed(model, 3, label=label, guidance=2.0), rtol=0, atol=1e-5)


@pytest.mark.gpu
def test_a_model_on_a_gpu_is_channels_last_and_its_file_and_the_cpu_are_contiguous(tmp_path):
    model = load(DIGITS, device=DEVICE)
    weight = model.denoiser.network.resolutions.encoder[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    save_safetensors(model, tmp_path / "model.safetensors")
    kept = load(tmp_path / "model.safetensors").denoiser.network.resolutions.encoder[0].conv1.weight
    assert kept.is_contiguous()
    assert torch.equal(kept, weight.cpu())
    assert model.cpu().denoiser.network.resolutions.encoder[0].conv1.weight.is_contiguous()


@pytest.fixture(params=[0, 2**26])
def little_memory(request):
    """A GPU of which this process may have so many bytes more than it has: before a run begins, or for its batches."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + request.param) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


COMMANDS = {
    "sample": ["sample", str(DIGITS), "--num-samples", "4096", "--batch-size", "4096", "--out", "a.npz"],
    "train": ["train", "--data.batch_size", "1024", "--samples.count", "0", "--trainer.max_steps", "2"],
}


@pytest.mark.gpu
@pytest.mark.parametrize("command", COMMANDS)
def test_a_lack_of_memory_ends_in_one_line(command, little_memory, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--trainer.accelerator", DEVICE, "--trainer.enable_progress_bar", "false"] if command == "train" else []
    status, line = refusal(capsys, lambda: main([*COMMANDS[command], *options]))
    assert status == 1
    assert "out of memory" in line


@pytest.mark.gpu
@pytest.mark.parametrize("command", COMMANDS)
def test_a_gpu_that_is_not_there_is_refused_in_one_line(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = {
        "sample": ["--device", "cuda:99"],
        "train": ["--trainer.accelerator", "cuda", "--trainer.devices", "[99]"],
    }
    status, line = refusal(capsys, lambda: main([*COMMANDS[command], *options[command]]))
    assert status == 2
    assert "99" in line
