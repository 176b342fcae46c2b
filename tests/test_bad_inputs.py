"""Wrong input is answered in one line that names it, with the right exit status, and leaves nothing behind."""

import io
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ncsn.cli.config_file import check_config
from ncsn.cli.main import main, sample
from ncsn.cli.options import parse
from ncsn.data import FileImages, ImageFolder
from ncsn.model import checkpoint_file
from ncsn.networks import UNet
from ncsn.training.callbacks import Checkpoint
from PIL import Image
from torch.utils.data import get_worker_info

from test_cli import REPOSITORY, SMALL, refusal, run_train, train_small
from test_files import HOLDER

FILES = {
    "a duplicate": (SMALL + "name: other\n", "line 16: name is set twice"),
    "a duplicate below": (SMALL.replace("levels: 6", "levels: 6, levels: 7"), "line 10: levels is set twice"),
    "broken YAML": ("model: {", "line 1: it is not YAML"),
    "a tab": ("model:\n\tdenoiser: 3", "line 2: it is not YAML"),
    "not UTF-8": (b"name: \xff\xfe", "is not a text of YAML"),
    "nothing": ("", "has no sections"),
    "a list": ("- 1\n- 2\n", "has no sections"),
    "text": ("hello", "has no sections"),
    "code": ("name: !!python/object/apply:os.system ['touch marker']", "line 1: .* is not read"),
    "a date": (SMALL.replace("small", "2024-01-01"), "line 2: .*timestamp is not read; put it in quotes if it is text"),
    "a mark of one's own": ("name: !mine 3", "line 1: .* is not read"),
    "laughs": (
        "\n".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" if i else "a0: &a0 [1]" for i in range(40)),
        "more than 10,000 values",
    ),
    "depth": ("data: " + "[" * 3000, "is not"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_answered_before_torch_is_imported(tmp_path, monkeypatch, capsys, name):
    text, message = FILES[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ncsn.training.run", None)  # what imports torch
    Path("wrong.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    status, line = refusal(capsys, lambda: run_train("--config", "wrong.yaml"))
    assert (status, bool(re.search(message, line))) == (2, True), line
    assert line.startswith("error: --config: wrong.yaml")
    assert [file.name for file in tmp_path.iterdir()] == ["wrong.yaml"]


def test_that_takes_half_a_second(tmp_path):
    (tmp_path / "wrong.yaml").write_text(SMALL + "name: other")
    code = "import sys, train; sys.argv = ['train.py', '--config=wrong.yaml']\n"
    code += "try: train.train()\nexcept SystemExit as stop: assert stop.code == 2\nassert 'torch' not in sys.modules"
    command, took = [sys.executable, "-c", code], []
    for _ in range(3):
        began = time.monotonic()
        environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin"}
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
        took.append(time.monotonic() - began)
        assert ran.returncode == 0, ran.stderr
    assert min(took) < 1.5  # 0.3 s where nothing else runs


@pytest.mark.parametrize("file", sorted((REPOSITORY / "configs").rglob("*.yaml")), ids=lambda file: file.stem)
def test_nothing_is_said_against_a_config_that_is_right(file):
    check_config(file)


OPTIONS = {
    "a rate of 0": (["--model.optimizer.lr", "0"], "model.optimizer.lr: 0"),
    "a rate that is no number": (["--model.optimizer.lr", ".nan"], "model.optimizer.lr: nan, and must be positive"),
    "a rate of nan": (["--model.optimizer.lr", "nan"], "model.optimizer.lr: expected float, got nan"),
    "a negative rate": (["--model.optimizer.lr", "-1"], "model.optimizer.lr: -1.0, and must be positive"),
    "an infinite rate": (["--model.optimizer.lr", ".inf"], "model.optimizer.lr: inf"),
    "a rate that 32 bits do not hold": (["--model.optimizer.lr", "7e71"], "model.optimizer: value cannot be converted"),
    "a list for a rate": (["--model.optimizer.lr", "[1, 2]"], r"model.optimizer.lr: expected float, got \[1, 2\]"),
    "betas": (["--model.optimizer.betas", "[0.9, 1.0]"], "beta"),
    "a negative level": (["--model.schedule.sigma_min", "-1"], "sigma_min"),
    "a level of 0": (["--model.schedule.sigma_min", "0"], "sigma_min"),
    "an infinite level": (["--model.schedule.sigma_max", "inf"], "sigma_max"),
    "no levels": (["--model.schedule.levels", "-1"], "levels=-1"),
    "one level": (["--model.schedule.levels", "1"], "levels=1"),
    "a billion levels": (["--model.schedule.levels", "1000000000"], "levels=1000000000"),
    "null for a number": (["--model.schedule.levels", "null"], "model.schedule.*levels"),
    "true for a number": (["--model.schedule.sigma_max", "abc"], "model.schedule.*sigma_max"),
    "half an image": (["--data.batch_size", "2.5"], "data.*batch_size"),
    "minus one image": (["--data.batch_size", "-1"], "batch_size is -1"),
    "no batches a step": (
        ["--trainer.accumulate_grad_batches", "0"],
        "accumulate_grad_batches: expected at least 1, got 0",
    ),
    "no batches": (["--trainer.limit_train_batches", "0"], "trainer.limit_train_batches: 0 leaves nothing to do"),
    "no epochs": (["--trainer.max_epochs", "0", "--trainer.max_steps", "-1"], "trainer.max_epochs"),
    "a seed too large": (["--seed_everything", "4294967296"], "seed_everything: expected .* got 4294967296"),
    "a seed in letters": (["--seed_everything", "abc"], "seed_everything"),
    "no seed": (["--seed_everything", "false"], "seed_everything: expected int, got False"),
    "a seed of 1.7": (["--seed_everything", "1.7"], "seed_everything"),
    "half precision": (["--trainer.precision", "fp16"], "trainer.precision"),
    "16-mixed on a CPU": (["--trainer.precision", "16-mixed"], "trainer.precision: 16-mixed"),
    "a device that is not there": (["--trainer.accelerator", "cuda:7"], "cuda:7"),
    "an address": (["--ckpt_path", "http://127.0.0.1:1/a.ckpt"], "only local files are read"),
    "a folder for a checkpoint": (["--ckpt_path", "."], "is a folder"),
    "a billion blocks": (["--model.denoiser.network.blocks", "1000000000"], "larger network"),
    "no name": (["--name", ""], "name: ''"),
    "the name of the folder above": (["--name", ".."], r"name: '\.\.' is not the name of a folder"),
    "99 devices": (["--trainer.devices", "99", "--trainer.strategy", "ddp"], r"devices: expected at most \d+ .* 99"),
    "forked processes": (["--trainer.strategy", "ddp_fork"], "trainer.strategy: ddp_fork would train in .*; take ddp"),
    "machines that were not started": (["--trainer.num_nodes", "3"], "num_nodes: 3 machines, .* torchrun or srun"),
    "a decay of 1": (["--ema.decay", "1"], "decay=1"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_is_answered_in_one_line(tmp_path, monkeypatch, capsys, name):
    options, message = OPTIONS[name]
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    status, line = refusal(capsys, lambda: run_train("--config", "small.yaml", *options))
    assert (status, bool(re.search(message, line))) == (2, True), line
    assert [file.name for file in tmp_path.iterdir()] == ["small.yaml"]


def test_null_for_a_seed_is_answered_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL.replace("seed_everything: 0", "seed_everything: null"))
    status, line = refusal(capsys, lambda: run_train("--config", "small.yaml"))
    assert (status, "seed_everything: expected an integer" in line) == (2, True), line


def idx(folder: Path, images: bytes, labels: bytes) -> None:
    raw = folder / "MNIST/raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)


LABELS = struct.pack(">2i", 0x801, 4) + bytes(4)


def images(count=4, magic=0x803, pixels=4 * 784) -> bytes:
    return struct.pack(">4i", magic, count, 28, 28) + bytes(pixels)


DATA = {
    "short": (images(pixels=100), LABELS),
    "long": (images(pixels=10_000), LABELS),
    "wrong magic": (images(magic=0x12345678), LABELS),
    "another kind of number": (images(magic=0xD03, pixels=4 * 4 * 784), LABELS),
    "a count of 2^31 - 1": (images(count=2**31 - 1), LABELS),
    "empty": (b"", LABELS),
    "three images and four labels": (images(3, pixels=3 * 784), LABELS),
    "labels above 9": (images(), struct.pack(">2i", 0x801, 4) + bytes([200] * 4)),
}


@pytest.mark.parametrize("name", DATA)
def test_a_broken_data_set_is_answered_in_one_line(tmp_path, monkeypatch, capsys, name):
    idx(tmp_path / "data", *DATA[name])
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    options = ["--data", "ncsn.data.MNIST", "--data.batch_size", "2"]
    status, line = refusal(capsys, lambda: run_train("--config", "small.yaml", *options))
    assert status == 2
    assert re.search("MNIST: the files under data are damaged .*; remove them", line), line
    assert {file.name for file in tmp_path.iterdir()} == {"small.yaml", "data"}


def image_folder(folder: Path) -> None:
    folder.mkdir()
    for i in range(20):
        Image.new("L", (8, 8), 10 * i).save(folder / f"{i:02d}.png")


BROKEN = {
    "text": lambda file: file.write_text("hello"),
    "nothing": lambda file: file.write_bytes(b""),
    "half an image": lambda file: file.write_bytes(file.read_bytes()[:40]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_named_before_the_run_begins(tmp_path, monkeypatch, capsys, name):
    image_folder(tmp_path / "images")
    BROKEN[name](tmp_path / "images/07.png")
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    options = ["--data", "ImageFolder", "--data.root", "images", "--data.size", "8", "--data.batch_size", "4"]
    status, line = refusal(capsys, lambda: run_train("--config", "small.yaml", *options))
    assert (status, "cannot read images/07.png as an image" in line) == (2, True), line
    assert {file.name for file in tmp_path.iterdir()} == {"small.yaml", "images"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run of seven steps."""
    folder = tmp_path_factory.mktemp("run")
    train_small(folder, "--samples.count", "0")
    return folder


MIXED = {
    "batch size": (["--data.batch_size", "32"], "data.batch_size: 32, but 64 in checkpoints/small/step=7.ckpt"),
    "levels": (["--model.schedule.levels", "9"], "model.schedule.levels: 9, but 6 in"),
    "network": (["--model.denoiser.network.width", "12"], "model.denoiser.network.width: 12, but 8 in"),
    "seed": (["--seed_everything", "5"], "seed_everything: 5, but 0 in"),
    "data": (["--data", "BinaryDigits", "--data.batch_size=64"], "data: BinaryDigits, but Digits in"),
    "labels": (["--model.label_dropout", "0.5"], "model.label_dropout: 0.5, but 0.1 in"),
    "epoch": (["--trainer.limit_train_batches", "4"], "trainer.limit_train_batches: 4"),
    "accumulation": (["--trainer.accumulate_grad_batches", "2"], "trainer.accumulate_grad_batches: 2, but 1 in"),
}


@pytest.mark.parametrize("name", MIXED)
def test_a_run_goes_on_as_it_began(run, monkeypatch, capsys, name):
    options, message = MIXED[name]
    monkeypatch.chdir(run)
    before = sorted(run.rglob("*"))
    more = ["--ckpt_path", "last", "--trainer.max_steps", "9", *options]
    status, line = refusal(capsys, lambda: run_train("--config", "small.yaml", *more))
    assert (status, message in line) == (2, True), line
    assert sorted(run.rglob("*")) == before


STRANGE = {
    "no steps": lambda content: content.pop("global_step"),
    "another optimiser": lambda content: content["optimizer_states"][0]["param_groups"].clear(),
    "a number for loops": lambda content: content["loops"].update(fit_loop=7),
    "a version that is none": lambda content: content.update({"pytorch-lightning_version": "new"}),
    "a number for skipped steps": lambda content: content.update(skipped_steps=[7]),
    "an optimiser's state of another shape": lambda content: content["optimizer_states"][0]["state"][0].update(
        exp_avg=torch.ones(3)
    ),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_checkpoint_that_is_whole_and_makes_no_sense_is_refused(run, tmp_path, monkeypatch, capsys, name):
    file = tmp_path / "checkpoints/small/step=7.ckpt"
    content = checkpoint_file.read(run / "checkpoints/small/step=7.ckpt")
    STRANGE[name](content)
    checkpoint_file.write(content, file)
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    options = ["--config", "small.yaml", "--ckpt_path", "last", "--trainer.max_steps", "9"]
    status, line = refusal(capsys, lambda: run_train(*options))
    assert (status, bool(re.search("--ckpt_path: .* cannot be resumed", line))) == (2, True), line


def test_other_images_in_the_same_folder_are_noticed(tmp_path, monkeypatch, capsys):
    image_folder(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    data = ["--data", "ImageFolder", "--data.root", "images", "--data.size", "8", "--data.channels", "1"]
    options = ["--config", "small.yaml", *data, "--data.batch_size", "4", "--samples.count", "0"]
    Path("small.yaml").write_text(SMALL)
    run_train(*options)
    Image.new("L", (8, 8), 77).save("images/99.png")
    capsys.readouterr()
    again = [*options, "--ckpt_path", "last", "--trainer.max_steps", "9"]
    status, line = refusal(capsys, lambda: run_train(*again))
    assert status == 2
    known = r"data: its examples have the fingerprint \w{12}, but \w{12} in .*step=7.ckpt"
    assert re.search(f"{known}; change it back, or go on with --accept_changes true", line), line
    run_train(*again, "--accept_changes", "true")
    out = capsys.readouterr().out
    assert re.search(r"Changed: +data: its examples have the fingerprint \w{12} -> \w{12}", out), out
    assert Path("checkpoints/small/step=9.ckpt").is_file()


def test_a_run_that_meets_broken_images_is_saved_and_names_all_and_goes_on_without_them(tmp_path, monkeypatch, capsys):
    image_folder(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    data = ["--data", "ImageFolder", "--data.root", "images", "--data.size", "8", "--data.channels", "1"]
    data += ["--data.memory", "0", "--data.workers", "0", "--data.batch_size", "4", "--samples.count", "0"]
    options = ["--config", "small.yaml", *data, "--trainer.max_steps", "12", "--checkpoint.every", "1000"]
    options += ["--trainer.val_check_interval", "1000"]
    files, batch_end = sorted(Path("images").iterdir()), Checkpoint.on_train_batch_end

    def broken(self, trainer, *others):
        if trainer.global_step == 3:
            for file in files[:2]:
                file.write_bytes(b"broken")
        batch_end(self, trainer, *others)

    monkeypatch.setattr(Checkpoint, "on_train_batch_end", broken)
    status, line = refusal(capsys, lambda: run_train(*options))
    assert status == 1
    assert all(str(file) in line for file in files[:2]), line
    assert "--ckpt_path last (--accept_changes true" in line
    (saved,) = Path("checkpoints/small").glob("*.ckpt")
    assert int(saved.stem.removeprefix("step=")) >= 3
    for file in files[:2]:
        file.unlink()
    run_train(*options, "--ckpt_path", "last", "--accept_changes", "true")
    assert Path("checkpoints/small/step=12.ckpt").is_file()


def test_a_run_goes_on_with_changes_that_are_accepted_and_says_all(run, tmp_path, monkeypatch, capsys):
    shutil.copytree(run, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    options = ["--config", "small.yaml", "--ckpt_path", "last", "--accept_changes", "true", "--samples.count", "0"]
    network = [*options, "--model.denoiser.network.width", "16"]
    status, line = refusal(capsys, lambda: run_train(*network))
    assert (status, "change it back, or give another --name" in line) == (2, True), line
    changed = ["--trainer.max_steps", "9", "--data.batch_size", "32", "--model.cooldown", "1", "--ema.decay", "0.5"]
    run_train(*options, *changed, "--trainer.gradient_clip_val", "0.5")
    out = capsys.readouterr().out
    assert re.findall(r"Changed: +(.*)", out) == [
        "data.batch_size: 64 -> 32",
        "model.cooldown: 0 -> 1",
        "ema.decay: 0.999 -> 0.5",
        "trainer.max_steps: 7 -> 9",
        "trainer.gradient_clip_val: None -> 0.5",
    ]
    content = checkpoint_file.read("checkpoints/small/step=9.ckpt")
    assert content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"] == 9


def test_what_may_change_takes_effect_and_a_finished_run_is_left_alone(run, tmp_path, monkeypatch, capsys):
    shutil.copytree(run, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    run_train("--config", "small.yaml", "--ckpt_path", "last")
    assert "step=7.ckpt is of the end of the run: trainer.max_steps is 7" in capsys.readouterr().out
    more = ["--trainer.max_steps", "8", "--model.optimizer.lr", "0.5", "--model.sampler.steps", "2"]
    run_train("--config", "small.yaml", "--ckpt_path", "last", *more, "--samples.count", "0")
    content = torch.load("checkpoints/small/step=8.ckpt", weights_only=True)
    assert content["optimizer_states"][0]["param_groups"][0]["lr"] == 0.5
    assert content["hyper_parameters"]["sampler"]["init_args"]["steps"] == 2


def test_a_new_run_does_not_go_into_the_folder_of_another(run, monkeypatch, capsys):
    monkeypatch.chdir(run)
    status, line = refusal(capsys, lambda: run_train("--config", "small.yaml"))
    assert (status, "name: checkpoints/small has checkpoints already" in line) == (2, True)
    older = ["--ckpt_path", "checkpoints/small/step=5.ckpt"]
    status, line = refusal(capsys, lambda: run_train("--config", "small.yaml", *older))
    assert (status, "step=5.ckpt, but checkpoints/small has newer checkpoints" in line) == (2, True)


def test_a_checkpoint_with_one_set_of_weights_has_no_raw_ones(run, tmp_path, capsys):
    from ncsn.model.load import load, save_safetensors

    save_safetensors(load(run / "checkpoints/small/step=7.ckpt"), tmp_path / "model.safetensors")
    wish = [str(tmp_path / "model.safetensors"), "--raw", "--out", str(tmp_path / "a.png")]
    status, line = refusal(capsys, lambda: sample(wish))
    assert (status, "has one set of weights alone; leave out --raw" in line) == (2, True)


def test_a_file_in_the_place_of_the_folder_is_a_failure_of_the_world(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("small.yaml", "checkpoints"):
        Path(name).write_text(SMALL)
    status, line = refusal(capsys, lambda: run_train("--config", "small.yaml"))
    assert (status, "checkpoints" in line) == (1, True)


@pytest.mark.parametrize("place", ["logs", "logs/small"])
def test_logs_that_cannot_be_written_are_answered_before_the_run_begins(tmp_path, monkeypatch, capsys, place):
    monkeypatch.chdir(tmp_path)
    for name in ("small.yaml", place):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(SMALL)
    status, line = refusal(capsys, lambda: run_train("--config", "small.yaml"))
    assert (status, bool(re.search(f"error: cannot write to .*{place}: Not a directory", line))) == (1, True), line
    assert {file.name for file in tmp_path.iterdir()} == {"small.yaml", "logs"}


def test_a_second_run_into_the_same_folder_is_refused_with_the_first_one_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    command = [sys.executable, "-c", HOLDER, "checkpoints/small"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(REPOSITORY)})
    assert process.stdout.readline() == "held\n"
    status, line = refusal(capsys, lambda: run_train("--config", "small.yaml"))
    assert (status, f"checkpoints/small is in use by process {process.pid} on " in line) == (2, True), line
    process.kill()
    process.wait()
    run_train("--config", "small.yaml", "--trainer.max_steps", "1", "--samples.count", "0")
    assert [file.name for file in Path("checkpoints/small").iterdir()] == ["step=1.ckpt"]


def test_a_worker_that_dies_is_a_failure_of_the_world(tmp_path, monkeypatch, capsys):
    image_folder(tmp_path / "images")
    read = FileImages.read

    def killed(self, file):
        return read(self, file) if get_worker_info() is None else os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(FileImages, "read", killed)
    # Lightning put back the handler of an earlier run in this process, which torch sets once.
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    data = ["--data", "ImageFolder", "--data.root", "images", "--data.size", "8", "--data.batch_size", "4"]
    options = [*data, "--data.memory", "0", "--data.workers", "1"]
    status, line = refusal(capsys, lambda: run_train("--config", "small.yaml", *options))
    assert (status, "data.workers: DataLoader worker" in line) == (1, True), line


@pytest.mark.parametrize(
    ("command", "option", "most"),
    [("sample", "--num-samples", 10**7), ("sample", "--upscale", 256), ("evaluate", "--seeds", 1000)],
)
def test_a_cost_without_a_bound_is_refused_before_torch_is_imported(capsys, command, option, most):
    assert vars(parse(command, [option, str(most)]))[option[2:].replace("-", "_")] == most
    for beyond in (str(most + 1), "9" * 5000):
        status, line = refusal(capsys, lambda given=beyond: parse(command, [option, given]))
        assert (status, f"{option}: expected an integer from 1 to {most}, got" in line) == (2, True), line


def test_more_workers_than_a_machine_has_are_refused(tmp_path):
    for name in "abcd":
        Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match="ImageFolder: workers is 10000, and must be at least 0 and at most 256"):
        ImageFolder(str(tmp_path), 8, workers=10_000)


def test_a_network_of_thousands_of_resolutions_is_refused_before_it_is_built():
    with pytest.raises(ValueError, match="expected at most 16 multipliers, got given=5000"):
        UNet(1, 8, [1] * 5000)


def test_a_name_that_the_terminal_cannot_show_is_printed_escaped(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr("sys.stderr", out)
    with pytest.raises(SystemExit, match="2"):
        main(["sample", "--out", "Bühne\udcff/a.png"])
    out.flush()
    assert out.buffer.getvalue() == b"error: --out: there is no folder B\\xfchne\\udcff\n"
