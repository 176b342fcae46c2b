"""Compilation in training. The compiler here counts, and runs what it is given; the GPU is a clock."""

import copy
import math
import re

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from ncsn.cli.main import main
from ncsn.data import Digits
from ncsn.model import checkpoint_file
from ncsn.networks import MLP, AutoencoderEnergy, UNet
from ncsn.noise import GeometricSchedule
from ncsn.objectives import DenoisingScoreMatching
from ncsn.samplers import EulerMaruyama
from ncsn.score import EnergyScore
from ncsn.training import compilation
from ncsn.training.callbacks import EMA, RunProgress, SampleGrid
from ncsn.training.compilation import Compilation, choose
from ncsn.training.gpu import compiled, use_fast_kernels
from ncsn.training.module import ScoreModule
from ncsn.training.optimisers import MuonAdam
from torch import nn

from runs import same
from test_cli import refusal, run_train, train_small
from test_module import small_module, small_trainer


class Layers(nn.Module):
    """A network of two equal parts, and a buffer that each training step changes."""

    def __init__(self, classes=0):
        super().__init__()
        self.classes = classes
        self.stem = nn.Conv2d(1, 1, 1)
        self.first, self.second = (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Dropout(0.2)) for _ in range(2))
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x, c_noise, label=None):
        return self.norm(self.second(self.first(self.stem(x))))

    def compiled_parts(self):
        return [self.first, self.second]


def layers_module(**settings):
    torch.manual_seed(0)
    module = small_module(**settings)
    module.denoiser.network = Layers()
    return module


class Compiler:
    """A compiler that counts what it compiles, and the calls of that."""

    def __init__(self):
        self.settings, self.compiled, self.calls, self.notes = [], 0, 0, lambda: None

    def __call__(self, graph, inputs, **_):
        self.notes()
        self.compiled += 1

        def run(*args):
            self.calls += 1
            return graph(*args)

        return run


@pytest.fixture
def compiler(monkeypatch):
    """The compiler that `torch.compile` uses."""
    torch.compiler.reset()
    compiler, original = Compiler(), torch.compile

    def counted(function, **settings):
        compiler.settings.append(settings)
        return original(function, **settings | {"backend": compiler})

    monkeypatch.setattr(torch, "compile", counted)
    yield compiler
    torch.compiler.reset()


def called(network, count=2):
    return network(torch.rand(count, 1, 8, 8), torch.full((count, 1, 1, 1), 0.3))


def test_the_blocks_of_the_unet_are_compiled_once_a_shape(compiler):
    network = UNet(1, width=8, multipliers=(1,), blocks=2)
    with compiled(network):
        called(network)
    assert compiler.compiled == 2 + 1  # the blocks of the encoder and of the decoder, and the head


@torch._dynamo.config.patch(recompile_limit=1)
def test_a_network_may_have_more_shapes_than_torch_compiles_by_default(compiler):
    network = nn.ModuleList(nn.Linear(width, 1) for width in (1, 2, 3))
    network.compiled_parts = lambda: list(network)
    with compiled(network):
        for width, part in enumerate(network, 1):
            part(torch.rand(2, width))
    assert compiler.compiled == 3


@pytest.mark.parametrize("graphs", [False, True])
def test_a_network_without_parts_and_cuda_graphs_are_compiled_whole(compiler, graphs):
    network = Layers() if graphs else MLP(4, width=8)
    x, level = (torch.rand(2, 1, 8, 8), torch.ones(2, 1, 1, 1)) if graphs else (torch.rand(2, 4), torch.ones(2, 1))
    with compiled(network, graphs):
        network(x, level)
        network(x, level)
    assert (compiler.compiled, compiler.calls) == (1, 2)
    options = {"force_layout_optimization": True} | ({"triton.cudagraphs": True} if graphs else {})
    first = compiler.settings[0]
    assert (first["options"], first["fullgraph"], first["dynamic"]) == (options, True, False)


def test_a_compiled_network_is_saved_and_copied_as_it_is_and_left_as_it_was(compiler):
    network, names = Layers(), [*Layers().state_dict()]
    with compiled(network):
        called(network)
        assert [*network.state_dict()] == names
        called(copy.deepcopy(network))
        calls = compiler.calls
    called(network)
    assert compiler.calls == calls == 2
    assert network.first._compiled_call_impl is None  # as samplers look at it


@pytest.mark.parametrize(
    ("launches", "seconds", "steps", "choice"),
    [
        (0.03, 0.03, 5000, "eager"),
        (0.03, 0.03, 7000, "graphs"),
        (0.05, 0.13, 7000, "parts"),
        (0.0, 0.03, 7000, "parts"),
        (0.03, 0.03, math.inf, "graphs"),
        (0.0, math.inf, 1, "parts"),
    ],
)
def test_a_long_run_is_compiled_and_into_graphs_if_launches_take_its_time(launches, seconds, steps, choice):
    assert choose(launches, seconds, steps) == choice


