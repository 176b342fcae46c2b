"""The code in the README and the docs runs, and their commands have the options that they name."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from ncsn.cli.config_file import check_config
from ncsn.cli.main import OWN_PARSERS
from ncsn.cli.options import COMMANDS, parse
from ncsn.cli.train import with_config_files

REPOSITORY = Path(__file__).parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
CODE = "".join(page.read_text() for page in PAGES if page.name in ("README.md", "sampling.md"))
CODE += (
    (REPOSITORY / "docs" / "guide.md").read_text().partition("## A model in Python")[2]
)  # tests/test_own.py: the rest
BLOCKS = re.findall(r"```python\n(.*?)```", CODE, re.DOTALL)
LINES = [line for page in PAGES for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
         for line in re.split(r"&&|\n", block)]  # fmt: skip
CALLS = sorted({call for line in LINES if (call := line.partition(" #")[0].strip())})
OURS = [call for call in CALLS if re.match(r"(\w+=\S+ )*(ncsn|python (train|sample)\.py|python -m ncsn )\b", call)]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[-1][:30])
def test_a_block_runs(block, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    names = {"__name__": "readme"}
    exec(compile(block, "README.md", "exec"), names)
    if "optimizer" in names:
        likely, noise = (
            names["data"].log_prob(x, torch.tensor(0.3)).mean() for x in (names["samples"], 8 * torch.randn(1000, 2))
        )
        assert likely > noise + 2
    elif "restored" in names:
        residual = names["A"](names["restored"]) - names["y"]
        assert residual.square().mean().sqrt().item() == pytest.approx(0.02, rel=0.5)
    elif "faster" in names:
        assert names["x"].shape == names["clean"].shape == (6, 1, 8, 8)
        assert names["faster"].dtype == torch.float32
    elif "model" in names:
        images, noisy, clean, score = (names[name] for name in ("images", "noisy", "clean", "score"))
        torch.testing.assert_close(clean, noisy + 0.25 * score)
        assert images.shape == clean.shape == (64, 1, 8, 8)
        assert (clean - images).square().mean() < 0.5 * (noisy - images).square().mean()
        of_noise = names["model"].log_prob(torch.rand(1, 1, 8, 8), probes=1)
        assert names["nats"].min() > of_noise.max() + 100  # of 64 numbers
    elif "guided" in names:
        torch.testing.assert_close(names["x"].mean(0), torch.full((4,), 2.0), atol=0.15, rtol=0)
    else:
        assert names["x"].mean().item() == pytest.approx(0.3, abs=0.03)
        assert names["x"].std().item() == pytest.approx(0.7, abs=0.03)


def test_there_are_commands_to_check():
    assert len(BLOCKS) >= 4
    assert len(OURS) > 40


@pytest.mark.parametrize("call", OURS)
def test_a_command_has_the_options_that_it_is_given(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word for word in shlex.split(call) if not re.match(r"[A-Z_]+=", word)]
    words = re.sub(r"^(python (train|sample)\.py)", r"ncsn \2", " ".join(map(shlex.quote, words)))
    _, command, *arguments = shlex.split(words.replace("python -m ncsn", "ncsn"))
    assert command in COMMANDS
    if command not in OWN_PARSERS:
        parse(command, arguments)
    given = with_config_files(arguments)
    for option, file in pairwise(given):
        if option == "--config" and Path(file).is_absolute():
            check_config(file)
        elif option in ("--config", "--data") and file.startswith("configs/"):
            check_config(REPOSITORY / file)
