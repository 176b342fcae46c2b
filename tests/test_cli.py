"""The two commands as a user gives them, in a folder of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from ncsn.cli.main import main, sample, train
from ncsn.cli.options import parse
from ncsn.data import pixel_grid
from ncsn.model.load import load
from ncsn.samplers import AnnealedLangevin, Sampler
from PIL import Image
from torch import nn
from torchvision.transforms.functional import pil_to_tensor

REPOSITORY = Path(__file__).parent.parent
SMALL = """
name: small
seed_everything: 0
data: {class_path: ncsn.data.Digits, init_args: {batch_size: 64}}
model:
  denoiser:
    class_path: ncsn.score.EDMDenoiser
    init_args:
      network: {class_path: ncsn.networks.UNet, init_args: {width: 8, multipliers: [1, 2], blocks: 1}}
  schedule: {class_path: ncsn.noise.GeometricSchedule, init_args: {sigma_max: 2, sigma_min: 0.1, levels: 6}}
  objective: {class_path: ncsn.objectives.EDMScoreMatching}
  sampler: {class_path: ncsn.samplers.AnnealedLangevin, init_args: {epsilon: 1.0e-3, steps: 1}}
trainer: {max_steps: 7, val_check_interval: 4, limit_val_batches: 1, accelerator: cpu}
samples: {count: 4}
checkpoint: {every: 5}
"""


def run_train(*options: str) -> None:
    """`python train.py OPTIONS` in this process and folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *options])
        train()


def train_small(folder: Path, *options: str) -> Path:
    """A run of a few steps in `folder`, and its last checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("small.yaml").write_text(SMALL)
        run_train("--config", "small.yaml", *options)
    return max(folder.rglob("*.ckpt"), key=lambda file: file.stat().st_mtime)


@dataclass(frozen=True)
class Still(Sampler):
    """A sampler of one's own, which draws one grey."""

    grey: float

    def __call__(self, score, x, sigmas):
        for _ in sigmas:
            yield torch.full_like(x, self.grey)


class Plain(nn.Module):
    """A network of one's own, which knows nothing of classes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, c_noise, label=None):
        return self.convolution(x)


def pixels(file: str) -> torch.Tensor:
    with Image.open(file) as picture:
        return pil_to_tensor(picture)


def test_a_run_leaves_checkpoints_logs_and_grids_and_says_where(tmp_path, capsys):
    train_small(tmp_path)
    assert {file.name for file in (tmp_path / "checkpoints/small").iterdir()} == {"step=5.ckpt", "step=7.ckpt"}
    logs = tmp_path / "logs/small/version_0"
    assert (logs / "config.yaml").is_file()
    assert [file.name for file in (logs / "samples").iterdir()] == ["step=0000004.png"]
    before, out = capsys.readouterr().out.split("Trained 7 steps.")
    assert "Device:      1 x cpu, 32-true; batches of 64, up to step 7\n" in before
    assert "Logs:        logs/small/version_0  (tensorboard --logdir logs/small)\n" in before
    for line in (
        "Checkpoint:  checkpoints/small/step=7.ckpt",
        "Logs:        logs/small/version_0",
        "Sample:      ncsn sample checkpoints/small/step=7.ckpt",
    ):
        assert line in out


def test_the_saved_config_is_the_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_train("--config", str(folder / "logs/small/version_0/config.yaml"))
    one, other = (torch.load(at / "checkpoints/small/step=7.ckpt", weights_only=True) for at in (folder, tmp_path))
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())


def test_last_goes_on_where_the_run_ended(tmp_path, capsys, monkeypatch):
    train_small(tmp_path)
    monkeypatch.chdir(tmp_path)
    run_train("--config", "small.yaml", "--ckpt_path", "last", "--trainer.max_steps", "9")
    out = capsys.readouterr().out
    assert "Resuming from checkpoints/small/step=7.ckpt" in out
    checkpoint = torch.load(tmp_path / "checkpoints/small/step=9.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 9
    steps = {int(state["step"]) for state in checkpoint["optimizer_states"][0]["state"].values()}
    assert steps == {9}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The checkpoint of a run of 33 steps that was left alone."""
    path = train_small(tmp_path_factory.mktemp("whole"), "--trainer.max_steps", "33", "--samples.count", "0")
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(("stop", "epochs"), [(7, "-1"), (25, "-1"), (31, "-1"), (7, "2")])
def test_a_resumed_run_ends_as_one_left_alone(tmp_path, whole, stop, epochs):
    options = ["--samples.count", "0", "--trainer.max_epochs", epochs]
    train_small(tmp_path, "--trainer.max_steps", str(stop), *options)
    train_small(tmp_path, "--trainer.max_steps", "33", "--ckpt_path", "last", *options)
    resumed = torch.load(tmp_path / "checkpoints/small/step=33.ckpt", weights_only=True)
    for weights in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, resumed[weights][name]) for name, value in whole[weights].items())