def fitted(module, folder, *callbacks, **settings):
    """The state of a module and its optimiser after training with samples and validation."""
    ema = EMA(0.9)
    trainer = small_trainer(
        folder,
        callbacks=[SampleGrid(3), *callbacks, ema],
        logger=TensorBoardLogger(folder),
        val_check_interval=2,
        limit_val_batches=2,
        **settings,
    )
    trainer.fit(module, Digits(batch_size=64))
    return module.state_dict(), trainer.optimizers[0].state_dict(), ema.average


@pytest.mark.parametrize(
    "settings", [{}, {"precision": "bf16-mixed", "accumulate_grad_batches": 2}], ids=["plain", "bf16"]
)
def test_a_compiled_run_compiles_once_and_is_the_eager_run(compiler, tmp_path, settings):
    eager = fitted(layers_module(optimizer=MuonAdam, compile=False), tmp_path, **settings)
    module = layers_module(optimizer=MuonAdam, compile=True)
    assert same(fitted(module, tmp_path, **settings), eager)
    assert compiler.compiled == 1
    calls = 2 * (compilation.TRIED + 5 * settings.get("accumulate_grad_batches", 1))
    assert compiler.calls == calls
    called(module.denoiser.network)
    assert compiler.calls == calls


@pytest.mark.slow
def test_a_resumed_run_is_compiled_anew_and_ends_as_the_whole_one(compiler, tmp_path, monkeypatch):
    options = ["--model.compile", "true", "--samples.count", "0"]
    whole = train_small(tmp_path, *options)
    monkeypatch.chdir(tmp_path)
    alone = checkpoint_file.read(whole)
    whole.unlink()
    calls = compiler.calls
    run_train("--config", "small.yaml", *options, "--ckpt_path", "last")
    assert compiler.calls > calls
    resumed = checkpoint_file.read(whole)
    for state in ("state_dict", "current_model_state", "optimizer_states"):
        assert same(alone[state], resumed[state]), state


class Failing(ScoreModule):
    """A module whose training fails at the second step."""

    def on_train_batch_start(self, batch, batch_idx):
        if batch_idx == 1:
            raise RuntimeError("failed")


def test_a_run_that_fails_leaves_torch_and_the_network_as_they_were(compiler, tmp_path):
    module = small_module(kind=Failing, compile=True)
    module.denoiser.network = Layers()
    with pytest.raises(RuntimeError, match="failed"):
        small_trainer(tmp_path).fit(module, Digits(batch_size=64))
    calls, count = compiler.calls, compiler.compiled
    called(module.denoiser.network)
    assert compiler.calls == calls > 0
    torch.compile(lambda x: x + 1)(torch.rand(3))  # no other code runs eagerly now
    assert compiler.compiled == count + 1


class Clocked(ScoreModule):
    """A module of which each step takes a time for its launches, or one for its examples if that is longer."""

    now, launches, of_an_example = 0.0, 0.0, 0.0

    def losses(self, x, sigma, label=None):
        Clocked.now += max(self.launches, self.of_an_example * len(x))
        return super().losses(x, sigma, label)


@pytest.fixture
def gpu(compiler, monkeypatch):
    """A clock in place of a GPU: its function trains as there, with seconds of launches and of an example."""
    monkeypatch.setattr(compilation, "may_pay", lambda module: True)
    monkeypatch.setattr(compilation, "perf_counter", lambda: Clocked.now)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def train(folder, launches, of_an_example, *callbacks, asked="auto", **settings):
        module = small_module(kind=Clocked, compile=asked)
        module.launches, module.of_an_example, module.denoiser.network = launches, of_an_example, Layers()
        trainer = small_trainer(folder, limit_val_batches=0, callbacks=[*callbacks, EndsAfter(3)], **settings)
        trainer.fit(module, Digits(batch_size=64))
        (found,) = (callback for callback in trainer.callbacks if isinstance(callback, Compilation))
        return found.choice, module

    return train


class EndsAfter(Callback):
    """Ends a run early, of whose length nothing else knows."""

    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= self.steps


