"""What the two commands answer to wrong settings, options and files: one line, and nothing is left behind."""

import gc
import os
import re
import subprocess
import sys
import warnings
from argparse import Namespace
from inspect import signature
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from ncsn import MNIST, UNet
from ncsn.cli.devices import fabric_for
from ncsn.cli.errors import silence_libraries
from ncsn.cli.main import imported, main, sample
from ncsn.cli.train import with_config_files
from ncsn.model.classes import ALL_ROOMS, classes
from ncsn.noise import NoiseSchedule
from ncsn.samplers import Sampler
from ncsn.training.checks import with_hint
from ncsn.training.hints import MOST_USED
from ncsn.training.run import make_parser

from test_cli import REPOSITORY, SMALL, refusal, run_train, train_small

FEATURES = ["--quality.features", "checkpoints/features_digits.safetensors"]
WRONG_TRAINING = [
    (["--model.warmpu", "3"], "--model.warmpu"),
    (["--model.denoiser.init_args.network.init_args.widht", "3"], "model.denoiser.network: .*widht"),
    (["--model.schedule.init_args.sigma_min", "5"], r"got sigma_min=5.0, sigma_max=2.0"),
    (["--model.schedule.init_args.levels", "0"], "levels=0"),
    (
        ["--model.objective", "CorruptionScoreMatching", "--model.objective.corruption", "LaplaceNoise"],
        r"AnnealedLangevin\(.*denoise=True\) assumes Gaussian noise, .* AnnealedLangevin and denoise: false",
    ),
    (["--model.schedule", "ncsn.noise.NoSuch"], "model.schedule: .*NoSuch"),
    (["--model.schedule", "torch.nn.Linear"], "model.schedule: .*NoiseSchedule"),
    (["--model.sampler.init_args.epsilon", "0.5"], "diverges; .* got epsilon=0.5"),
    (["--model.sampler.init_args.epsilon", "abc"], "model.sampler.epsilon: expected .*float.* got abc"),
    (["--model.warmup", "abc"], "model.warmup: expected int, got abc"),
    (["--data", "ncsn.data.Nope"], "data: .*Nope"),
    (["--data", "ImageFolderr"], "data: .*ImageFolderr; did you mean 'ImageFolder'"),
    (["--model.sampler", "heun"], "model.sampler: .*heun; did you mean 'Heun'"),
    (["--data.batch_sizee", "3"], "batch_sizee.*; did you mean 'batch_size'"),
    (["--batch-size", "32"], r"--batch-size 32; did you mean --data.batch_size N\?"),
    (["--lr", "1e-3"], r"--lr 1e-3; did you mean --model.optimizer.lr X\?"),
    (["--epochs", "3"], r"--epochs 3; did you mean --trainer.max_epochs VALUE\?"),
    (["--resume"], r"--resume; did you mean --ckpt_path last\?"),
    (["--model", "digits"], "model: digits is not a file of settings; .*: --model.weights digits"),
    (["--config", "digts"], r"there is no file digts; did you mean 'digits'\?"),
    (["--data.batch_size", "0"], "batch_size is 0"),
    (["--data.batch_size", "5000"], "batch_size is 5000, .* 1617"),
    (["--data", "ImageFolder", "--data.root", "no/such", "--data.size", "8"], "root is no/such"),
    (["--trainer.accelerator", "cuda"], "CUDAAccelerator.*available"),
    (["--trainer.accelerator", "tpu"], "trainer: .*torch_xla"),
    (["--trainer.max_steps", "-5"], "max_steps"),
    (["--seed_everything", "-1"], "seed_everything: expected .* got -1"),
    (["--config", "nope.yaml"], "config: .*nope.yaml"),
    (["--ckpt_path", "nope.ckpt"], "there is no file nope.ckpt"),
    (["--ckpt_path", "small.yaml"], "small.yaml is not a checkpoint"),
    (["--model.optimizer.lr", "-1"], "model.optimizer.lr: -1.0, and must be positive"),
    (["--trainer.max_steps", "0"], "trainer.max_steps: 0 leaves nothing to do"),
    (["--trainer.val_check_interval", "0"], "trainer.val_check_interval: 0"),
    (
        ["--trainer.val_check_interval", "{minuets: 5}"],
        "trainer.val_check_interval: .*minuets.*give training batches, or",
    ),
    (
        ["--model.optimizer.fused", "true", "--trainer.precision", "bf16-mixed", "--trainer.gradient_clip_val", "1"],
        "trainer.gradient_clip_val: in bf16-mixed it does not go with model.optimizer.fused: true; set it to false",
    ),
    (
        [
            "--trainer.check_val_every_n_epoch",
            "1",
            "--trainer.val_check_interval",
            "1100",
            "--trainer.max_steps",
            "2000",
        ],
        "1100.* batches .25",
    ),
    (["--trainer.check_val_every_n_epoch", "0"], "check_val_every_n_epoch: expected at least 1, got 0"),
    (["--trainer.gradient_clip_val", "-1"], "gradient_clip_val: expected at least 0, got -1"),
    (["--trainer.limit_train_batches", "0.001"], "trainer: .*limit_train_batches=0.04"),
    (["--trainer.accumulate_grad_batches", "26"], "expected at most the 25 batches of an epoch, got 26; lower it"),
    (["--trainer.callbacks+=LearningRateFinder"], "LearningRateFinder is not for .* set model.optimizer.lr"),
    (["--trainer.callbacks+=BatchSizeFinder"], "BatchSizeFinder is not for these runs; set data.batch_size"),
    (["--trainer.callbacks+=BackboneFinetuning"], "trainer: .*no attribute 'backbone'"),
    (["--trainer.devices", "[99]"], "trainer: .devices. selected"),
    (["--trainer.max_steps", "12:30:00"], "trainer.max_steps: expected a number, got 12:30:00"),
    (["--trainer.max_steps=1:30"], "trainer.max_steps: expected a number, got 1:30"),
    (["--trainer.precision", "bf16-true"], "trainer.precision: bf16-true is none of .*bf16-mixed"),
    (["--trainer.overfit_batches", "1"], "trainer.overfit_batches"),
    (["--name", "../evil"], r"name: '\.\./evil'"),
    (["--model.denoiser.network", "test_cli.Plain", "--data.labels", "true"], "data.labels: true, .* Plain"),
    (["--ckpt_path", "last"], "there is no checkpoint under checkpoints/small"),
    (["--checkpoint.every", "0"], "every=0"),
    (["--quality.features", "absent.safetensors"], "features: there is no file absent.safetensors"),
    (["--quality.features", "small.yaml"], "small.yaml is not a safetensors file, or is damaged"),
    ([*FEATURES, "--quality.count", "64"], "SampleQuality: count is 64, and must be above .* 64"),
    ([*FEATURES, "--quality.levels", "1"], "SampleQuality: levels is 1, and must be at least 2"),
    (["--quality.batch_size", "0"], "SampleQuality: batch_size is 0, and must be at least 1"),
    (
        [*FEATURES, "--quality.sampler", "Gibbs", "--quality.sampler.sweeps", "1"],
        "Gibbs takes a log-probability",
    ),
]


