"""Print the table of results: `python -m benchmarks.results configs/digits.yaml`.

The training command trains each configuration in a run named NAME_results, and the evaluation
command evaluates it, as a user would. Options for both are passed on:
`--train "--trainer.max_time 00:00:10:00"`, `--evaluate "--num-samples 10000 --seeds 3"`. A row is
saved as checkpoints/NAME_results/result.json, and is reused if the configuration and the options
are unchanged.
"""

import json
import shlex
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from ncsn.cli.errors import SIGNALS, exit_codes, exit_on_signals, fail, stop
from ncsn.cli.options import OneLineParser
from ncsn.model.files import atomic_write, exclusive_file, hold

__all__ = ["main", "result", "results_table"]

TRAIN = [sys.executable, "-c", "from ncsn.cli.main import train; train()"]
EVALUATE = [sys.executable, "-m", "ncsn", "evaluate"]
POLL_INTERVAL = 0.05  # seconds


def main() -> None:
    """Train and evaluate each configuration, and print a row for it."""
    parser = OneLineParser(description="Train and evaluate configurations.", allow_abbrev=False)
    parser.add_argument("configs", nargs="+", type=Path, help="configurations to train")
    parser.add_argument(
        "--train",
        type=shlex.split,
        default=[],
        metavar="OPTIONS",
        help="additional options for training",
    )
    parser.add_argument(
        "--evaluate",
        type=shlex.split,
        default=[],
        metavar="OPTIONS",
        help="additional options for the evaluation",
    )
    options = parser.parse_args()
    for config in options.configs:
        if not config.is_file():
            fail(2, f"configs: there is no file {config}")
    if any(word.partition("=")[0] in ("--name", "--ckpt_path") for word in options.train):
        fail(2, "--train: --name and --ckpt_path are set by this command; remove them")
    locks = [exclusive_file(file) for file in dict.fromkeys(map(file_of, options.configs))]
    with exit_on_signals(), exit_codes(), hold("configs", *locks):
        results = [result(config, options) for config in options.configs]
    from ncsn.evaluation.report import markdown  # with torch, which training does not wait for

    print(markdown(results_table(results)))


def file_of(config: Path) -> Path:
    """Return the file of a configuration's result, in the folder of its run."""
    return Path("checkpoints", f"{config.stem}_results", "result.json")


def result(config: Path, options: Namespace) -> dict[str, Any]:
    """Return the report of the evaluation, with `config` and the `minutes` of training."""
    file = file_of(config)
    folder = file.parent
    made_by = [config.read_text(), options.train, options.evaluate]
    if file.is_file():
        earlier: dict[str, Any] = json.loads(file.read_text())
        if earlier["made_by"] == made_by:
            return earlier
    began = time.perf_counter()
    done([*TRAIN, "--config", str(config), *options.train, "--name", folder.name])
    minutes = (time.perf_counter() - began) / 60
    from ncsn.model.load import newest_checkpoint

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
    """Run a command, and exit with its status if that is not 0.

    Signals are passed on to the command, and end this program after the command has ended.
    """
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in SIGNALS
    }
    try:
        # In its own session the command does not also get Ctrl-C from the terminal, which would end it at once.
        process, passed_on = subprocess.Popen(command, start_new_session=True), 0
        while process.poll() is None:
            if passed_on < len(received):
                process.send_signal(received[passed_on])
                passed_on += 1
            time.sleep(POLL_INTERVAL)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        stop(received[0], None)
    if process.returncode:
        sys.exit(process.returncode if process.returncode > 0 else 128 - process.returncode)


def results_table(results: list[dict[str, Any]]) -> Table:
    """Return a row for each result, with those of as many held-out images in brackets."""
    from ncsn.model.model_card import spread

    names = list(dict.fromkeys(name for one in results for name in one["figures"]))
    table = Table(
        "config",
        "training",
        "samples",
        "sampler",
        "NFE",
        "images/s",
        *names,
        box=box.MARKDOWN,
    )
    for one in results:
        samples, cost, counts = one["samples"], one["samples"]["cost"], one["counts"]
        is_equal = counts["judged"] == counts["floor"]  # the distance of fewer images is larger
        table.add_row(
            one["config"],
            f"{one['minutes']:.1f} min",
            f"{counts['judged']:,}",
            f"{samples['sampler']}, {samples['levels']} levels",
            f"{cost['NFE']:g}",
            f"{cost['images/s']:.3g}",
            *(
                spread(one["figures"][n]) + f" ({one['floor'][n]:.4g})" * is_equal
                if n in one["figures"]
                else ""
                for n in names
            ),
        )
    return table


if __name__ == "__main__":
    main()
