"""Models for others: what is written is the model, whole, with figures that were measured, and over nothing."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import ncsn
import pytest
import torch
import yaml
from huggingface_hub import constants
from ncsn.cli.export import exported
from ncsn.cli.main import main
from ncsn.data import Digits
from ncsn.evaluation.extractors import real_images
from ncsn.model.files import atomic_write
from ncsn.model.load import load, load_data
from ncsn.model.model import DATA, Model
from ncsn.model.model_card import card
from ncsn.model.pretrained import save_pretrained
from ncsn.model.shipped import SHIPPED_MODEL as SHIPPED
from ncsn.model.shipped import shipped_models
from ncsn.noise import GeometricSchedule
from ncsn.samplers import AnnealedLangevin
from ncsn.score import EnergyScore, NCSNDenoiser
from PIL import Image
from safetensors.torch import load_file

from test_cli import refusal, sample, train_small

REPOSITORY = Path(__file__).parent.parent


def export(*options: str) -> None:
    main(["export", *options])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return train_small(tmp_path_factory.mktemp("run"), "--data.labels", "true")


@pytest.fixture(scope="module")
def report(checkpoint) -> Path:
    file = checkpoint.parent / "report.json"
    main(["evaluate", str(checkpoint), "--num-samples", "100", "--json", str(file), "--device", "cpu", "--seeds", "2"])
    return file


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_one_file_and_its_card(checkpoint, report, capsys):
    export(str(checkpoint), "--to", "safetensors", "--metrics", str(report))
    assert "Wrote small.safetensors and small.md" in capsys.readouterr().out
    assert sorted(file.name for file in Path().iterdir()) == ["small.md", "small.safetensors"]
    module = load("small.safetensors")
    assert torch.equal(module.sample(2, seed=1), load(checkpoint).sample(2, seed=1))
    assert isinstance(load_data("small.safetensors"), Digits)
    assert Path("small.safetensors").stat().st_mode & 0o044 == 0o044  # for others to read
    text, figures = Path("small.md").read_text(), json.loads(report.read_text())
    for name, (one, other) in figures["figures"].items():
        assert f"| {name} | {(one + other) / 2:.4g} +- " in text
        assert f" | {figures['floor'][name]:.4g} |" in text
    assert "100 samples, of each of 10 classes in turn, by `AnnealedLangevin" in text.replace("\n", " ")
    assert "Its labels are 0 = 0, 1 = 1, 2 = 2," in text
    assert "seeds: [0, 1]" in text
    front, settings = (
        yaml.safe_load(text.split("---")[1]),
        yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.S)[1]),
    )
    assert front["library_name"] == "ncsn"
    assert settings["model"]["schedule"]["init_args"]["levels"] == 6
    names = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1].replace("64", "2"), names)
    assert names["x"].shape == (2, 1, 8, 8)


def test_the_card_has_the_metadata_of_the_hub_and_shows_samples(checkpoint):
    Image.new("L", (8, 8)).save("grid.png")
    export(str(checkpoint), "--to", "safetensors", "--out", "my model.safetensors", "--image", "grid.png")
    text = Path("my model.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert (front["license"], front["pipeline_tag"]) == ("unknown", "unconditional-image-generation")
    assert "datasets" not in front  # scikit-learn's digits have no name on the Hub
    assert "![Samples](my%20model.png)" in text
    assert Path("my model.png").read_bytes() == Path("grid.png").read_bytes()
    export("my model.safetensors", "--to", "folder", "--out", "folder", "--image", "grid.png")
    assert "![Samples](samples.png)" in Path("folder/README.md").read_text()
    assert Path("folder/samples.png").read_bytes() == Path("grid.png").read_bytes()
    model = load(checkpoint)
    model.settings[DATA]["class_path"] = "ncsn.data.MNIST"
    front = yaml.safe_load(card(model, "", "name").split("---")[1])
    assert front["datasets"] == ["ylecun/mnist"]
    with pytest.raises(SystemExit, match="2"):
        export(str(checkpoint), "--to", "folder", "--out", "none", "--image", str(checkpoint))
    assert not Path("none").exists()


def test_the_figures_of_a_file_hold_for_what_is_written_of_it(checkpoint, report):
    """And not for other weights, which `--raw` takes."""
    export(str(checkpoint), "--to", "safetensors")
    assert "None was measured" in Path("small.md").read_text()
    export("small.safetensors", "--to", "folder", "--out", "again", "--metrics", str(report))
    assert "| Frechet distance |" in Path("again/README.md").read_text()
    with pytest.raises(ValueError, match="--metrics: the report is of other weights: 100 samples"):
        save_pretrained(load(checkpoint, raw=True), "raw", json.loads(report.read_text()))
    assert not Path("raw").exists()


def test_a_folder_has_the_layout_of_the_hub(checkpoint):
    module = load(checkpoint)
    save_pretrained(module, "made/model")
    names = {constants.SAFETENSORS_SINGLE_FILE, constants.CONFIG_NAME, constants.REPOCARD_NAME}
    assert {file.name for file in Path("made/model").iterdir()} == names
    assert [file.name for file in Path("made").iterdir()] == ["model"]
    weights = load_file("made/model/model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    assert json.loads(Path("made/model/config.json").read_text())["hyper_parameters"]["sampler"]["class_path"]
    again = load("made/model")
    assert not again.training
    assert torch.equal(again.sample(2, seed=1), module.sample(2, seed=1))
    save_pretrained(again, "made/other")
    assert Path("made/other/config.json").read_bytes() == Path("made/model/config.json").read_bytes()
    assert "ncsn.data.Digits" in Path("made/other/README.md").read_text()
    assert torch.equal(load("made/model/model.safetensors").sample(1), module.sample(1))


def test_the_hub_reads_the_card_and_its_own_mixin_the_weights(checkpoint):
    from huggingface_hub import ModelCard, PyTorchModelHubMixin

    save_pretrained(load(checkpoint), "model")
    assert ModelCard.load("model/README.md").data.library_name == "ncsn"
    denoiser = torch.nn.Module()
    denoiser.denoiser = load(checkpoint).denoiser
    for parameter in denoiser.parameters():
        parameter.data.zero_()
    PyTorchModelHubMixin._load_as_safetensor(denoiser, "model/model.safetensors", "cpu", True)
    for name, value in load(checkpoint).state_dict().items():
        assert torch.equal(value, denoiser.state_dict()[name])


def test_the_settings_of_a_folder_are_those_of_its_config(checkpoint):
    save_pretrained(load(checkpoint), "model")
    config = json.loads(Path("model/config.json").read_text())
    config["hyper_parameters"]["sampler"]["init_args"]["steps"] = 3
    Path("model/config.json").write_text(json.dumps(config))
    assert load("model").sampler.steps == 3
    config["hyper_parameters"]["sampler"] = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "it"]}}
    Path("model/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"sampler: subprocess\.Popen is not a class of this package"):
        load("model")
    for content in ("{", "[]", "{}", "[" * 10_000, '"hyper_parameters"'):
        Path("model/config.json").write_text(content)
        with pytest.raises(ValueError, match="checkpoint: "):
            load("model")
    Path("model/config.json").unlink()
    with pytest.raises(ValueError, match=r"there is no file model/config\.json"):
        load("model")


def test_nothing_is_written_over_and_nothing_is_downloaded(checkpoint):
    module = load(checkpoint)
    Path("empty").mkdir()
    save_pretrained(module, "empty")
    with pytest.raises(ValueError, match=r"folder: .*/empty exists already, and nothing is overwritten"):
        save_pretrained(module, "empty")
    with pytest.raises(ValueError, match="there is no file someone/model"):
        load("someone/model")


def test_a_folder_is_whole_or_absent(checkpoint, monkeypatch):
    def full(file):
        if file.name == "config.json":
            raise OSError("No space left on device")
        return atomic_write(file)

    monkeypatch.setattr("ncsn.model.pretrained.atomic_write", full)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(load(checkpoint), "made/model")
    assert not list(Path("made").iterdir())


def test_a_program_is_the_denoiser(checkpoint, capsys):
    export(str(checkpoint), "--to", "program")
    out = capsys.readouterr().out
    assert "Wrote small.pt2, which is within" in out
    assert "takes labels (0 = 0, 1 = 1, 2 = 2," in out
    assert "x (B, 1, 8, 8) and sigma (B, 1, 1, 1)" in out
    program, module = torch.export.load("small.pt2").module(), load(checkpoint)
    for count in (1, 3, 8):
        x, sigma, label = torch.rand(count, 1, 8, 8), torch.rand(count, 1, 1, 1) + 0.1, torch.randint(-1, 10, (count,))
        with torch.no_grad():
            torch.testing.assert_close(program(x, sigma, label), module.denoiser(x, sigma, label), atol=1e-4, rtol=0)


def test_half_of_the_bytes_hold_the_weights_rounded_to_16_bits(checkpoint, report, capsys):
    export(str(checkpoint), "--to", "safetensors", "--out", "whole.safetensors")
    export(str(checkpoint), "--to", "safetensors", "--half", "--out", "half.safetensors")
    whole, half = load("whole.safetensors").state_dict(), load("half.safetensors").state_dict()
    for name, weight in whole.items():
        assert torch.equal(half[name], weight.half().float())
    sizes = [sum(tensor.nbytes for tensor in load_file(f"{name}.safetensors").values()) for name in ("half", "whole")]
    assert 2 * sizes[0] == sizes[1]
    with_metrics = ("--to", "safetensors", "--half", "--metrics")
    status, line = refusal(capsys, lambda: export(str(checkpoint), *with_metrics, str(report)))
    assert status == 2
    assert "--metrics: the report is of other weights" in line
    main(["evaluate", "half.safetensors", "--num-samples", "100", "--json", "half.json", "--device", "cpu"])
    export("half.safetensors", *with_metrics, "half.json", "--out", "again.safetensors")
    assert "100 samples" in Path("again.md").read_text()


def other_module(denoiser):
    return Model(denoiser, GeometricSchedule(2, 0.1, 4), AnnealedLangevin(1e-3, 1), (3,))


class Differing(torch.nn.Module):
    """A network that gives something else where it is exported."""

    def forward(self, x, c_noise, label=None):
        return x + 1e-3 if torch.compiler.is_compiling() else x


class Choosing(torch.nn.Module):
    """A network that no program follows: it looks at a number to choose its way."""

    def forward(self, x, c_noise, label=None):
        return x if x.sum().item() > 0 else -x


def test_a_program_that_is_not_the_denoiser_is_not_written():
    with pytest.raises(OSError, match=r"what torch\.export made is 0\.\d+ from the denoiser, above 0\.0001"):
        exported(other_module(NCSNDenoiser(Differing())))
    with pytest.raises(OSError, match=r"torch\.export cannot follow the network"):
        exported(other_module(NCSNDenoiser(Choosing())))
    with pytest.raises(ValueError, match="this model has an EnergyScore"):
        exported(other_module(EnergyScore(lambda x, sigma: x.square().sum(1) / 2)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--to"),
        (["--to", "pickle"], "invalid choice: 'pickle'"),
        (["--to", "program", "--out", "a.pt"], r"--out: expected a name with \.pt2, got a\.pt"),
        (["--to", "program", "--metrics", "a.json"], "--metrics has no effect with --to program"),
        (["--to", "program", "--half"], "--half has no effect with --to program"),
        (["--to", "folder", "--metrics", "a.json"], r"--metrics: a\.json is not a file of JSON"),
        (["--to", "folder", "--metrics", "list.json"], "--metrics: not a report of this version"),
        (["--to", "folder", "--metrics", "dict.json"], "--metrics: not a report of this version"),
        (["--to", "safetensors", "--out", "there.safetensors"], r"--out: there\.md exists"),
        (["--to", "folder", "--out", "there.md"], r"--out: there\.md exists"),
    ],
)
def test_a_wrong_setting_is_one_line(checkpoint, capsys, options, said):
    for name, content in {"list.json": "[]", "dict.json": '{"figures": 1}', "there.md": ""}.items():
        Path(name).write_text(content)
    status, line = refusal(capsys, lambda: export(str(checkpoint), *options))
    assert status == 2
    assert re.search(said, line), line
    assert sorted(file.name for file in Path().iterdir()) == ["dict.json", "list.json", "there.md"]


@pytest.mark.parametrize("name", shipped_models())
def test_a_shipped_model_is_the_one_that_its_list_and_its_card_say(name):
    file = shipped_models()[name]
    listed, card = (REPOSITORY / "checkpoints/README.md").read_text(), file.with_suffix(".md").read_text()
    row = next(line for line in listed.splitlines() if f"`{file.name}`" in line)
    distance = re.search(r"\| Frechet distance \| ([\d.]+ \+- [\d.]+) \|", card)
    assert file.stat().st_size <= 5 * 2**20
    assert hashlib.sha256(file.read_bytes()).hexdigest() in row
    assert distance[1] in row
    assert (file.parent / re.search(r"\((.*\.png)\)", card)[1]).is_file()
    assert f'"checkpoints/{file.name}" = ' in (REPOSITORY / "pyproject.toml").read_text()


def test_models_are_listed_by_name_and_loaded_and_drawn_by_it(capsys, monkeypatch, tmp_path):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for file in shipped_models().values():
        shutil.copy(file, checkout)
    (checkout / "mine.safetensors").write_bytes(b"of the user")
    monkeypatch.setattr("ncsn.model.shipped.shipped", lambda folder: checkout)
    main(["models"])
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()[::2]] == [*shipped_models()]
    assert "Digits, 1x8x8, without labels; DPMSolver, 20 levels" in listed
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    sample(["--model", "digits", "--num-samples", "2", "--device", "cpu"])
    assert f"Sampling 2 from {SHIPPED}" in capsys.readouterr().out
    assert torch.equal(load("digits").sample(2), load(SHIPPED).sample(2))
    Path("digits").mkdir()  # what is there goes before what is shipped
    with pytest.raises(ValueError, match="digits"):
        load("digits")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sample", "./digits"], "there is no file ./digits; give its name alone, digits"),
        (["sample", "digitz"], "there is no file digitz, and no model of that name; did you mean 'digits'?"),
        (["evaluate", "--model", "other"], "no model of that name; `ncsn models` lists cifar10, digits, "),
        (["restore", "a.png", "--grey", "--model", "other"], "no model of that name; "),
        (["export", "digits", "--model", "digits"], "argument --model: not allowed with argument CHECKPOINT"),
    ],
)
def test_a_name_that_is_none_of_a_model_is_refused_with_those_there_are(capsys, arguments, said):
    status, line = refusal(capsys, lambda: main(arguments))
    assert status == 2
    assert said in line


def test_python_and_a_run_that_starts_from_a_model_hint_at_its_name_too(capsys):
    said = "no file digitz, and no model of that name; did you mean 'digits'?"
    with pytest.raises(ValueError, match=re.escape(said)):
        load("digitz")
    status, line = refusal(capsys, lambda: main(["train", "--model.weights", "digitz"]))
    assert status == 2
    assert f"model.weights: there is {said}" in line


def test_the_shipped_model_draws_digits():
    """A classifier of the data's own is as sure of nine in ten of them as it is of scans."""
    images = load(SHIPPED).sample(64, seed=0)
    assert images.shape == (64, 1, 8, 8)
    extractor = ncsn.load_classifier("checkpoints/features_digits.safetensors")
    data = load_data(SHIPPED)
    data.setup()
    sure = extractor.logits(images.clamp(0, 1)).softmax(1).amax(1)
    of_scans = extractor.logits(torch.cat(list(real_images(data, "val", 180)))).softmax(1).amax(1)
    assert (sure > of_scans.quantile(0.05)).float().mean() > 0.8
    assert len(extractor.logits(images).argmax(1).unique()) == 10


def test_before_any_training_the_shipped_model_is_drawn_from(capsys, checkpoint):
    sample(["--num-samples", "2", "--device", "cpu"])
    assert f"Sampling 2 from {SHIPPED}" in capsys.readouterr().out
    Path("checkpoints/mine").mkdir(parents=True)
    Path("checkpoints/mine/step=7.ckpt").write_bytes(checkpoint.read_bytes())
    sample(["--num-samples", "2", "--device", "cpu", "--out", "own.png"])
    assert "Sampling 2 from checkpoints/mine/step=7.ckpt" in capsys.readouterr().out
