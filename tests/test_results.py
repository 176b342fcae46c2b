"""The table of results is of what was run."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from test_cli import REPOSITORY, SMALL, refusal

from ncsn.results import main


def test_a_config_that_is_not_there_is_refused_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    monkeypatch.setattr(sys, "argv", ["results.py", "small.yaml", "absent.yaml"])
    assert refusal(capsys, main) == (2, "error: configs: there is no file absent.yaml")
    assert [file.name for file in tmp_path.iterdir()] == ["small.yaml"]


@pytest.mark.slow
def test_results_are_trained_evaluated_and_put_in_one_table(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    Path("small.yaml").write_text(SMALL)
    options = ["small.yaml", "--train", "--trainer.max_steps 3", "--evaluate", "--num-samples 70 --seeds 2"]
    monkeypatch.setattr(sys, "argv", ["results.py", *options])
    main()
    out = capfd.readouterr().out
    table = out[out.index("| config") :].splitlines()
    head, _, row = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table)
    report = json.loads(Path("checkpoints/small_results/report.json").read_text())
    assert report["samples"]["checkpoint"] == "checkpoints/small_results/step=3.ckpt"
    cells = dict(zip(head, row, strict=True))
    assert (cells["config"], cells["samples"], cells["network calls"]) == ("small", "70", "7")
    assert cells["sampler"].endswith(", 6 levels")
    values = torch.tensor(report["figures"]["recall"], dtype=torch.float64)
    floor = report["floor"]["recall"]
    assert cells["recall"] == f"{values.mean():.4g} +- {values.std():.2g} ({floor:.4g})"
    assert re.fullmatch(r"\d+\.\d min", cells["training"])
    # A row that is there is not made again, but for other options.
    monkeypatch.setattr("ncsn.results.done", lambda command: pytest.fail(f"ran {command}"))
    main()
    assert capfd.readouterr().out == "\n".join(table) + "\n"
    monkeypatch.setattr(sys, "argv", ["results.py", *options[:-1], "--num-samples 70"])
    with pytest.raises(pytest.fail.Exception):
        main()