@pytest.mark.parametrize(("options", "message"), WRONG_TRAINING)
def test_a_wrong_setting_is_answered_in_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    status, line = refusal(capsys, lambda: run_train("--config", "small.yaml", *options))
    assert status == 2
    assert re.search(message, line), line
    assert [file.name for file in tmp_path.iterdir()] == ["small.yaml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALL.replace("sigma_max", "sigma_mxa"), "model.schedule: .*sigma_mxa.*; did you mean 'sigma_max'"),
        (SMALL + "modle: {warmup: 3}", "modle"),
        (SMALL.replace("max_steps", "max_setps"), "trainer.*max_setps"),
        (SMALL.replace("batch_size: 64", "batch_size: null"), "data.batch_size: null, and must have a value"),
        (SMALL.replace("levels: 6", "levels: 010"), "line 10: 010, but YAML reads it as another number; write that"),
        (SMALL.replace("max_steps: 7", "max_steps: 12:30:00"), "line 13: 12:30:00, but YAML reads it as another"),
        (SMALL.replace("name: small", "name: 2024"), "name: expected str, got 2024; put it in quotes"),
        ("model: {", "line 1"),
        # Words of earlier versions do not turn the checks off.
        ("# corruption\n" + SMALL.replace("levels: 6", "levels: 010"), "line 11: 010, but YAML reads it as another"),
        ("# corruption", "wrong.yaml"),
    ],
)
def test_a_wrong_file_is_answered_in_one_line(tmp_path, monkeypatch, capsys, text, message):
    monkeypatch.chdir(tmp_path)
    Path("wrong.yaml").write_text(text)
    status, line = refusal(capsys, lambda: run_train("--config", "wrong.yaml"))
    assert (status, bool(re.search(message, line))) == (2, True), line


