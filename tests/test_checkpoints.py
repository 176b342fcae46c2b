import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from ncsn.data import Digits
from ncsn.model.checkpoint_file import write
from ncsn.model.load import (
    load,
    load_data,
    newest_checkpoint,
    newest_whole,
    save_safetensors,
)
from ncsn.training.checkpoint_io import DurableCheckpointIO, PatientCheckpointIO
from ncsn.training.module import ScoreModule
from safetensors import safe_open

from test_cli import run_train, train_small


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint of a small run."""
    return train_small(tmp_path_factory.mktemp("run"))


def altered(checkpoint: Path, folder: Path, change) -> Path:
    """A copy of the checkpoint, changed."""
    content = torch.load(checkpoint, weights_only=True)
    change(content)
    write(content, folder / "altered.ckpt")
    return folder / "altered.ckpt"


def test_a_checkpoint_alone_rebuilds_the_model_with_its_averaged_weights(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    by_lightning = ScoreModule.load_from_checkpoint(checkpoint, weights_only=True)
    for module in (load(checkpoint), by_lightning):
        for name, value in module.state_dict().items():
            assert torch.equal(value, content["state_dict"][name])
        assert module.shape == (1, 8, 8)
        assert module.sampler.steps == 1
        assert len(module.schedule.sigmas()) == 6
    assert not load(checkpoint).training


def test_the_raw_weights_are_loaded_where_asked_for(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    raw, averaged = load(checkpoint, raw=True).state_dict(), content["state_dict"]
    assert all(torch.equal(value, content["current_model_state"][name]) for name, value in raw.items())
    assert any(not torch.equal(value, averaged[name]) for name, value in raw.items())


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"<html>not found</html>", b"version https://git-lfs", b"\x80\x02."]
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.ckpt is not a checkpoint, .* \({len(content)} bytes\)"):
        load(tmp_path / "a.ckpt")


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(checkpoint, tmp_path, fraction):
    content = checkpoint.read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(ValueError, match="is damaged"):
        load(tmp_path / "cut.ckpt")


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("save", [torch.save, lambda evil, file: Path(file).write_bytes(pickle.dumps(evil))])
def test_code_in_a_file_is_never_run(tmp_path, save):
    save({"state_dict": Evil(tmp_path / "marker")}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="holds code, which is not run"):
        load(tmp_path / "evil.ckpt")
    assert not (tmp_path / "marker").exists()


def test_only_classes_of_the_known_kinds_are_built(checkpoint, tmp_path):
    def call_the_shell(content):
        content["hyper_parameters"]["sampler"] = {
            "class_path": "subprocess.Popen",
            "init_args": {"args": ["touch", str(tmp_path / "marker")]},
        }

    with pytest.raises(ValueError, match=r"sampler: subprocess\.Popen is not a class of this package$"):
        load(altered(checkpoint, tmp_path, call_the_shell))
    assert not (tmp_path / "marker").exists()


def set_network(path, **settings):
    def change(content):
        network = {"class_path": path, "init_args": settings}
        content["hyper_parameters"]["denoiser"]["init_args"]["network"] = network

    return change


@pytest.mark.parametrize(
    "path",
    [
        "torch.fx.graph_module.reduce_graph_module",
        "torch.nn.Linear",
        "antigravity.fly",
        "json.loads",
        "nonsense",
        "a.b",
        "ncsn.cli.main.train",
        "ncsn.noise.math",
        "ncsn.no",
        "ncsn.samplers.langevin.torch.nn.Linear",
        "ncsn.score.Denoiser",
    ],
)
@pytest.mark.parametrize("settings", [{}, {"body": {}}])
def test_no_installed_package_is_reached_from_the_settings(checkpoint, tmp_path, path, settings):
    with pytest.raises(ValueError, match=rf"denoiser\.network: '?{path}'? is not a class of this package"):
        load(altered(checkpoint, tmp_path, set_network(path, **settings)))
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "path", ["ncsn.samplers.AnnealedLangevin", "ncsn.score.toys.Rings", "ncsn.Digits", "torch.optim.Adam"]
)
def test_a_name_of_ours_must_be_of_the_right_kind(checkpoint, tmp_path, path):
    with pytest.raises(ValueError, match=rf"denoiser\.network: {path} is not a subclass of Module"):
        load(altered(checkpoint, tmp_path, set_network(path, channels=1)))


def test_the_optimiser_of_a_file_is_not_built(checkpoint, tmp_path):
    def call_the_shell(content):
        content["hyper_parameters"]["optimizer"]["class_path"] = "subprocess.Popen"

    optimizer = ScoreModule.load_from_checkpoint(altered(checkpoint, tmp_path, call_the_shell)).optimizer
    assert isinstance(optimizer([torch.ones(1)]), torch.optim.Adam)


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path):
    class Unwilling:
        def __reduce__(self):
            raise OSError("disk full")

    path = tmp_path / "new" / "step=1.ckpt"
    DurableCheckpointIO().save_checkpoint({"a": torch.ones(2)}, path)
    assert [file.name for file in path.parent.iterdir()] == ["step=1.ckpt"]
    with pytest.raises(OSError, match="disk full"):
        DurableCheckpointIO().save_checkpoint({"a": Unwilling()}, path)
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("hyper_parameters"), "not a training checkpoint"),
        (lambda content: content.pop("state_dict"), "not a training checkpoint"),
        (lambda content: content["hyper_parameters"].pop("denoiser"), "they do not describe its denoiser; give"),
        (
            lambda content: content["hyper_parameters"]["schedule"]["init_args"].update(levels=0),
            "are invalid: .*levels=0",
        ),
        (lambda content: content["state_dict"].popitem(), "is of another network: its .* is missing"),
        (
            lambda content: content["state_dict"].update({"denoiser.extra": torch.ones(1)}),
            "its 'denoiser.extra' is \\(1,\\), here it is missing",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_itself_is_refused(checkpoint, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load(altered(checkpoint, tmp_path, change))


def test_the_newest_checkpoint_is_found(tmp_path):
    with pytest.raises(ValueError, match="there is no checkpoint under"):
        newest_checkpoint(tmp_path)
    names = ["b/step=9.ckpt", "a/step=100.ckpt", "c/d/step=1.ckpt", "a/step=99.ckpt"]  # copied after step 100
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (i, i if i != 2 else 0))
    assert newest_checkpoint(tmp_path) == tmp_path / "a/step=100.ckpt"


def test_a_published_model_is_its_weights_and_settings_and_nothing_else(checkpoint, tmp_path):
    module = load(checkpoint)
    save_safetensors(module, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(module.state_dict())
        known = {"hyper_parameters", "datamodule_hyper_parameters", "precision"}
        assert set(json.loads(file.metadata()["ncsn"])) == known
        assert "optimizer" not in file.metadata()["ncsn"]
    published = load(tmp_path / "model.safetensors")
    assert torch.equal(published.sample(2, seed=1), module.sample(2, seed=1))
    assert isinstance(load_data(tmp_path / "model.safetensors"), Digits)
    with pytest.raises(ValueError, match="one set of weights alone"):
        load(tmp_path / "model.safetensors", raw=True)
    with pytest.raises(ValueError, match=r"does not end in \.safetensors"):
        save_safetensors(module, tmp_path / "model.ckpt")


@pytest.mark.parametrize("arguments", [[1], 5, "root"])
def test_data_with_arguments_that_are_no_mapping_is_refused_in_one_line(monkeypatch, arguments):
    content = {"datamodule_hyper_parameters": {"class_path": "ncsn.data.Digits", "init_args": arguments}}
    monkeypatch.setattr("ncsn.model.load.contents", lambda path: content)
    with pytest.raises(ValueError, match=r"^checkpoint: the settings in a\.ckpt are invalid: .*") as refused:
        load_data("a.ckpt", root="here")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("place", [-5, 300, 20])
def test_a_published_model_that_is_damaged_is_refused(checkpoint, tmp_path, place):
    save_safetensors(load(checkpoint), tmp_path / "model.safetensors")
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[place] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="is not a safetensors file of this package, or is damaged"):
        load(tmp_path / "model.safetensors")


def test_the_newest_that_is_whole_is_taken_and_what_is_wrong_with_newer_ones_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"there is no checkpoint under .* to resume from"):
        newest_whole(tmp_path)
    for step in (9, 10, 100):
        write({"step": step}, tmp_path / f"step={step}.ckpt")
    assert newest_whole(tmp_path) == (tmp_path / "step=100.ckpt", [])
    (tmp_path / "step=100.ckpt").write_bytes(b"")
    file, wrong = newest_whole(tmp_path)
    assert (file.name, len(wrong)) == ("step=10.ckpt", 1)
    assert "step=100.ckpt is not a checkpoint, is damaged" in wrong[0]
    for step in (9, 10):
        (tmp_path / f"step={step}.ckpt").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"no checkpoint under .* is intact; .*step=100.ckpt"):
        newest_whole(tmp_path)


def test_a_run_falls_back_to_the_checkpoint_before_and_says_so(tmp_path, monkeypatch, capsys):
    newest = train_small(tmp_path, "--samples.count", "0")
    newest.write_bytes(newest.read_bytes()[:-1])
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    run_train("--config", "small.yaml", "--ckpt_path", "last", "--samples.count", "0")
    told = [line for line in capsys.readouterr().err.splitlines() if "step=7.ckpt" in line]
    assert len(told) == 1
    assert told[0].endswith("; going on from checkpoints/small/step=5.ckpt")
    assert torch.load(newest, weights_only=True)["global_step"] == 7


def test_an_older_checkpoint_is_removed_once_a_newer_one_is_written(tmp_path):
    patient, one = PatientCheckpointIO(), tmp_path / "step=1.ckpt"
    patient.save_checkpoint({"a": 1}, one)
    (tmp_path / "step=2.ckpt").mkdir()  # where the file would be
    with pytest.warns(UserWarning, match="no checkpoint was written, and the run goes on"):
        patient.save_checkpoint({"a": 2}, tmp_path / "step=2.ckpt")
    (tmp_path / "step=2.ckpt").rmdir()
    patient.remove_checkpoint(one)
    assert isinstance(patient.failure, OSError)
    assert one.exists()
    patient.save_checkpoint({"a": 3}, tmp_path / "step=3.ckpt")
    assert patient.failure is None
    patient.remove_checkpoint(one)
    assert [file.name for file in tmp_path.iterdir()] == ["step=3.ckpt"]


def test_settings_that_claim_a_larger_network_than_the_file_has_are_refused(checkpoint, tmp_path):
    for settings in ({"width": 2**20}, {"width": 8, "blocks": 10**6}):
        with pytest.raises(ValueError, match=r"of another network|a larger network than is allowed"):
            load(altered(checkpoint, tmp_path, set_network("ncsn.networks.UNet", channels=1, **settings)))
