"""The table of results: `python -m ncsn.results configs/digits.yaml configs/mnist.yaml` trains, evaluates and prints.

Each configuration is trained by the training command into a run of its own, named NAME_results, and evaluated by the
evaluation command, as a user would. Options for either go through: `--train "--trainer.max_time 00:00:10:00"`,
`--evaluate "--num-samples 10000 --seeds 3"`. What is in the table was run, and nothing else is: a row stays in
checkpoints/NAME_results/result.json, and is not made again while the configuration and the options are the same.
"""

import json
import shlex
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from ncsn.checkpoints import newest_checkpoint
from ncsn.errors import answered, fail
from ncsn.evaluation.report import markdown
from ncsn.files import atomic_write
from ncsn.options import OneLineParser
from ncsn.storage.card import spread

__all__ = ["main", "result", "results_table"]

TRAIN = [sys.executable, "-c", "from ncsn.cli import train; train()"]
EVALUATE = [sys.executable, "-m", "ncsn.evaluate"]


def main() -> None:
    """Train and evaluate each configuration, and print a row for it."""
    parser = OneLineParser(description="Train and evaluate configurations.", allow_abbrev=False)
    parser.add_argument("configs", nargs="+", type=Path, help="configurations of the training command")
    parser.add_argument(
        "--train", type=shlex.split, default=[], metavar="OPTIONS", help="more for the training command"
    )
    parser.add_argument("--evaluate", type=shlex.split, default=[], metavar="OPTIONS", help="more for the evaluation")
    options = parser.parse_args()
    for config in options.configs:
        if not config.is_file():
            fail(2, f"configs: there is no file {config}")
    with answered({ValueError: 2, OSError: 1}):
        table = results_table([result(config, options) for config in options.configs])
    print(markdown(table))


def result(config: Path, options: Namespace) -> dict[str, Any]:
    """The report of a configuration as the evaluation wrote it, with its `config` and the `minutes` of training."""
    name = f"{config.stem}_results"
    file = Path("checkpoints", name, "result.json")
    made_by = [config.read_text(), options.train, options.evaluate]
    if file.is_file():
        earlier: dict[str, Any] = json.loads(file.read_text())
        if earlier["made_by"] == made_by:
            return earlier
    began = time.perf_counter()
    done([*TRAIN, "--config", str(config), "--name", name, *options.train])
    minutes = (time.perf_counter() - began) / 60
    folder = Path("checkpoints", name)
    report = folder / "report.json"
    done([*EVALUATE, str(newest_checkpoint(folder)), "--json", str(report), *options.evaluate])
    made: dict[str, Any] = json.loads(report.read_text()) | {
        "config": config.stem,
        "minutes": minutes,
        "made_by": made_by,
    }
    with atomic_write(file) as partial:
        partial.write_text(json.dumps(made))
    return made


def done(command: list[str]) -> None:
    """Run a command whose error, which it says itself, is the end of this one, too."""
    status = subprocess.run(command).returncode
    if status:
        sys.exit(status)


def results_table(results: list[dict[str, Any]]) -> Table:
    """A row for each result, and a column for each figure, with the floor in brackets."""
    names = list(dict.fromkeys(name for one in results for name in one["figures"]))
    table = Table("config", "training", "samples", "sampler", "network calls", "pictures/s", *names, box=box.MARKDOWN)
    for one in results:
        samples, cost = one["samples"], one["samples"]["cost"]
        table.add_row(
            one["config"],
            f"{one['minutes']:.1f} min",
            f"{one['counts']['judged']:,}",
            f"{samples['sampler']}, {samples['levels']} levels",
            f"{cost['network calls']:g}",
            f"{cost['pictures/s']:.3g}",
            *(f"{spread(one['figures'][n])} ({one['floor'][n]:.4g})" if n in one["figures"] else "" for n in names),
        )
    return table


if __name__ == "__main__":
    main()
