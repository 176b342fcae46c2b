"""What `sample.py` draws: the same picture for an index whatever is drawn beside it, in files that are whole."""

import json
import os
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from ncsn.cli.devices import has_fast_bf16
from ncsn.cli.main import main
from ncsn.cli.writers import text_in
from ncsn.data import pixel_grid, to_pixels
from ncsn.model import checkpoint_file
from ncsn.model.draws import Request, draws
from ncsn.model.load import load
from ncsn.model.model import Model
from ncsn.networks import UNet
from ncsn.noise import GeometricSchedule, KarrasSchedule
from ncsn.samplers import EulerMaruyama, Sampler

from test_cli import REPOSITORY, pixels, refusal, sample, train_small
from test_sampling import trained


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> str:
    return str(train_small(tmp_path_factory.mktemp("digits"), "--samples.count", "0"))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("labelled")
    return str(train_small(folder, "--data.labels", "true", "--samples.count", "0"))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """A folder of its own for each test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pictures(folder) -> dict[str, torch.Tensor]:
    """The pictures of a folder by their names, and that there is nothing else."""
    return {file.name: pixels(file) for file in sorted(Path(folder).iterdir())}


def names(indices) -> list[str]:
    return [f"{index:06d}.png" for index in indices]


def assert_alike(one, other):
    """The same pictures but for the last of 256 steps of grey: matrix products may add up in another order."""
    assert one.keys() == other.keys()
    for name, picture in one.items():
        assert (picture.int() - other[name].int()).abs().max() <= 1


@dataclass(frozen=True)
class Fading(Sampler):
    """A sampler that fails at the level `until` for the samples of which a number of the start is above a bound."""

    until: int
    bound: float = -torch.inf
    remedy = "try another"

    def __call__(self, score, x, sigmas):
        for level in range(len(sigmas)):
            worst = x.flatten(1).amax(1).view(-1, 1, 1, 1)
            yield torch.where((worst > self.bound) & (level >= self.until), torch.nan, x)


@dataclass(frozen=True)
class Classes(Sampler):
    """A sampler that draws nothing but the label: a grey of a tenth for each class, and the dark for none."""

    def __call__(self, score, x, sigmas):
        label = score.keywords["label"]
        grey = torch.zeros(len(x)) if label is None else (label + 1) / 10
        for _ in sigmas:
            yield grey.view(-1, 1, 1, 1).expand_as(x)


def test_steps_are_levels_of_karras_between_the_ends_of_training_or_others(digits, capsys):
    options = ["--num-samples", "4", "--seed", "2", "--sampler", "EulerMaruyama"]
    sample([digits, *options, "--steps", "9", "--out", "nine.png"])
    assert "over 9 levels" in capsys.readouterr().out
    sample([digits, *options, "--out", "trained.png"])
    assert "over 6 levels" in capsys.readouterr().out
    sample([digits, *options, "--sigma-max", "1.5", "--sigma-min", "0.05", "--out", "other.png"])
    assert "over 6 levels" in capsys.readouterr().out
    module = load(digits)
    for name, schedule in (
        ("nine", KarrasSchedule(2, 0.1, 9)),
        ("trained", GeometricSchedule(2, 0.1, 6)),
        ("other", KarrasSchedule(1.5, 0.05, 6)),
    ):
        x = module.sample(4, seed=2, sampler=EulerMaruyama(), sigmas=schedule.sigmas())
        assert torch.equal(pixels(f"{name}.png"), pixel_grid(x))


def test_a_folder_has_a_picture_for_each_index(digits):
    sample([digits, "--num-samples", "3", "--start-index", "4", "--out", "new"])
    assert list(pictures("new")) == names(range(4, 7))
    *_, x = load(digits).trajectories(range(4, 7))
    assert torch.equal(torch.stack(list(pictures("new").values())), to_pixels(x))


def test_samples_go_on_from_a_start_index(digits):
    sample([digits, "--num-samples", "8", "--out", "eight"])
    sample([digits, "--num-samples", "4", "--start-index", "4", "--out", "later"])
    eight = pictures("eight")
    assert list(eight) == names(range(8))
    assert_alike(pictures("later"), {name: eight[name] for name in names(range(4, 8))})
    assert len({picture.numpy().tobytes() for picture in eight.values()}) == 8
    sample([digits, "--num-samples", "4", "--out", "later"])  # what was missing goes beside it
    assert_alike(pictures("later"), eight)


@pytest.mark.parametrize("out", ["folder", "grid.png"])
def test_a_picture_does_not_depend_on_the_size_of_batches(digits, out):
    drawn = []
    for size in ("1", "3", "256"):
        Path(size).mkdir()
        sample([digits, "--num-samples", "7", "--batch-size", size, "--out", f"{size}/{out}"])
        drawn.append(pictures(f"{size}/{out}") if out == "folder" else pictures(size))
    assert_alike(drawn[0], drawn[1])
    assert_alike(drawn[0], drawn[2])


def test_nothing_is_written_over(digits, capsys):
    sample([digits, "--num-samples", "2", "--out", "folder"])
    before = pictures("folder")
    capsys.readouterr()
    status, line = refusal(capsys, lambda: sample([digits, "--num-samples", "5", "--seed", "9", "--out", "folder"]))
    assert status == 2
    assert "--out: folder/000000.png exists; give another folder or --start-index" in line
    assert all(torch.equal(picture, before[name]) for name, picture in pictures("folder").items())
    assert list(pictures("folder")) == names(range(2))


def test_a_file_in_the_place_of_a_folder_is_refused_before_anything_is_drawn(digits, capsys):
    Path("folder").write_text("mine")
    status, line = refusal(capsys, lambda: sample([digits, "--num-samples", "2", "--out", "folder"]))
    assert (status, "--out: folder" in line) == (2, True), line
    assert Path("folder").read_text() == "mine"


@pytest.mark.parametrize("out", ["folder", "grid.png"])
def test_a_label_is_that_of_every_sample(labelled, out):
    sample([labelled, "--num-samples", "4", "--label", "3", "--out", out])
    x = load(labelled).sample(4, label=torch.full((4,), 3))
    if out == "folder":
        assert torch.equal(torch.stack(list(pictures(out).values())), to_pixels(x))
    else:
        assert torch.equal(pixels(out), pixel_grid(x))
    assert not torch.equal(pixel_grid(x), pixel_grid(load(labelled).sample(4, label=torch.full((4,), 4))))


@pytest.mark.parametrize("options", [[], ["--num-samples", "30"], ["--num-samples", "20", "--start-index", "7"]])
def test_all_labels_are_rows_of_a_class_each_from_the_first(labelled, options):
    sample([labelled, "--label", "all", "--sampler", "test_drawing.Classes", "--batch-size", "16", *options])
    columns = {"": 8, "30": 3, "20": 2}[options[1] if options else ""]
    greys = ((torch.arange(10) + 1) / 10).repeat_interleave(columns)
    expected = pixel_grid(greys.view(-1, 1, 1, 1).expand(-1, 1, 8, 8), columns)
    assert torch.equal(pixels("samples.png"), expected)


def test_a_model_with_labels_is_sampled_in_every_class_in_turn(labelled, capsys):
    sample([labelled, "--num-samples", "12", "--sampler", "test_drawing.Classes", "--batch-size", "5"])
    greys = (torch.arange(12) % 10 + 1) / 10
    assert torch.equal(pixels("samples.png"), pixel_grid(greys.view(-1, 1, 1, 1).expand(-1, 1, 8, 8)))
    assert "of each of 10 classes in turn" in capsys.readouterr().out


def test_no_class_is_a_choice_of_its_own(labelled, capsys):
    sample([labelled, "--num-samples", "4", "--label", "none", "--sampler", "test_drawing.Classes"])
    assert not pixels("samples.png").any()
    assert "levels, of no class\n" in capsys.readouterr().out


def test_a_folder_of_samples_is_not_completed_with_other_classes(labelled, capsys):
    sample([labelled, "--num-samples", "2", "--out", "folder", "--label", "none"])
    status, line = refusal(capsys, lambda: sample([labelled, "--num-samples", "4", "--out", "folder"]))
    assert (status, "--out: folder/000000.png exists" in line) == (2, True), line


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("digits", ["--label", "3"], r"--label: 3, but the model was trained without labels \(--data.labels true\)"),
        ("digits", ["--label", "all"], "--label: all, but the model was trained without labels"),
        (
            "labelled",
            ["--label", "10"],
            r"--label: expected `all`, `none` or a class \(0 = 0, 1 = 1, .* 9 = 9\), got 10$",
        ),
        ("labelled", ["--label", "-1"], "--label: expected"),
        ("labelled", ["--label", "cat"], "--label: expected .* got cat"),
        (
            "labelled",
            ["--label", "all", "--num-samples", "12"],
            "--num-samples must be a multiple of the 10 .* got 12",
        ),
        ("digits", ["--precision", "16-mixed"], "--precision: 16-mixed needs a GPU; take bf16-mixed on a CPU"),
        ("digits", ["--steps", "1"], "--steps: expected an integer from 2, got '1'"),
        ("digits", ["--steps", "x"], "--steps"),
        ("digits", ["--sigma-max", "0.05"], "expected 0 < sigma_min .* got sigma_min=0.1.*, sigma_max=0.05"),
        ("digits", ["--sigma-min", "0"], "expected 0 < sigma_min <= sigma_max, got sigma_min=0.0"),
        ("digits", ["--sigma-max", "nan"], "sigma_max=nan"),
        ("digits", ["--start-index", "-1"], "--start-index"),
        ("digits", ["--devices", "0"], "--devices"),
        ("digits", ["--out", "no/such/folder"], "--out: there is no folder no/such"),
        (
            "digits",
            ["--sampler", "Gibbs", "--sampler.sweeps", "1"],
            "Gibbs takes a log-probability, which EDMDenoiser does not give",
        ),
        ("digits", ["--steps", "3", "--sampler=ConsistentAnnealed", "--sampler.epsilon=1e-3"], "got epsilon=0.001"),
    ],
)
def test_a_wrong_wish_is_answered_in_one_line(request, here, capsys, model, options, message):
    status, line = refusal(capsys, lambda: sample([request.getfixturevalue(model), *options]))
    assert status == 2
    assert re.search(message, line), line
    assert not list(here.iterdir())


def test_points_go_into_no_folder_and_a_model_of_one_level_knows_no_steps(tmp_path_factory, here, capsys):
    moons = str(trained("implicit", tmp_path_factory.mktemp("moons"), "--samples.count", "0"))
    binary = str(trained("ratio_matching", tmp_path_factory.mktemp("binary"), "--samples.count", "0"))
    capsys.readouterr()
    status, line = refusal(capsys, lambda: sample([moons, "--out", "folder"]))
    assert (status, "--out folder: needs images" in line) == (2, True)
    status, line = refusal(capsys, lambda: sample([binary, "--steps", "5"]))
    assert (status, "--steps 5: the model has the single noise level 0" in line) == (2, True)
    assert not list(here.iterdir())


def test_levels_beyond_those_of_training_are_said_in_one_line(digits, here):
    with pytest.warns(UserWarning, match="sampling from sigma 50 to 0.1, but the model's own") as said:
        sample([digits, "--sigma-max", "50", "--num-samples", "1", "--out", "a.png"])
    line = warnings.formatwarning(said[0].message, UserWarning, "file.py", 1)
    assert re.fullmatch(r"warning: sampling from sigma 50 .* a guess\n", line)


@pytest.mark.parametrize("out", ["folder", "grid.png"])
@pytest.mark.parametrize("until", [0, 5])
def test_a_walk_that_diverges_names_sampler_level_and_remedy_and_writes_nothing(digits, here, capsys, out, until):
    options = ["--sampler", "test_drawing.Fading", "--sampler.until", str(until), "--out", out]
    status, line = refusal(capsys, lambda: sample([digits, "--num-samples", "4", *options]))
    level = {0: "2", 5: "0.1"}[until]
    assert (status, line) == (3, f"error: Fading diverged at noise level {level}; try another")
    assert not list(here.iterdir())


def test_what_was_drawn_before_a_walk_diverges_stays_and_nothing_of_its_batch_is_added(digits, capsys):
    def largest(seed):
        return next(load(digits).trajectories(range(6), seed, sampler=Fading(9))).flatten(1).amax(1)

    # One of the samples alone fails, which is in the second or the third batch.
    seed = next(seed for seed in range(100) if largest(seed).argmax() >= 2)
    bad, bound = int(largest(seed).argmax()), largest(seed).topk(2).values.mean().item()
    call = [digits, "--seed", str(seed), "--num-samples", "6", "--batch-size", "2", "--out", "folder"]
    options = ["--sampler", "test_drawing.Fading", "--sampler.until", "3", "--sampler.bound", str(bound)]
    status, line = refusal(capsys, lambda: sample([*call, *options]))
    assert (status, "Fading diverged at noise level" in line) == (3, True)
    assert list(pictures("folder")) == names(range(bad // 2 * 2))


@pytest.mark.slow
@pytest.mark.parametrize("out", ["folder", "grid.png"])
def test_two_devices_draw_what_one_does(digits, here, out):
    for devices in ("1", "2"):
        Path(devices).mkdir()
    options = [digits, "--num-samples", "7", "--batch-size", "2", "--device", "cpu"]
    sample([*options, "--out", f"1/{out}"])
    command = [sys.executable, str(REPOSITORY / "sample.py"), *options, "--devices", "2", "--out", f"2/{out}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("Wrote") == 1
    assert ran.stdout.count("Sampling 7 from") == 1
    one, two = (pictures(f"{devices}/{out}" if out == "folder" else devices) for devices in ("1", "2"))
    assert_alike(one, two)
    assert list(one) == (names(range(7)) if out == "folder" else ["grid.png"])


# What the network runs in.


@pytest.fixture
def seen(monkeypatch) -> set:
    """The dtypes of what networks take and return."""
    seen, forward = set(), UNet.forward

    def noted(self, x, *others):
        out = forward(self, x, *others)
        seen.add((x.dtype, out.dtype))
        return out

    monkeypatch.setattr(UNet, "forward", noted)
    return seen


def test_in_bf16_the_network_runs_and_the_state_does_not(digits, seen):
    sample([digits, "--num-samples", "2", "--out", "exact"])
    assert seen == {(torch.float32, torch.float32)}
    seen.clear()
    sample([digits, "--num-samples", "2", "--out", "rounded", "--precision", "bf16-mixed"])
    assert seen == {(torch.float32, torch.bfloat16)}
    exact, rounded = (torch.stack(list(pictures(folder).values())).float() for folder in ("exact", "rounded"))
    assert (exact - rounded).abs().mean() < 4  # of 255


@pytest.fixture(scope="module")
def rounded(tmp_path_factory) -> str:
    """A checkpoint that was trained in bf16."""
    folder = tmp_path_factory.mktemp("rounded")
    return str(train_small(folder, "--samples.count", "0", "--trainer.precision", "bf16-mixed"))


def precisions(folder) -> set[str]:
    """The precisions that the samples of a folder say that they were drawn in."""
    return {json.loads(text_in(file))["precision"] for file in Path(folder).glob("*.png")}


def test_a_model_trained_in_bf16_is_sampled_so_on_cuda_and_in_32_bits_elsewhere(
    rounded, digits, seen, monkeypatch, capsys
):
    options = ["--num-samples", "2", "--out"]
    sample([rounded, *options, "cpu"])
    assert precisions("cpu") == {"32-true"}
    assert "bf16" not in capsys.readouterr().out
    assert seen == {(torch.float32, torch.float32)}
    seen.clear()
    monkeypatch.setattr("ncsn.cli.devices.has_fast_bf16", lambda device: True)
    sample([rounded, *options, "cuda"])
    assert seen == {(torch.float32, torch.bfloat16)}
    seen.clear()
    sample([rounded, *options, "asked", "--precision", "32-true"])
    sample([digits, *options, "full"])
    assert seen == {(torch.float32, torch.float32)}
    assert [precisions(name) for name in ("cuda", "asked", "full")] == [{"bf16-mixed"}, {"32-true"}, {"32-true"}]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Sampling")]
    assert [line.endswith(", in bf16-mixed") for line in said] == [True, False, False]


def test_a_folder_is_completed_in_its_own_precision(rounded, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("ncsn.cli.devices.has_fast_bf16", lambda device: True)
        sample([rounded, "--num-samples", "2", "--out", "folder"])
    more = [rounded, "--num-samples", "3", "--batch-size", "2", "--out", "folder"]
    status, line = refusal(capsys, lambda: sample(more))
    assert (status, "000000.png exists; give another folder" in line) == (2, True)
    sample([*more, "--precision", "bf16-mixed"])
    assert len(pictures("folder")) == 3
    assert precisions("folder") == {"bf16-mixed"}


def test_bf16_is_fast_on_some_cuda_devices_alone(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: not including_emulation)
    assert [has_fast_bf16(torch.device(name)) for name in ("cpu", "mps", "cuda", "cuda:1")] == [
        False,
        False,
        True,
        True,
    ]
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: including_emulation)
    assert not has_fast_bf16(torch.device("cuda"))


def test_files_know_the_precision_of_training(rounded, digits):
    main(["export", rounded, "--to", "safetensors", "--out", "file.safetensors"])
    main(["export", rounded, "--to", "folder", "--out", "folder"])
    found = [load(path).settings["precision"] for path in (rounded, "file.safetensors", "folder", digits)]
    assert found == ["bf16-mixed"] * 3 + ["32-true"]
    assert "precision" not in load(REPOSITORY / "tests" / "data" / "earlier.ckpt").settings
    content = checkpoint_file.read(digits)
    checkpoint_file.write(content | {"precision": ["bf16-mixed"]}, Path("forged.ckpt"))
    with pytest.raises(ValueError, match=r"the settings in forged\.ckpt are invalid: precision"):
        load("forged.ckpt")


def test_what_is_made_of_the_samples_is_not_rounded(digits):
    module = load(digits)
    seen = []

    def finish(x):
        seen.append((x @ x.mT).dtype)
        return x

    request = Request([[0, 1]], EulerMaruyama(), module.schedule.sigmas(), finish=finish)
    with torch.autocast("cpu", torch.bfloat16):
        ((_, x),) = draws(module, request)
    assert x.dtype == torch.float32
    assert seen == [torch.float32]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2 GiB."),
        (RuntimeError, "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4194304000 bytes."),
        (RuntimeError, "std::bad_alloc"),
        (MemoryError, "Unable to allocate 2 GiB for an array"),
    ],
)
def test_memory_that_does_not_hold_a_batch_ends_it_in_one_line(digits, monkeypatch, capsys, kind, text):
    def none(*_):
        raise kind(text)

    monkeypatch.setattr(Model, "trajectories", none)
    status, line = refusal(capsys, lambda: sample([digits, "--num-samples", "2"]))
    assert (status, line) == (1, f"error: {text}; lower the batch size (--batch-size; --data.batch_size in training)")


def test_the_network_is_compiled_when_asked(digits, monkeypatch):
    compiled = []
    monkeypatch.setattr(UNet, "compile", lambda self, **settings: compiled.append(settings))
    sample([digits, "--num-samples", "2", "--compile"])
    assert compiled == [{"mode": "reduce-overhead", "dynamic": False}]
