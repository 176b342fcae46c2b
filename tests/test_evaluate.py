"""One command says how good samples are: what it prints is what is so, and what it cannot do it says beforehand."""

import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from ncsn.cli.from_options import data_of
from ncsn.cli.main import main
from ncsn.data import Digits, to_pixels
from ncsn.evaluation.classifier import load_classifier
from ncsn.evaluation.copies import are_copies, nearest
from ncsn.evaluation.extractors import extract_all, real_images
from ncsn.evaluation.measure import held_out_bits
from ncsn.evaluation.metrics import classifier_score, kernel_distance, precision_recall
from ncsn.evaluation.report import Counts, Report, markdown
from ncsn.evaluation.samplers import compared_samplers
from ncsn.model.checkpoint_file import weights_fingerprint
from ncsn.model.load import load
from ncsn.model.model import Model
from ncsn.model.pretrained import save_safetensors
from ncsn.model.shipped import SHIPPED_MODEL as SHIPPED
from ncsn.model.shipped import shipped_models
from ncsn.networks import AutoencoderEnergy, UNet
from ncsn.noise import GeometricSchedule, KarrasSchedule
from ncsn.samplers import Ancestral, EulerMaruyama, Langevin
from ncsn.score import EDMDenoiser, EnergyScore
from PIL import Image

from test_cli import REPOSITORY, refusal, run_train, train_small
from test_metrics import by_square_root

DIGITS = ["--data", "ncsn.data.Digits"]
EXTRACTOR = load_classifier("checkpoints/features_digits.safetensors")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return str(train_small(tmp_path_factory.mktemp("digits"), "--samples.count", "0"))


@pytest.fixture(scope="module")
def data() -> Digits:
    digits = Digits()
    digits.setup()
    return digits


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """One for all tests, so that the features of the training images are computed once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, cache) -> Path:
    """A folder of its own for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate(*options: str) -> None:
    """`ncsn evaluate OPTIONS` in this process and folder."""
    main(["evaluate", "--device", "cpu", *options])


def reported(*options: str) -> dict:
    """What it writes as JSON."""
    evaluate(*options, "--json", "report.json")
    return json.loads(Path("report.json").read_text())


def write(folder: str, x) -> str:
    """A folder of PNGs of the images (N, C, H, W) in [0, 1]."""
    Path(folder).mkdir()
    for i, pixels in enumerate(to_pixels(x)):
        Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()).save(f"{folder}/{i:05d}.png")
    return folder


def training_images(data, count):
    return torch.cat(list(real_images(data, "train", count)))


def test_the_metrics_are_those_of_the_samples_next_to_those_of_held_out_images(checkpoint, data, capsys):
    options = ["--num-samples", "120", "--seed", "3", "--batch-size", "50", "--steps", "8", "--sampler", "Ancestral"]
    report = reported(checkpoint, *options)
    out = capsys.readouterr().out
    module = load(checkpoint)
    x = module.sample(120, seed=3, sampler=Ancestral(), sigmas=KarrasSchedule(2, 0.1, 8).sigmas())
    held_out = torch.cat(list(real_images(data, "val", 120)))
    reference = extract_all(EXTRACTOR, real_images(data))
    for images, found in ((x, report["figures"]), (held_out, report["floor"])):
        one = {name: value if isinstance(value, float) else value[0] for name, value in found.items()}
        seen = extract_all(EXTRACTOR, images.split(60))
        assert one["Frechet distance"] == pytest.approx(by_square_root(seen.features, reference.features), rel=1e-3)
        assert one["kernel distance"] == pytest.approx(kernel_distance(seen.features, reference.features), rel=1e-2)
        assert one["classifier score"] == pytest.approx(classifier_score(seen.logits), rel=1e-3)
        assert (one["precision"], one["recall"]) == pytest.approx(
            precision_recall(seen.features, reference.features), abs=0.01
        )
        distances = nearest(images, data.splits["train"])
        assert one["nearest distance (median)"] == pytest.approx(distances[:, 0].median().item(), rel=1e-3)
        assert one["copies"] == pytest.approx(are_copies(distances).float().mean().item(), abs=0.01)
    assert report["counts"] == {"judged": 120, "reference": 1617, "floor": 120}
    samples = report["samples"]
    assert (samples["checkpoint"], samples["seeds"], samples["levels"]) == (checkpoint, [3], 8)
    assert samples["sampler"] == str(Ancestral())
    raw = weights_fingerprint(load(checkpoint, raw=True).denoiser)
    assert samples["weights"] == weights_fingerprint(module.denoiser) != raw
    cost = samples["cost"]
    assert cost["NFE"] == 8
    assert cost["images/s"] == pytest.approx(120 / cost["seconds"])
    for name, (value,) in report["figures"].items():
        assert re.search(rf"\| {re.escape(name)} +\| {re.escape(f'{value:.4g}')} ", out), name
        floor = f"{report['floor'][name]:.4g}"
        assert re.search(rf"\| {re.escape(name)} .*\| {re.escape(floor)} ", out), name
    for line in (
        f"120 samples of seed 3, from {checkpoint} by {Ancestral()} over 8 levels from 2 to 0.1",
        "1,617 training images of Digits",
        "120 images of its validation split",
        "features_digits.safetensors (a classifier of Digits, 99.44% right)",
    ):
        assert line in out
    assert "FID" not in out