def test_a_checkpoint_of_another_network_is_not_gone_on_from(here, capsys):
    options = ["--config", "small.yaml", "--ckpt_path", "last", "--model.denoiser.network.width", "16"]
    status, line = refusal(capsys, lambda: run_train(*options))
    assert status == 2
    assert re.search(r"model.denoiser.network.width: 16, but 8 in checkpoints/small/step=7.ckpt", line), line


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_picture_that_breaks_while_it_is_streamed_is_named(tmp_path, monkeypatch, capsys, workers):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    Path("pictures").mkdir()
    for i in range(20):
        Path(f"pictures/{i}.png").write_bytes(b"not a picture")
    data = ["--data", "ImageFolder", "--data.root", "pictures", "--data.size", "8", "--data.memory", "0"]
    options = [*data, "--data.workers", workers, "--data.batch_size", "8"]
    status, line = refusal(capsys, lambda: run_train("--config", "small.yaml", *options))
    assert status == 1
    assert re.search(r"cannot read pictures/\d+\.png as an image", line)


def test_a_setting_that_is_only_tried_during_a_run_is_answered_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    options = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=nope", "--samples.count", "0"]
    status, line = refusal(capsys, lambda: run_train("--config", "small.yaml", *options))
    assert (status, bool(re.search("nope.*val/loss", line))) == (2, True), line


def test_a_trial_run_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    monkeypatch.setattr("ncsn.training.callbacks.quality.frechet", lambda *_, **__: 1.0)
    trial = [*FEATURES, "--quality.count", "65", "--trainer.fast_dev_run", "true"]
    run_train("--config", "small.yaml", *trial)
    assert "Trained 1 steps." in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["small.yaml"]