@pytest.mark.parametrize(
    ("launches", "of_an_example", "settings", "choice", "line"),
    [
        (0.01, 0.0001, {"max_steps": 1000}, "eager", "nothing (the steps left take less than 3 minutes)"),
        (
            0.01,
            0.0001,
            {"max_steps": 20_000},
            "graphs",
            "the network into CUDA graphs (100 steps/s without, 100% of it launches)",
        ),
        (
            0.01,
            0.0010,
            {"max_steps": 20_000},
            "parts",
            "the network part by part (15.6 steps/s without, 16% of it launches)",
        ),
        (
            0.01,
            0.0001,
            {"max_steps": 20_000, "accumulate_grad_batches": 2},
            "parts",
            "the network part by part (100 steps/s",
        ),
        (0.01, 0.0001, {"max_steps": 9, "asked": True}, "graphs", "the network into CUDA graphs (100 steps/s"),
        (0.01, 0.0010, {"max_steps": 20_000, "deterministic": True}, "eager", "nothing (a deterministic run"),
    ],
)
def test_a_run_on_a_gpu_chooses_by_the_time_of_a_step_and_says_so(
    gpu, tmp_path, capsys, launches, of_an_example, settings, choice, line
):
    try:
        assert gpu(tmp_path, launches, of_an_example, **settings)[0] == choice
    finally:
        torch.use_deterministic_algorithms(False)
    assert f"Compiling:   {line}" in capsys.readouterr().out


def test_all_devices_choose_as_the_first_one(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(SingleDeviceStrategy, "broadcast", lambda self, value, src=0: (0.001, 0.01))
    assert gpu(tmp_path, 0.01, 0.0001, max_steps=20_000)[0] == "parts"


def test_each_step_of_cuda_graphs_begins_without_gradients(gpu, tmp_path, monkeypatch):
    """A graph overwrites them, and torch raises an error if they are read."""
    marked = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marked.append(present()))
    kept = []
    monkeypatch.setattr(
        Clocked, "configure_optimizers", lambda self: kept.append(self) or ScoreModule.configure_optimizers(self)
    )

    def present():
        return [p.grad is not None for p in kept[0].parameters()]

    gpu(tmp_path, 0.01, 0.0001, max_steps=20_000)
    assert len(marked) == 2  # all but the first step
    assert not any(map(any, marked))


class Shown(Callback):
    """What a progress bar shows while the compiler works and after each step."""

    def __init__(self, bar):
        self.bar, self.texts = bar, []

    def note(self):
        self.texts.append(self.bar.progress.tasks[0].fields["metrics"])

    def on_train_batch_end(self, *_):
        self.note()


def test_the_bar_says_that_the_network_is_compiled(gpu, compiler, tmp_path):
    shown = Shown(RunProgress())
    compiler.notes = shown.note
    gpu(tmp_path, 0.01, 0.0001, shown.bar, shown, max_steps=20_000, enable_progress_bar=True)
    assert shown.texts == ["compiling", "", "", ""]


@pytest.fixture
def broken(compiler):
    """A compiler that fails, as without a C compiler."""

    def fail():
        raise RuntimeError("no C compiler\n\nand more lines")

    compiler.notes = fail


def test_a_run_goes_on_without_a_compiler(gpu, broken, tmp_path):
    with pytest.warns(UserWarning, match="cannot compile .*no C compiler; it goes on without"):
        choice, module = gpu(tmp_path, 0.01, 0.001, max_steps=20_000)
    assert choice == "eager"
    assert module.global_step == 3


def test_a_compilation_that_is_asked_for_and_fails_ends_the_run_in_one_line(broken, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["train", "--model.compile", "true", "--trainer.accelerator", "cpu", "--samples.count", "0"]
    status, line = refusal(capsys, lambda: main(command))
    assert status == 1
    assert re.fullmatch(
        "error: model.compile: true, but torch cannot compile this training here: .*no C compiler.*", line
    )


def test_a_lack_of_memory_is_not_said_to_be_a_fault_of_the_compiler(compiler, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(compilation, "gradients", full)
    with pytest.raises(torch.OutOfMemoryError):
        small_trainer(tmp_path, max_steps=1).fit(layers_module(compile=True), Digits(batch_size=8))


def test_an_energy_is_never_compiled():
    parts = GeometricSchedule(1, 0.1, 10), DenoisingScoreMatching(), EulerMaruyama()
    energy = EnergyScore(AutoencoderEnergy(4, 3))
    assert ScoreModule(energy, *parts, shape=(4,)).configure_callbacks() == []
    with pytest.raises(ValueError, match="compile is true"):
        ScoreModule(energy, *parts, shape=(4,), compile=True)


@pytest.mark.parametrize("word", ["graphs", 1])
def test_another_word_for_compile_is_refused(word):
    with pytest.raises(ValueError, match=f"compile={word!r}"):
        small_module(compile=word)


@pytest.mark.parametrize(
    ("settings", "benchmark"),
    [({}, True), ({"benchmark": False}, False), ({"deterministic": True}, False)],
    ids=lambda value: str(value),
)
def test_the_settings_of_the_trainer_override_those_of_a_gpu(settings, benchmark, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    precision = torch.get_float32_matmul_precision()
    try:
        use_fast_kernels()
        Trainer(accelerator="cpu", logger=False, **settings)
        assert torch.backends.cudnn.benchmark == benchmark
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision(precision)