def test_seeds_give_the_spread_and_fewer_are_held_out_than_drawn(checkpoint, capsys):
    options = ["--num-samples", "200", "--sampler", "EulerMaruyama"]
    report = reported(checkpoint, *options, "--seeds", "3", "--seed", "5")
    out = capsys.readouterr().out
    alone = reported(checkpoint, *options, "--seed", "6")
    values = torch.tensor(report["figures"]["Frechet distance"], dtype=torch.float64)
    assert report["samples"]["seeds"] == [5, 6, 7]
    assert values[1].item() == pytest.approx(alone["figures"]["Frechet distance"][0], rel=1e-5)
    assert f"| Frechet distance          | {values.mean():.4g} +- {values.std():.2g} " in out
    assert "mean +- std of 3 seeds" in out
    assert values.std() > 0
    assert report["counts"]["floor"] == 180
    assert "180 images of its validation split, fewer than the 200 evaluated" in out
    assert report["samples"]["cost"]["NFE"] == 6  # an image, of all seeds
    assert report["samples"]["cost"]["images/s"] == pytest.approx(600 / report["samples"]["cost"]["seconds"])


@pytest.mark.slow
def test_two_processes_give_the_metrics_of_one(checkpoint):
    options = [checkpoint, "--num-samples", "101", "--batch-size", "10", "--seeds", "2"]
    one = reported(*options)
    command = [
        sys.executable,
        "-m",
        "ncsn",
        "evaluate",
        *options,
        "--device",
        "cpu",
        "--devices",
        "2",
        "--json",
        "2.json",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("| Frechet distance") == 1
    two = json.loads(Path("2.json").read_text())
    for name, values in one["figures"].items():
        assert two["figures"][name] == pytest.approx(values, rel=2e-3, abs=1e-3), name
    assert one["floor"] == two["floor"]
    assert one["samples"]["cost"]["NFE"] == two["samples"]["cost"]["NFE"]


def test_copies_of_training_images_are_called_so(data, capsys):
    report = reported("--png", write("copies", training_images(data, 300)), *DIGITS)
    assert report["figures"]["nearest distance (median)"] == [0]
    assert report["figures"]["copies"] == [1]
    assert report["figures"]["precision"] == report["figures"]["recall"] == [1]
    assert re.search(r"\| copies +\| 1 \(copies of training images\)", capsys.readouterr().out)


def test_held_out_images_are_no_copies_and_score_at_the_floor(data, capsys):
    report = reported("--png", write("real", torch.cat(list(real_images(data, "val")))), *DIGITS)
    for name, floor in report["floor"].items():
        assert report["figures"][name] == [pytest.approx(floor, rel=1e-3)], name
    assert "(copies" not in capsys.readouterr().out


def test_one_repeated_image_half_of_the_classes_noise_and_the_mean_image_score_as_they_should(data, capsys):
    real = torch.cat(list(real_images(data, "val")))
    low = extract_all(EXTRACTOR, [real]).logits.argmax(1) < 5
    sets = {
        "one": real[:1].expand(100, -1, -1, -1),
        "half": real[low],
        "noise": torch.rand(100, 1, 8, 8),
        "mean": real.mean(0, keepdim=True).expand(100, -1, -1, -1),
    }
    figures = {}
    for name, x in sets.items():
        report = reported("--png", write(name, x), *DIGITS)
        figures[name] = {key: values[0] for key, values in report["figures"].items()}
    floor = report["floor"]
    for name in sets:
        assert figures[name]["Frechet distance"] > 5 * floor["Frechet distance"], name
        assert figures[name]["recall"] < 0.8 * floor["recall"], name
    for name in ("one", "mean"):
        assert figures[name]["recall"] < 0.05
        assert figures[name]["classifier score"] == pytest.approx(1, abs=0.01)
        assert figures[name]["Frechet distance"] > 50 * floor["Frechet distance"]
    assert figures["noise"]["precision"] < 0.6 * floor["precision"]
    assert figures["noise"]["recall"] < 0.1
    assert figures["half"]["precision"] > 0.8 * floor["precision"]
    assert figures["half"]["classifier score"] < 0.75 * floor["classifier score"]
    assert figures["one"]["Frechet distance"] > figures["half"]["Frechet distance"]
    capsys.readouterr()


def test_a_folder_is_read_as_far_as_is_asked_for(data):
    report = reported("--png", write("many", training_images(data, 130)), *DIGITS, "--num-samples", "100")
    assert report["counts"]["judged"] == 100
    assert report["samples"] is None


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist", "ncsn_mnist"])
def test_a_model_of_the_package_is_compared_with_the_data_of_its_configuration(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options, file = Namespace(data=["--data.root=here"], trust=()), shipped_models()[name]
    data = data_of(file, options)
    kinds = {"cifar10": "CIFAR10", "fashion_mnist": "FashionMNIST", "ncsn_mnist": "MNIST"}
    assert (type(data).__name__, str(data.root), data.downloads) == (kinds[name], "here", True)
    link = tmp_path / "link.safetensors"
    link.symlink_to(file)
    assert type(data_of(link, options)) is type(data)
    copy = tmp_path / file.name  # could be anybody's
    copy.write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="there is no folder"):
        data_of(copy, options)


def test_the_newest_checkpoint_is_what_is_evaluated_but_not_the_best(checkpoint, capsys):
    assert reported("--num-samples", "70")["samples"]["checkpoint"] == str(SHIPPED)
    for name in ("old.ckpt", "new.ckpt", "best.ckpt"):
        Path("checkpoints").mkdir(exist_ok=True)
        Path("checkpoints", name).write_bytes(Path(checkpoint).read_bytes())
    for seconds, name in enumerate(("old.ckpt", "new.ckpt", "best.ckpt")):
        os.utime(f"checkpoints/{name}", (seconds, seconds))
    assert reported("--num-samples", "70")["samples"]["checkpoint"] == "checkpoints/new.ckpt"


def test_the_comparison_is_a_row_for_each_sampler_and_the_floor(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr("ncsn.evaluation.samplers.COMPARED", [(EulerMaruyama(), 3), (Ancestral(), 5)])
    monkeypatch.setattr("ncsn.evaluation.samplers.LANGEVIN_NFE", 22)  # two at each of Technique 2's 11 levels
    evaluate(checkpoint, "--samplers", "--num-samples", "80", "--likelihood", "4")
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    assert rows[0] == ["sampler", "levels", "NFE", "images/s", "Frechet distance of 80 (lower is better)"]
    assert [row[0].split("(")[0] for row in rows[2:]] == [
        *("EulerMaruyama", "Ancestral", "ConsistentAnnealed", "AnnealedLangevin", "80 held-out images")
    ]
    assert [row[1:3] for row in rows[2:]] == [["3", "3"], ["5", "5"], ["11", "12"], ["11", "23"], ["", ""]]
    one = reported(checkpoint, "--num-samples", "80", "--sampler", "Ancestral", "--steps", "5")
    assert float(rows[3][4]) == pytest.approx(one["figures"]["Frechet distance"][0], abs=0.02)
    assert float(rows[6][4]) == pytest.approx(one["floor"]["Frechet distance"], abs=0.006)
    assert "differences below the spread of one sampler (--seeds 3) are chance" in out
    assert re.search(r"Likelihood: \d+\.\d+ \+- \d+\.\d+ bits/dim, of 4 held-out images", out)


def test_a_model_of_one_noise_level_is_not_compared_on_others():
    model = Model(EnergyScore(AutoencoderEnergy(4, 3)), GeometricSchedule(0.3, 0.3, 1), Langevin(0.01, 2), (4,))
    with pytest.raises(ValueError, match=r"--samplers: the model has the single noise level 0\.3"):
        compared_samplers(model)


def test_the_likelihood_is_a_row_of_the_same_table(checkpoint, capsys):
    report = reported(checkpoint, "--num-samples", "70", "--likelihood", "6")
    mean, error, count = report["bits_per_dim"]
    assert count == 6
    assert 0 < error < abs(mean)
    assert re.search(rf"\| bits/dim +\| +\| {mean:.3f} \+- {error:.3f} \(of 6\)", capsys.readouterr().out)


def with_labels(checkpoint, names="0123456789") -> Model:
    """A model of ten classes that differ, with random weights."""
    like, denoiser = load(checkpoint), EDMDenoiser(UNet(1, width=8, multipliers=(1, 2), blocks=1, classes=10))
    for weight in denoiser.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    torch.nn.init.normal_(denoiser.network.conditioning.label.weight, std=10)
    like.settings["hyper_parameters"]["class_names"] = list(names)
    like.settings["hyper_parameters"]["denoiser"]["init_args"]["network"]["init_args"]["classes"] = 10
    return Model(denoiser, like.schedule, like.sampler, (1, 8, 8), True, like.settings, names)


def test_a_model_with_labels_is_evaluated_in_every_class_in_turn(checkpoint, capsys):
    save_safetensors(with_labels(checkpoint), "labelled.safetensors")
    options = ["labelled.safetensors", "--num-samples", "70", "--sampler", "Euler"]
    asked, every, none = (reported(*options, *label) for label in ([], ["--label", "all"], ["--label", "none"]))
    assert asked["figures"] == every["figures"]
    for name in ("Frechet distance", "kernel distance"):
        assert asked["figures"][name] != pytest.approx(none["figures"][name], rel=1e-3)
    assert (asked["samples"]["label"], none["samples"]["label"]) == ("each of 10 classes in turn", "no class")
    out = capsys.readouterr().out
    assert out.count("levels from 2 to 0.1, of each of 10 classes in turn\n") == 2
    assert out.count("levels from 2 to 0.1, of no class\n") == 1


def test_likelihoods_are_given_the_class_of_each_image_if_the_model_knows_it(checkpoint, data, monkeypatch):
    given = []
    monkeypatch.setattr(
        "ncsn.evaluation.measure.bits_per_dim",
        lambda score, x, *_, **__: given.append(score.keywords["label"]) or x.flatten(1).sum(1),
    )
    order = torch.randperm(180, generator=torch.Generator().manual_seed(0))[:70].tolist()
    classes, none = data.splits["val"][order][1].tolist(), [-1] * 70
    for names, label, expected in (
        ("0123456789", None, classes),
        ("0123456789", "none", none),
        ("abcdefghij", None, none),
    ):
        given.clear()
        held_out_bits(with_labels(checkpoint, names), data, 70, label)
        assert torch.cat(given).tolist() == expected


def test_walks_that_diverge_end_in_one_line(checkpoint, here, capsys):
    options = ["--sampler", "test_drawing.Fading", "--sampler.until", "3", "--num-samples", "70", "--json", "a.json"]
    status, line = refusal(capsys, lambda: evaluate(checkpoint, *options))
    assert (status, "Fading diverged at noise level" in line) == (3, True)
    assert not list(here.iterdir())


@pytest.mark.slow
def test_a_model_that_was_trained_longer_scores_better(capsys):
    Path("digits.yaml").write_text((REPOSITORY / "configs" / "digits.yaml").read_text())
    network = "--model.denoiser.init_args.network.init_args"
    options = [f"{network}.width", "16", f"{network}.blocks", "1"]
    options += ["--trainer.max_steps", "480", "--trainer.limit_val_batches", "0", "--samples.count", "0"]
    options += ["--model.cooldown", "0"]  # of the run's end alone
    options += ["--checkpoint.every", "60", "--checkpoint.keep", "100"]
    run_train("--config", "digits.yaml", "--trainer.accelerator", "cpu", *options)
    sampler = ["--sampler", "DPMSolver", "--sampler.eta", "1", "--steps", "15"]
    distances = []
    for step in (60, 120, 240, 480):
        report = reported(f"checkpoints/digits/step={step}.ckpt", "--num-samples", "1000", *sampler)
        distances += report["figures"]["Frechet distance"]
    for earlier, later in pairwise([*distances, report["floor"]["Frechet distance"]]):
        assert later < 0.7 * earlier, distances


def test_the_table_says_how_many_images_each_column_is_of_and_which_way_is_better():
    values = {"Frechet distance": 0.5, "KID": 0.1, "classifier score": 8.0, "recall": 0.9, "copies": 0.1}
    figures = {name: [value] for name, value in values.items()}
    report = Report("", "Digits", "", Counts(10_000, 1_617, 180), figures, values)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown(report.table()).splitlines()]
    assert rows[0] == ["metric", "value, 10,000 images", "180 held-out images", "better"]
    assert [row[3] for row in rows[2:]] == ["lower", "lower", "higher", "higher", "as held-out"]