def test_a_run_without_a_logger_or_a_bar(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("of the user")
    train_small(tmp_path, "--trainer.logger", "false", "--trainer.enable_progress_bar", "false")
    assert (tmp_path / "config.yaml").read_text() == "of the user"
    assert not (tmp_path / "logs").exists()
    assert "Trained 7 steps." in capsys.readouterr().out


def test_data_that_cannot_be_downloaded_is_a_failure_of_the_world(tmp_path, monkeypatch, capsys):
    def offline(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", offline)
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    options = ["--config", "small.yaml", "--data", "ncsn.data.MNIST", "--data.root", "nowhere"]
    status, line = refusal(capsys, lambda: run_train(*options))
    assert status == 1
    assert re.search("MNIST is not in .*Error downloading .*no network.* put the files there", line)
    assert [file.name for file in tmp_path.iterdir()] == ["small.yaml"]


def test_a_lack_of_memory_before_the_first_step_is_no_wrong_setting(tmp_path, monkeypatch, capsys):
    raised = "def full(*_): raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB.')"
    names = {"torch": torch}
    exec(compile(raised, torch.__file__, "exec"), names)  # as if in torch, which brings the weights to the device
    monkeypatch.setattr(SingleDeviceStrategy, "model_to_device", names["full"])
    status, line = refusal(capsys, lambda: train_small(tmp_path))
    assert (status, line[:26]) == (1, "error: CUDA out of memory.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nope.ckpt"], "there is no file nope.ckpt"),
        (["small.yaml"], "small.yaml is not a checkpoint"),
        (["--num-samples", "0"], "--num-samples: expected an integer from 1 to 10000000, got '0'"),
        (["--num-samples", "1.5"], "--num-samples"),
        (["--seed", "-1"], "--seed"),
        (["--batch-size", "x"], "--batch-size"),
        (["--device", "cuda:7"], "--device: expected one of cpu, got cuda:7"),
        (["--out", "no/such/a.png"], "--out: there is no folder no/such"),
        (["--out", "a.xyz"], "--out: expected .* got a.xyz"),
        (["--foo"], "--foo"),
        (["--num_samples", "3"], "did you mean '--num-samples'"),
        (["--checkpoint", "a.ckpt"], r"--checkpoint; did you mean --model FILE\?"),
        (["--num-samples", "3000000"], "3,000,000 of 1,024 pixels are more than the 134,217,728 of an image; lower it"),
        (
            ["--out", "a.gif", "--upscale", "256", "--num-samples", "9"],
            "--num-samples: 9 of 29,360,128 pixels are more",
        ),
        (["--sampler", "heun"], "got heun; did you mean 'Heun'"),
        (["--sampler", "NoSuch"], "--sampler: expected one of Ancestral, .*got NoSuch"),
        (["--sampler.epsilo", "1"], "'epsilo' is not accepted; did you mean 'epsilon'"),
        (["--sampler.epsilon", "-1"], "expected epsilon > 0, got epsilon=-1"),
        (["--sampler.epsilon", "1"], "diverges; .* got epsilon=1"),
        (["--sampler.epsilon", "abc"], "sampler.epsilon: expected .*float.* got abc"),
        (["--sampler.foo", "1"], "sampler: Option 'foo' is not accepted"),
    ],
)
def test_a_wrong_option_of_sample_is_answered_in_one_line(here, capsys, options, message):
    before = {file: file.stat().st_mtime_ns for file in here.rglob("*")}
    status, line = refusal(capsys, lambda: sample(options))
    assert status == 2
    assert re.search(message, line), line
    assert {file: file.stat().st_mtime_ns for file in here.rglob("*")} == before


def test_several_devices_are_not_taken_from_one_name(monkeypatch):
    monkeypatch.setattr("ncsn.cli.devices.device_of", torch.device)
    with pytest.raises(ValueError, match="--devices: 2, but --device cuda:1 names one"):
        fabric_for(Namespace(device="cuda:1", devices=2, num_nodes=1))


def test_a_walk_that_diverges_writes_nothing(here, capsys):
    options = ["--sampler", "test_cli.Still", "--sampler.grey", ".nan", "--out", "diverged.png"]
    status, line = refusal(capsys, lambda: sample(options))
    assert status == 3
    assert "diverged at noise level 2" in line
    assert not Path("diverged.png").exists()


@pytest.mark.parametrize(("command", "shown"), [("train", "--model.optimizer.lr X"), ("sample", "--sampler.NAME")])
def test_help_needs_no_torch(command, shown):
    code = f"import sys; sys.argv = ['{command}.py', '--help']\ntry: import {command}; {command}.{command}()\n"
    code += "except SystemExit: pass\nsys.exit('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == 0
    assert shown in ran.stdout
    assert max(map(len, ran.stdout.splitlines())) <= 80


