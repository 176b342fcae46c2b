"""What docs/own.md shows of one's own is trained and drawn from by the commands, from a configuration that names it."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from ncsn.cli.main import main
from ncsn.model.load import load, load_data, save_safetensors
from ncsn.noise import NoiseSchedule
from ncsn.objectives import DenoisingScoreMatching
from ncsn.samplers import Sampler
from ncsn.training.module import ScoreModule

from test_cli import SMALL, pixels, refusal, run_train, sample

REPOSITORY = Path(__file__).parent.parent
TEXT = (REPOSITORY / "docs" / "own.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
SCRIPT = re.search(r"```py\n(.*?)```", TEXT[TEXT.index("## A script") :], re.DOTALL)[1]
CONFIG = re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)[1]
SHORT = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--samples.count", "0"]
SHORT += ["--trainer.accelerator", "cpu"]


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A folder with all of the blocks in a file `mine.py`, and `own.yaml`; and that file as a module."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text("\n".join(BLOCKS))
    (folder / "own.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        import mine

        yield mine
        del sys.modules["mine"]


def part(settings: dict, key: str) -> dict:
    """The settings that a dotted key leads to."""
    for name in key.split("."):
        settings = settings[name]
    return settings


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model.schedule", "Cosine"),
        ("model.denoiser", "Velocity"),
        ("model.objective", "PseudoHuber"),
        ("model.sampler", "Euler"),
        ("model.denoiser.init_args.network", "Convolutions"),
        ("data", "Stripes"),
    ],
)
def test_each_is_trained_and_drawn_from_among_parts_of_the_package(mine, tmp_path, monkeypatch, capsys, key, name):
    monkeypatch.chdir(tmp_path)
    settings, own = yaml.safe_load(SMALL), part(yaml.safe_load(CONFIG), key)
    assert own["class_path"] == f"mine.{name}"
    theirs = part(settings, key)
    theirs["class_path"] = own["class_path"]
    settings["model"]["sampler"]["init_args"]["epsilon"] = 1e-5  # for the lowest level of `Cosine`
    if key != "model.denoiser":
        theirs["init_args"] = own.get("init_args", {})
    Path("own.yaml").write_text(yaml.safe_dump(settings))
    run_train("--config", "own.yaml", *SHORT)
    trust, draw = [f"mine.{name}"], ["--num-samples", "2", "--device", "cpu"]
    sample([*draw, "--trust", *trust])
    assert "Sampling 2 from checkpoints/small/step=2.ckpt" in capsys.readouterr().out
    module = load("checkpoints/small/step=2.ckpt", trust=trust)
    if name == "Stripes":
        with pytest.raises(ValueError, match=r"data: mine\.Stripes is not a class of this package; if it is yours"):
            load_data("checkpoints/small/step=2.ckpt")
        assert isinstance(load_data("checkpoints/small/step=2.ckpt", trust), mine.Stripes)
    else:
        setting = key.removeprefix("model.").replace(".init_args", "")
        status, line = refusal(capsys, lambda: sample(draw))
        assert status == 2
        assert f"{setting}: mine.{name} is not a class of this package" in line
        assert line.endswith(f'if it is yours and you trust it: --trust mine.{name} (in Python, trust=["mine.{name}"])')
        path = key.removeprefix("model.").replace(".init_args", "")
        built = ScoreModule.load_from_checkpoint("checkpoints/small/step=2.ckpt", trust=trust)
        for attribute in path.split("."):
            built = getattr(built, attribute)
        assert type(built) is getattr(mine, name)
        save_safetensors(module, "model.safetensors")
        assert torch.equal(load("model.safetensors", trust=trust).sample(1), module.sample(1))


@pytest.mark.slow
def test_all_of_them_by_the_commands_from_a_file_beside_them(mine, tmp_path):
    """As a user would, in a process of its own; and where the file is gone, one line says so."""
    for file in ("train.py", "sample.py"):
        shutil.copy(REPOSITORY / file, tmp_path)
    for file in ("mine.py", "own.yaml"):
        shutil.copy(Path(mine.__file__).parent / file, tmp_path)

    def command(*arguments):
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        return subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment
        )

    trained = command("train.py", "--config", "own.yaml", *SHORT)
    assert "Trained 2 steps." in trained.stdout, trained.stderr
    given = re.search(r"^ncsn sample (--trust \S+)$", TEXT, re.MULTILINE)[1].split()
    drawn = command("sample.py", "--num-samples", "4", "--device", "cpu", *given)
    assert "by Euler() over 20 levels" in drawn.stdout, drawn.stderr
    assert pixels(str(tmp_path / "samples.png")).float().std() > 0
    (tmp_path / "mine.py").unlink()
    drawn = command("sample.py", "--out", "other.png", "--device", "cpu", *given)
    assert drawn.returncode == 2
    assert re.search(r"mine\.\w+ cannot be imported: No module named .mine.; put it next to the command", drawn.stderr)
    assert len(drawn.stderr.splitlines()) == 1


def test_a_script_trains_saves_and_is_sampled_evaluated_exported_and_fine_tuned(tmp_path, monkeypatch, capsys):
    """By the commands that the page shows, of a network that is defined in the script that is run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    small = {"max_steps=1000": "max_steps=2, accelerator='cpu', logger=False, enable_checkpointing=False"}
    text = SCRIPT.replace(*small.popitem()).replace("Net(512)", "Net(16)")
    Path("script.py").write_text(text)
    runpy.run_path("script.py", run_name="__main__")
    lines = re.search(r"```bash\npython script.py\n(.*?)```", TEXT, re.DOTALL)[1].splitlines()
    more = {
        "sample": "--steps 3 --num-samples 2 --device cpu",
        "evaluate": "--steps 3 --num-samples 100 --device cpu",
        "train": "--trainer.max_steps 1 --samples.count 0 --trainer.accelerator cpu --trainer.limit_val_batches 1",
    }
    for line in lines:
        words = line.replace("width 512", "width 16").replace("checkpoints/", f"{REPOSITORY}/checkpoints/").split()
        command = "train" if words[1] == "train.py" else words[3]
        given = words[2 if command == "train" else 4 :]
        main([command, *given, *more.get(command, "").split()])
    shown, err = capsys.readouterr()
    assert "| Frechet distance" in shown
    assert "Starting from 4 of 4 weights in script.safetensors" in err
    assert pixels("samples.png").shape[1] > 8
    for file in ("script.ckpt", "script.safetensors", "checkpoints/tuned/step=1.ckpt"):
        network = load(file, trust=["script.Net"]).denoiser.network
        assert (type(network).__module__, network.width) == ("script", 16)
    first, published = (load(file, trust="script.Net") for file in ("script.ckpt", "script.safetensors"))
    assert torch.equal(first.sample(2), published.sample(2))
    sys.modules.pop("script", None)