@pytest.mark.parametrize("options", [[], ["--config", "digits"], ["-c=digits"]])
def test_without_a_config_or_by_its_name_the_digits_are_trained(tmp_path, monkeypatch, capsys, options):
    monkeypatch.chdir(tmp_path)
    run_train(*options, "--trainer.max_steps", "1", "--samples.count", "0", "--trainer.accelerator", "cpu")
    out = capsys.readouterr().out
    assert "Training digits" in out
    assert "Trained 1 steps." in out


def test_labels_reach_a_network_that_is_made_for_them(tmp_path):
    checkpoint = train_small(tmp_path, "--data.labels", "true", "--trainer.max_steps", "1")
    module = load(checkpoint)
    assert module.denoiser.network.conditioning.classes == 10
    assert [len(x) for x in module.trajectory(module.start(10), label=torch.arange(10))] == [10] * 6


def test_a_run_starts_from_the_averaged_weights_of_a_file_and_is_resumed_without_it(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    old = folder / "checkpoints/small/step=7.ckpt"
    Path("old.ckpt").write_bytes(old.read_bytes())
    given = ["--config", str(folder / "small.yaml"), "--name", "tuned", "--model.weights", "old.ckpt"]
    still = ["--model.optimizer.lr", "1e-30", "--trainer.max_steps", "1", "--samples.count", "0"]
    run_train(*given, *still)
    averaged = torch.load(old, weights_only=True)["state_dict"]
    count = len(averaged)
    assert capsys.readouterr().err == f"Starting from {count} of {count} weights in old.ckpt\n"
    for raw in (True, False):
        weights = load("checkpoints/tuned/step=1.ckpt", raw).state_dict()
        assert all(torch.equal(weight, averaged[name]) for name, weight in weights.items())
    Path("old.ckpt").unlink()
    run_train(*given, *still, "--ckpt_path", "last", "--trainer.max_steps", "2")
    assert "Trained 2 steps." in capsys.readouterr().out
    assert refusal(capsys, lambda: run_train(*given, "--name", "new")) == (
        2,
        "error: model.weights: there is no file old.ckpt",
    )


def test_a_network_of_ones_own_is_named_in_the_config(tmp_path):
    network = "{class_path: ncsn.networks.UNet, init_args: {width: 8, multipliers: [1, 2], blocks: 1}}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "SMALL", SMALL.replace(network, "{class_path: test_cli.Plain}"))
        checkpoint = train_small(tmp_path, "--trainer.max_steps", "1")
    assert isinstance(load(checkpoint, trust=["test_cli.Plain"]).denoiser.network, Plain)


def test_samples_come_from_the_newest_checkpoint_with_its_averaged_weights(here, capsys):
    sample(["--num-samples", "5", "--seed", "3"])
    module = load("checkpoints/small/step=7.ckpt")
    x = module.sample(5, seed=3)
    assert torch.equal(pixels("samples.png"), pixel_grid(x))
    out = capsys.readouterr().out
    assert "step=7.ckpt" in out
    assert "Wrote samples.png" in out


def test_samples_follow_from_the_seed_and_the_weights(here):
    for name, options in {
        "one": [],
        "same": [],
        "seed": ["--seed", "1"],
        "raw": ["--raw"],
        "steps": ["--sampler.steps", "2"],
    }.items():
        sample(["checkpoints/small/step=5.ckpt", "--num-samples", "4", "--out", f"{name}.png", *options])
    assert torch.equal(pixels("one.png"), pixels("same.png"))
    for other in ("seed", "raw", "steps"):
        assert not torch.equal(pixels("one.png"), pixels(f"{other}.png"))


def test_batches_add_up_to_the_number_asked_for(here):
    sample(["--num-samples", "7", "--batch-size", "3", "--out", "seven.png"])
    assert pixels("seven.png").shape == pixel_grid(torch.zeros(7, 1, 8, 8)).shape


def test_the_sampler_is_overridden_by_setting_and_by_class(here, capsys):
    sample(["--num-samples", "1", "--sampler.epsilon=1e-4", "--sampler.denoise", "false"])
    assert str(AnnealedLangevin(epsilon=1e-4, steps=1, denoise=False)) in capsys.readouterr().out
    sample(["--num-samples", "1", "--sampler", "test_cli.Still", "--sampler.grey", "0.2", "--out", "grey.png"])
    assert pixels("grey.png")[0, 10, 10] == 51


def test_an_automatic_step_is_trained_with_saved_and_asked_for(tmp_path, here, monkeypatch, capsys):
    sample(["--num-samples", "1", "--sampler.epsilon", "auto"])
    assert str(AnnealedLangevin(epsilon="auto", steps=1)) in capsys.readouterr().out
    checkpoint = train_small(tmp_path, "--model.sampler.epsilon", "auto", "--trainer.max_steps", "2")
    assert load(checkpoint).sampler == AnnealedLangevin("auto", 1)
    monkeypatch.chdir(tmp_path)
    sample(["--num-samples", "1"])
    assert Path("samples.png").is_file()
    small = Path("small.yaml")
    small.write_text(small.read_text().replace("epsilon: 1.0e-3", "epsilon: auto"))
    run_train("--config", "small.yaml", "--name", "auto", "--trainer.max_steps", "2")
    assert load("checkpoints/auto/step=2.ckpt").sampler == AnnealedLangevin("auto", 1)


def test_options_of_the_sampler_are_told_from_the_others():
    arguments = ["a.ckpt", "--sampler.x", "-1", "--seed", "3", "--sampler=Y", "--sampler.z=2"]
    options = parse("sample", arguments)
    assert (options.checkpoints, options.seed) == ([Path("a.ckpt")], 3)
    assert options.sampler == ["--sampler.x=-1", "--sampler=Y", "--sampler.z=2"]


def refusal(capsys, call) -> tuple[int, str]:
    """The exit status of a call, and what it wrote to standard error, which must be one line."""
    with pytest.raises(SystemExit) as stopped:
        call()
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return stopped.value.code, lines[0]


def launch(folder: Path, *options: str) -> subprocess.Popen:
    """`python train.py OPTIONS` as a process of its own in `folder`."""
    (folder / "small.yaml").write_text(SMALL)
    command = [sys.executable, str(REPOSITORY / "train.py"), "--config", "small.yaml", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_of_the_last_step(tmp_path, number):
    process = launch(tmp_path, "--trainer.max_steps", "1000000", "--samples.count", "0")
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("step=5.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, out
    assert "Traceback" not in out
    steps = int(out.split("Trained ")[1].split(" steps")[0].replace(",", ""))
    assert torch.load(tmp_path / f"checkpoints/small/step={steps}.ckpt", weights_only=True)["global_step"] == steps


RANKS = """
import json, sys, torch
import ncsn.training.module
from ncsn.cli.main import train

losses = ncsn.training.module.ScoreModule.losses
def noted(self, x, sigma, label=None):
    if self.training:
        with open(f"rank{self.global_rank}.jsonl", "a") as file:
            seen = x.flatten(1).tolist(), sigma.flatten().tolist(), torch.get_rng_state().sum().item()
            print(json.dumps(seen), file=file)
    return losses(self, x, sigma, label)
ncsn.training.module.ScoreModule.losses = noted
train()
"""


@pytest.mark.slow
def test_two_ranks_train_on_different_pictures_with_different_noise(tmp_path, monkeypatch):
    (tmp_path / "small.yaml").write_text(SMALL)
    (tmp_path / "ranks.py").write_text(RANKS)
    options = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
    command = [sys.executable, "ranks.py", "--config", "small.yaml", *options]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("Trained 7 steps.") == 1
    ranks = [[json.loads(line) for line in (tmp_path / f"rank{i}.jsonl").read_text().splitlines()] for i in (0, 1)]
    assert [len(steps) for steps in ranks] == [7, 7]
    seen = [[tuple(x) for step in steps for x in step[0]] for steps in ranks]
    assert len(seen[0]) == len(seen[1]) == 7 * 64
    # Seven steps are within the first epoch; pictures that are twice in the data may be in both shares.
    assert len(set(seen[0]) & set(seen[1])) <= 2
    noise = [(step[1], step[2]) for steps in ranks for step in steps]
    assert len({json.dumps(draw) for draw in noise}) == 14
    monkeypatch.chdir(tmp_path)
    sample(["--num-samples", "4"])
    assert pixels("samples.png").float().std() > 0


def test_a_command_leaves_the_group_of_its_processes_and_not_one_of_its_caller(tmp_path, monkeypatch):
    """The threads of a group, alive at the end of the interpreter, can abort it."""
    group = torch.distributed

    def join(*_):
        group.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)

    try:
        with monkeypatch.context() as patch:
            patch.setattr("ncsn.cli.models.run", join)
            main(["models"])
        assert not group.is_initialized()
        (tmp_path / "store").unlink(missing_ok=True)
        join()
        main(["models"])
        assert group.is_initialized()
    finally:
        if group.is_initialized():
            group.destroy_process_group()
