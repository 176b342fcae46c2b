"""The code in the README and in the page on drawing runs."""

import re
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parent.parent
PAGES = (REPOSITORY / "README.md", REPOSITORY / "docs" / "sampling.md")
BLOCKS = re.findall(r"```python\n(.*?)```", "".join(page.read_text() for page in PAGES), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[-1][:30])
def test_a_block_runs(block, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    names = {"__name__": "readme"}
    exec(compile(block, "README.md", "exec"), names)
    if "model" in names:
        images, clean, score = names["images"], names["clean"], names["score"]
        torch.testing.assert_close(clean, images + 0.25 * score)
        assert images.shape == clean.shape == (64, 1, 8, 8)
        assert (clean - images).square().mean() > 1e-3
        of_noise = names["model"].log_prob(torch.rand(2, 1, 8, 8), probes=1)
        assert names["nats"].min() > of_noise.max() + 100  # of 64 numbers
    elif "guided" in names:
        torch.testing.assert_close(names["x"].mean(0), torch.full((4,), 2.0), atol=0.15, rtol=0)
    elif "x" in names:
        assert names["x"].mean().item() == pytest.approx(0.3, abs=0.03)
        assert names["x"].std().item() == pytest.approx(0.7, abs=0.03)
    else:
        sigmas = torch.logspace(1, -2, 500)
        start = 10 * torch.randn(5000, 1)
        *_, x = names["Euler"]()(lambda x, sigma: (0.3 - x) / (0.49 + sigma**2), start, sigmas)
        assert x.std().item() == pytest.approx(0.7, abs=0.03)
