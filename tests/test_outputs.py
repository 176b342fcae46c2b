"""Every kind of output of `sample.py`, read back: names, pixels, order, captions; and what does not go together."""

import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ncsn.cli.main import main
from ncsn.cli.writers import NpzWriter
from ncsn.data import enlarged, pixel_grid, tiled, to_pixels
from ncsn.evaluation import grids
from ncsn.evaluation.copies import neighbours
from ncsn.model.load import load, load_data
from ncsn.noise.streams import Streams
from ncsn.samplers import Sampler
from PIL import Image

from test_bad_inputs import image_folder
from test_cli import REPOSITORY, pixels, refusal, run_train, sample, train_small
from test_drawing import pictures
from test_sampling import trained


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> str:
    return str(train_small(tmp_path_factory.mktemp("digits"), "--samples.count", "0"))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("labelled")
    return str(train_small(folder, "--data.labels", "true", "--samples.count", "0"))


@pytest.fixture(scope="module")
def moons(tmp_path_factory) -> str:
    return str(trained("implicit", tmp_path_factory.mktemp("moons")))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """A folder of its own for each test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@dataclass(frozen=True)
class Fails(Sampler):
    """A sampler whose walk diverges for the later samples."""

    def __call__(self, score, x, sigmas):
        for _ in sigmas:
            yield torch.where(torch.arange(len(x)).view(-1, 1, 1, 1) < len(x) - 1, x, torch.nan)


def frames(file: str) -> list[torch.Tensor]:
    """The frames of a GIF, (3, H, W)."""
    with Image.open(file) as moving:
        found = []
        for number in range(moving.n_frames):
            moving.seek(number)
            found.append(torch.tensor(np.array(moving.convert("RGB"))).permute(2, 0, 1))
    return found


def states(checkpoint: str, count: int, seed: int = 0) -> torch.Tensor:
    """The pixels of the start and of what is left of each level: (count, 1 + L, 1, 8, 8)."""
    module = load(checkpoint)
    with Streams(seed, range(count), module.device):
        start = module.start(count, module.schedule.sigmas()[0])
    return torch.stack([to_pixels(x) for x in [start, *module.trajectories(range(count), seed)]], dim=1)


def test_a_default_name_is_never_one_that_is_there(digits, capsys):
    for name in ("samples.png", "samples-2.png", "samples-3.png"):
        sample([digits, "--num-samples", "2", "--seed", name[8] if "-" in name else "1"])
        assert f"Wrote {name}" in capsys.readouterr().out
    assert {file.name for file in Path().iterdir()} == {"samples.png", "samples-2.png", "samples-3.png"}
    assert not torch.equal(pixels("samples.png"), pixels("samples-2.png"))


def test_a_published_folder_is_sampled_into_a_folder(digits):
    main(["export", digits, "--to", "folder", "--out", "hub-v1.2"])
    for _ in range(2):  # the second finds them there
        sample(["hub-v1.2", "--num-samples", "2", "--out", "pngs"])
    assert len(list(Path("pngs").iterdir())) == 2


def test_the_limit_of_an_image_is_of_what_is_shown(digits, capsys, monkeypatch):
    """The digits are shown with four times their pixels a side."""
    monkeypatch.setattr("ncsn.cli.sample.MOST_PIXELS", 4 * 32**2)
    sample([digits, "--num-samples", "4"])
    status, line = refusal(capsys, lambda: sample([digits, "--num-samples", "5"]))
    assert (status, "5 of 1,024 pixels are more than the 4,096 of an image" in line) == (2, True)


def test_a_name_that_is_given_is_written_over(digits):
    Path("mine.png").write_text("old")
    sample([digits, "--num-samples", "2", "--out", "mine.png"])
    assert torch.equal(pixels("mine.png"), pixel_grid(load(digits).sample(2)))


@pytest.mark.parametrize("size", ["1", "4", "256"])
def test_an_array_has_the_pixels_of_the_pngs_in_their_order(digits, size):
    options = ["--num-samples", "7", "--start-index", "3", "--seed", "2", "--batch-size", size]
    sample([digits, *options, "--out", "array.npz"])
    sample([digits, *options, "--out", "folder"])
    with np.load("array.npz") as content:
        assert content.files == ["arr_0"]
        array = content["arr_0"]
    assert (array.shape, array.dtype) == ((7, 8, 8, 1), np.uint8)
    drawn = torch.stack(list(pictures("folder").values()))
    assert torch.equal(torch.tensor(array).permute(0, 3, 1, 2), drawn)
    assert sorted(file.name for file in Path().iterdir()) == ["array.npz", "folder"]


def test_an_array_is_read_from_its_zip_as_the_evaluators_do(digits):
    sample([digits, "--num-samples", "5", "--out", "array.npz"])
    with zipfile.ZipFile("array.npz") as archive, archive.open("arr_0.npy") as array:
        assert np.lib.format.read_magic(array) == (1, 0)
        shape, fortran, kind = np.lib.format.read_array_header_1_0(array)
        assert (shape, fortran, kind) == ((5, 8, 8, 1), False, np.uint8)
        assert len(array.read()) == 5 * 64
        assert archive.infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)  # the same samples are the same file


def test_an_array_may_be_larger_than_a_zip_is_at_first(digits):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zipfile.ZIP64_LIMIT", 100)
        sample([digits, "--num-samples", "5", "--out", "array.npz"])
    assert np.load("array.npz")["arr_0"].shape == (5, 8, 8, 1)


def test_rows_are_not_written_through_a_link(digits, capsys):
    """Catches a second process that opens the rows by their name, whoever has put a link there."""
    Path("mine").write_text("mine")

    class Swapped(NpzWriter):
        def write(self, *given):
            self.rows.unlink()
            self.rows.symlink_to("mine")
            super().write(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ncsn.cli.sample.NpzWriter", Swapped)
        status, _ = refusal(capsys, lambda: sample([digits, "--num-samples", "2", "--out", "array.npz"]))
    assert status == 1
    assert Path("mine").read_text() == "mine"
    assert [file.name for file in Path().iterdir()] == ["mine"]


def test_an_array_is_whole_or_as_it_was(digits, capsys):
    Path("array.npz").write_text("old")
    options = ["--num-samples", "6", "--batch-size", "2", "--sampler", "test_outputs.Fails", "--out", "array.npz"]
    status, line = refusal(capsys, lambda: sample([digits, *options]))
    assert (status, "diverged" in line) == (3, True)
    assert Path("array.npz").read_text() == "old"
    assert [file.name for file in Path().iterdir()] == ["array.npz"]


def test_a_gif_goes_from_the_start_to_the_samples(digits):
    sample([digits, "--num-samples", "4", "--out", "trajectory.gif"])
    found, expected = frames("trajectory.gif"), states(digits, 4)
    assert len(found) == expected.shape[1] == 7
    for frame, state in zip(found, expected.unbind(1), strict=True):
        grid = tiled(enlarged(state))
        assert torch.equal(frame[:, grids.LINE :, : grid.shape[-1]], grid)
        assert frame[:, : grids.LINE].any()
    ladder = load(digits).schedule.sigmas()
    names = ["start", *(f"\N{GREEK SMALL LETTER SIGMA} {sigma:.2g}" for sigma in ladder)]
    assert grids.state_names(ladder, range(7)) == names
    for frame, name in zip(found, names, strict=True):
        assert torch.equal(frame[:, : grids.LINE], grids.text_line(name, frame.shape[-1]))
    with Image.open("trajectory.gif") as moving:
        times = []
        for number in range(moving.n_frames):
            moving.seek(number)
            times.append(moving.info["duration"])
        assert moving.info["loop"] == 0
    assert times == [570] * 6 + [2000]


def test_a_gif_has_so_many_frames(digits):
    sample([digits, "--num-samples", "1", "--trajectory", "3", "--upscale", "1", "--out", "trajectory.gif"])
    found, expected = frames("trajectory.gif"), states(digits, 1)[0, [0, 3, 6]].expand(-1, 3, -1, -1)
    for frame, state in zip(found, expected, strict=True):
        assert torch.equal(frame[:, grids.LINE :, :8], state)


def test_a_gif_of_colours_has_them(tmp_path):
    x = torch.zeros(3, 16, 16, dtype=torch.uint8)
    x[0, :8], x[1, 8:] = 250, 120
    grids.save_gif([x, x.flip(0)], tmp_path / "a.gif")
    one, other = frames(str(tmp_path / "a.gif"))
    assert torch.equal(one, x)
    assert torch.equal(other, x.flip(0))


def test_the_rows_of_walks_are_states_under_their_names(digits):
    sample([digits, "--trajectory", "4", "--num-samples", "2", "--seed", "5", "--out", "walk.png"])
    expected = states(digits, 2, seed=5)[:, [0, 2, 4, 6]]
    sheet, width = pixels("walk.png"), 50
    assert sheet.shape == (3, grids.LINE + 2 * width + 2, 4 * width + 2)
    assert torch.equal(sheet[:, grids.LINE :], tiled(enlarged(expected.flatten(0, 1), 6), 4))
    ladder = load(digits).schedule.sigmas()
    for column, name in enumerate(["start", *(grids.level_name(ladder[i].item()) for i in (1, 3, 5))]):
        head = sheet[:, : grids.LINE, 1 + column * width : 1 + (column + 1) * width]
        assert torch.equal(head, grids.text_line(name, width))


def test_captions_are_indices_and_the_names_of_classes(labelled):
    sample([labelled, "--label", "all", "--num-samples", "20", "--captions", "--out", "captions.png"])
    sample([labelled, "--label", "all", "--num-samples", "20", "--upscale", "7", "--out", "plain.png"])
    sheet, plain = pixels("captions.png"), pixels("plain.png")
    side, line = 58, grids.LINE
    for row in range(10):
        top = row * (side + line)
        assert torch.equal(sheet[:, top : top + side], plain[:, row * side : (row + 1) * side])
        for column in (0, 1):
            place = sheet[:, top + side : top + side + line, 2 + column * side : (column + 1) * side]
            assert torch.equal(place, grids.text_line(f"{10 * column + row}: {row}", 56))


def test_rows_and_pixels_are_as_many_as_asked_for(digits):
    sample([digits, "--num-samples", "6", "--nrow", "6", "--upscale", "1", "--out", "row.png"])
    x = load(digits).sample(6)
    assert torch.equal(pixels("row.png"), pixel_grid(x, 6, 1))
    assert pixels("row.png").shape == (3, 12, 62)
    sample([digits, "--num-samples", "1", "--upscale", "3", "--out", "one.png"])
    assert torch.equal(pixels("one.png")[:1, ::3, ::3], to_pixels(load(digits).sample(1))[0])


def test_several_checkpoints_are_a_block_each_of_the_same_seeds(digits, labelled):
    sample([digits, labelled, digits, "--num-samples", "4", "--seed", "3", "--out", "three.png"])
    sheet = pixels("three.png")
    width = sheet.shape[-1] // 3
    blocks = sheet.split(width, dim=-1)
    assert torch.equal(blocks[0], blocks[2])
    for checkpoint, part in zip((digits, labelled), blocks, strict=False):
        grid = pixel_grid(load(checkpoint).sample(4, seed=3))
        assert torch.equal(part[:, grids.LINE :, 4 : 4 + grid.shape[-1]], grid)
        assert torch.equal(part[:, : grids.LINE, 4:-4], grids.text_line("small/step=7", width - 8))


def test_several_checkpoints_move_side_by_side(digits, labelled):
    sample([digits, labelled, "--num-samples", "1", "--trajectory", "3", "--out", "two.gif"])
    assert len(frames("two.gif")) == 3


def test_nearest_images_are_found_in_data_that_has_moved(here, capsys):
    image_folder(here / "images")
    data = ["--data", "ImageFolder", "--data.root", "images", "--data.size", "8", "--data.channels", "1"]
    checkpoint = train_small(here, *data, "--data.batch_size", "4", "--samples.count", "0", "--trainer.max_steps", "1")
    Path("images").rename("moved")
    capsys.readouterr()
    options = [str(checkpoint), "--num-samples", "2", "--nearest", "1", "--out", "near.png"]
    status, line = refusal(capsys, lambda: sample(options))
    assert (status, "say where it lies now by --data.root DIR" in line) == (2, True), line
    sample([*options, "--data.root", "moved"])
    assert Path("near.png").is_file()
    status, line = refusal(capsys, lambda: sample([str(checkpoint), "--data.root", "moved", "--out", "a.png"]))
    assert (status, "--data has no effect without --nearest" in line) == (2, True), line


def test_training_pictures_stand_beside_what_they_are_nearest_to(digits):
    sample([digits, "--num-samples", "3", "--nearest", "2", "--nrow", "1", "--out", "near.png"])
    data = load_data(digits)
    data.setup()
    x, training = load(digits).sample(3), data.splits["train"]
    distances, indices = neighbours(x, training, 2)
    every = (to_pixels(x).flatten(1)[:, None] / 255 - training.values.flatten(1)[None] / 255).norm(dim=-1)
    torch.testing.assert_close(distances, every.sort(1).values[:, :2], atol=1e-2, rtol=0)
    sheet, height = pixels("near.png"), 58 + grids.LINE + 2 + 4 + 2
    for i in range(3):
        strip = sheet[:, i * height + 2 : (i + 1) * height]
        shown = torch.stack([to_pixels(x[i]), *(training[[j]][0][0] for j in indices[i].tolist())])
        for column, picture in enumerate(shown):
            left = 2 + 4 + 2 + 58 * column
            assert torch.equal(strip[:, 4 : 4 + 56, left : left + 56], enlarged(picture, 7).expand(3, -1, -1))
        left = 2 + 4 + 2
        assert torch.equal(strip[:, 60 : 60 + grids.LINE, left : left + 56], grids.text_line(f"no. {i}", 56))
        near = grids.text_line(f"{distances[i, 0]:.2f}", 56)
        assert torch.equal(strip[:, 60 : 60 + grids.LINE, left + 58 : left + 58 + 56], near)


def test_a_copy_of_a_training_picture_is_called_one(monkeypatch, digits):
    monkeypatch.setattr("ncsn.cli.sample.are_copies", lambda distances: distances[:, 0] > -1)
    words = []
    monkeypatch.setattr(
        "ncsn.cli.sample.nearest_grid", lambda *given: words.extend(given[2]) or torch.zeros(3, 9, 9).byte()
    )
    sample([digits, "--num-samples", "2", "--nearest", "1", "--out", "near.png"])
    assert [one[0] for one in words] == ["copy 0", "copy 1"]


def test_settings_are_printed_as_the_training_command_takes_them(digits, capsys):
    sample([digits, "--show-settings"])
    out = capsys.readouterr().out
    assert out.startswith(f"# {digits}, step 7\n")
    settings = yaml.safe_load(out)
    assert settings["data"]["class_path"] == "ncsn.data.Digits"
    assert settings["model"]["denoiser"]["init_args"]["network"]["init_args"]["width"] == 8
    Path("again.yaml").write_text(out)
    run_train("--config", "again.yaml", "--trainer.max_steps", "1", "--trainer.accelerator", "cpu")
    assert load("checkpoints/run/step=1.ckpt").schedule == load(digits).schedule


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "a.npz", "--nrow", "3"], "--nrow has no effect with --out a.npz"),
        (["--out", "folder", "--upscale", "2"], "--upscale has no effect with --out folder"),
        (["--out", "a.gif", "--nearest", "2"], "--nearest has no effect with --out a.gif"),
        (["--out", "a.gif", "--captions"], "--captions has no effect with --out a.gif"),
        (["--trajectory", "5", "--nearest", "2"], "--nearest has no effect with --trajectory"),
        (["--trajectory", "5", "--nrow", "2"], "--nrow has no effect with --trajectory"),
        (["--trajectory", "1"], "--trajectory: expected an integer from 2, got '1'"),
        (["--nearest", "0"], "--nearest"),
        (["--nrow", "0"], "--nrow"),
        (["--upscale", "0"], "--upscale"),
        (["--out", "a.jpg"], "--out: expected a .png, .gif or .npz file, or a folder, got a.jpg"),
        (["--out", "is_there.gif"], "--out: is_there.gif is a folder"),
        (["--mask", "a.png"], "unrecognized arguments: --mask"),
    ],
)
def test_what_does_not_go_together_is_told_without_torch(here, options, message):
    Path("is_there.gif").mkdir()
    code = (
        "import sys; from ncsn.cli.main import sample\ntry: sample(sys.argv[1:])\n"
        "except SystemExit as e: sys.exit(e.code if 'torch' not in sys.modules else 99)"
    )
    command = [sys.executable, "-c", code, *options]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1), ran.stderr
    assert re.search(re.escape(message), ran.stderr), ran.stderr
    assert [file.name for file in here.iterdir()] == ["is_there.gif"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "points.npz"], "--out points"),
        (["--out", "points.gif"], "--out points"),
        (["--trajectory", "4"], "--trajectory: needs images"),
        (["--captions"], "--captions: needs images"),
    ],
)
def test_points_are_not_laid_out_as_pictures(moons, here, capsys, options, message):
    status, line = refusal(capsys, lambda: sample([moons, *options]))
    assert (status, message in line) == (2, True), line
    assert not list(here.iterdir())


def test_the_end_of_a_text_that_is_too_long_is_shown():
    long, short = grids.text_line("a/very/long/name/step=1200", 60), grids.text_line("step=1200", 60)
    assert long.shape == short.shape == (3, grids.LINE, 60)
    assert long.any()
    assert torch.equal(grids.text_line("", 60), torch.zeros(3, grids.LINE, 60, dtype=torch.uint8))


def launch(*options: str, **others) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"}
    command = [sys.executable, str(REPOSITORY / "sample.py"), *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_two_processes_fill_the_same_array_as_one(digits):
    for devices in ("1", "2"):
        options = ["--num-samples", "9", "--start-index", "2", "--batch-size", "2", "--device", "cpu"]
        process = launch(digits, *options, "--devices", devices, "--out", f"{devices}.npz")
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
        assert out.count("Wrote") == 1
    one, two = (np.load(f"{devices}.npz")["arr_0"].astype(int) for devices in ("1", "2"))
    assert one.shape == (9, 8, 8, 1)
    assert np.abs(one - two).max() <= 1  # matrix products may add up in another order
    assert sorted(file.name for file in Path().iterdir()) == ["1.npz", "2.npz"]


@pytest.mark.slow
def test_two_processes_draw_the_same_walk_as_one(digits):
    for devices in ("1", "2"):
        options = ["--num-samples", "5", "--batch-size", "2", "--device", "cpu", "--trajectory", "4"]
        process = launch(digits, *options, "--devices", devices, "--out", f"{devices}.png")
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
    assert (pixels("1.png").int() - pixels("2.png").int()).abs().max() <= 1


@pytest.mark.slow
def test_a_signal_leaves_no_part_of_an_array(digits):
    process = launch(digits, "--num-samples", "200000", "--out", "array.npz")
    deadline = time.monotonic() + 120
    while not list(Path().glob(".*.partial")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, out
    assert "Traceback" not in out
    assert not list(Path().iterdir())