def test_the_guide_s_lines_of_python_train_and_sample(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = re.search(r"### In Python.*?```python\n(.*?)```", (REPOSITORY / "docs/guide.md").read_text(), re.DOTALL)[1]
    quiet = "max_steps=2, limit_val_batches=0, accelerator='cpu', logger=False, enable_checkpointing=False"
    names = {}
    exec(block.replace("max_steps=1100", quiet).replace("sample(64)", "sample(2)"), names)
    assert names["images"].shape == (2, 1, 8, 8)
    content = torch.load("digits.ckpt", weights_only=True)
    averaged, raw = content["state_dict"], content["current_model_state"]
    assert any(not torch.equal(averaged[name], weight) for name, weight in raw.items())
    loaded = load("digits.ckpt").state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in averaged.items())


def test_the_schedule_falls_and_draws_within_its_ends(mine):
    schedule = mine.Cosine()
    assert isinstance(schedule, NoiseSchedule)
    assert (schedule.sigmas().diff() < 0).all()
    levels = schedule.sample(torch.zeros(1000, 1, 2, 2))
    assert levels.shape == (1000, 1, 1, 1)
    assert schedule.sigmas()[-1] <= levels.min() < levels.max() <= schedule.sigmas()[0] * 1.001


def test_the_denoiser_keeps_the_variance_of_its_input_and_its_target(mine):
    """Of data N(0, 1): F sees N(0, 1), and has to give (c_skip x - clean) / -c_out, of variance 1, too."""
    clean, z, sigma = torch.randn(100_000, 1), torch.randn(100_000, 1), torch.tensor(0.7)
    c_skip, c_out, c_in, _ = mine.Velocity(torch.nn.Identity()).scalings(sigma)
    x = clean + sigma * z
    assert (c_in * x).var().item() == pytest.approx(1, abs=0.02)
    assert ((clean - c_skip * x) / c_out).var().item() == pytest.approx(1, abs=0.02)


def test_the_objective_is_denoising_score_matching_of_small_errors(mine):
    """sqrt(|e|^2 + c^2) - c is |e|^2 / (2 c) where e is small: there, denoising score matching over c."""
    x, sigma = torch.randn(50, 1, 4, 4).double(), torch.full((50, 1, 1, 1), 0.5).double()

    def nearly(noisy, sigma):
        return -1.01 * (noisy - x) / sigma**2

    torch.manual_seed(1)
    ours = mine.PseudoHuber(c=20.0)(nearly, x, sigma)
    torch.manual_seed(1)
    torch.testing.assert_close(20 * ours, DenoisingScoreMatching()(nearly, x, sigma), rtol=1e-3, atol=0)
    assert ours.shape == (50,)


def test_the_sampler_draws_what_the_score_is_of(mine):
    assert isinstance(mine.Euler(), Sampler)
    *_, x = mine.Euler()(
        lambda x, sigma: (0.3 - x) / (0.49 + sigma**2), 10 * torch.randn(5000, 1), torch.logspace(1, -2, 500)
    )
    assert x.mean().item() == pytest.approx(0.3, abs=0.03)
    assert x.std().item() == pytest.approx(0.7, abs=0.03)


def test_the_stripes_are_constant_one_way_and_not_the_other(mine):
    data = mine.Stripes()
    data.setup()
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 900, "val": 100}
    x, label = data.splits["train"][list(range(50))]
    assert (x.dtype, x.shape) == (torch.uint8, (50, 1, 8, 8))
    for picture, level in zip(x.float(), label, strict=True):
        rows = picture[0] if level == 0 else picture[0].T
        assert (rows.std(0) == 0).all()
        assert rows.std(1).min() > 20