def test_the_help_of_training_is_the_options_used_most_and_each_is_accepted(capsys):
    main(["train", "--help"])
    shown = re.findall(r"^  --([\w.]+) ", capsys.readouterr().out, re.M)
    assert shown[: len(MOST_USED)] == list(MOST_USED)
    every, network = make_parser().format_help(), signature(UNet).parameters
    for name in set(MOST_USED) - {"data.root", "data.batch_size", "data.labels", "model.denoiser.network.width"}:
        option = re.search(rf"--{name}[ ,]", every)  # with a comma before its other name in Python 3.13
        assert option or name in ("model.optimizer.lr", "model.schedule.sigma_max"), name
    assert "width" in network
    assert {"root", "batch_size", "labels"} <= set(signature(MNIST).parameters)


@pytest.mark.parametrize("option", ["--model.denoiser.network.help=UNet", "--model.denoiser.help=EDMDenoiser"])
def test_the_help_of_a_class_has_options_that_are_accepted_and_no_class_of_torch(capsys, option):
    with pytest.raises(SystemExit):
        run_train(option)
    text = capsys.readouterr().out
    names = set(re.findall(r"--([\w.]+)", text)) - {option[2:].partition("=")[0]}
    assert len(text.splitlines()) < 50
    assert len(names) > 2
    assert all(name.startswith(option[2:].partition(".help")[0]) for name in names)
    assert "torch" not in text


@pytest.mark.parametrize("given", ["modle.optimizer.lr", "model.optimiser.lr", "Model.optimizer.lrr"])
def test_an_option_with_a_wrong_section_is_hinted_at_whole(given):
    message = with_hint(f"unrecognized arguments: --{given} 3", make_parser())
    assert message == f"unrecognized arguments: --{given} 3; did you mean --model.optimizer.lr?"


@pytest.mark.parametrize("arguments", [["configs"], ["--help"], ["--version"], ["train", "--help"]])
def test_a_command_whose_reader_has_gone_ends_silently(monkeypatch, capsys, arguments):
    end, start = os.pipe()
    os.close(end)
    with os.fdopen(start, "w") as out:  # whose end is silent, too
        monkeypatch.setattr("sys.stdout", out)
        with pytest.raises(SystemExit, match="141"):
            main(arguments)
    assert capsys.readouterr().err == ""


def test_every_argument_of_a_part_is_described():
    for made in {made for made in classes(ALL_ROOMS).values() if issubclass(made, (NoiseSchedule, Sampler))}:
        assert all(f" {name}: " in made.__doc__ for name in signature(made).parameters), made


@pytest.mark.parametrize("logger", [["--trainer.logger=CSVLogger"], ["--trainer.logger", "CSVLogger"]])
def test_a_logger_of_files_needs_no_folder(logger):
    assert with_config_files(logger)[2:] == [*logger, "--trainer.logger.save_dir", "logs"]


def test_options_override_the_configuration_in_any_order(tmp_path):
    small = tmp_path / "small.yaml"
    small.write_text(SMALL)
    assert with_config_files(["--name", "x", "-c", str(small)]) == ["--config", str(small), "--name", "x"]


def test_a_warning_is_one_line(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    silence_libraries()
    text = warnings.formatwarning(UserWarning("20 of 220\n files"), UserWarning, "folder.py", 3)
    assert text == "warning: 20 of 220 files\n"


@pytest.mark.parametrize("enabled", [True, False])
def test_an_import_leaves_the_search_for_garbage_as_it_was(monkeypatch, enabled):
    monkeypatch.delitem(sys.modules, "this", raising=False)
    seen = []
    monkeypatch.setattr("ncsn.cli.main.import_module", lambda name: seen.append(gc.isenabled()))
    (gc.enable if enabled else gc.disable)()
    try:
        imported("this")
        assert (seen, gc.isenabled()) == ([False], enabled)
        assert imported("sys") is sys
    finally:
        gc.unfreeze()
        gc.enable()
