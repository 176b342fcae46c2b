"""Compare the sample quality for a budget of compute: `python -m benchmarks.quality`.

The training command trains two configurations from scratch for the same CPU time: the recipe of
Fashion-MNIST, and the published settings of EDM with a plain U-Net of 0.45 million parameters
without patches (edm_baseline.yaml). Each is sampled with its own sampler, and measured by the
Frechet distance to the training set in the features of the shipped classifier. The comparison
takes about 30 minutes on two cores.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.sidebyside import show
from ncsn.cli.errors import silence_libraries
from ncsn.evaluation.extractors import extract_all, real_images, reference_features
from ncsn.evaluation.measure import chosen_extractor
from ncsn.evaluation.metrics import frechet
from ncsn.evaluation.report import Counter
from ncsn.training.run import Run, build, check

TRIAL = (
    100  # steps to measure the rate; enough to amortise single costs such as the last checkpoint
)


def trained(config: Path, steps: int, others: list[str]) -> tuple[Run, float]:
    """Train a configuration for `steps` steps, and return the run and its CPU-seconds."""
    fixed = [
        "--trainer.max_steps",
        str(steps),
        "--trainer.limit_val_batches",
        "0",
        "--samples.count",
        "0",
    ]
    fixed += ["--name", f"{config.stem}_{steps}", "--trainer.logger", "false"]
    run = build(["--config", str(config), *fixed, *others])
    check(run)
    began = time.process_time()
    run.trainer.fit(run.model, datamodule=run.datamodule)
    return run, time.process_time() - began


def row(
    name: str, config: Path, options: argparse.Namespace, others: list[str]
) -> tuple[list[str], float]:
    """Train for the budget, sample and evaluate: return a row of the table and the distance."""
    _, trial = trained(config, TRIAL, others)
    steps = max(1, round(options.budget / trial * TRIAL))
    run, seconds = trained(config, steps, others)
    module: Any = run.model.eval()  # with the averaged weights, which stay in place after a run
    counter = Counter()
    began = time.process_time()
    with run.trainer.precision_plugin.forward_context():
        x = module.model.sample(options.count, guide=counter)
    rate = options.count / (time.process_time() - began)
    extractor = chosen_extractor(
        str(ROOT / "checkpoints" / "features_fashion_mnist.safetensors"), run.datamodule
    )
    reference = reference_features(extractor, run.datamodule).features
    distance = frechet(extract_all(extractor, x.split(100)).features, reference)
    floor = frechet(
        extract_all(extractor, real_images(run.datamodule, "val", options.count)).features,
        reference,
    )
    parameters = sum(parameter.numel() for parameter in module.parameters())
    images = steps * run.datamodule.batch_size
    nfe = counter.evaluations // options.count
    numbers = f"{parameters:,}", f"{images:,}", f"{seconds:.0f}", str(nfe), f"{rate:.1f}"
    return [name, *numbers, f"{distance:.2f} ({floor:.2f})"], distance


def main() -> None:
    """Train both, and print the table and the ratio."""
    parser = argparse.ArgumentParser(
        description="Compare the recipe with the settings of EDM for the same CPU time."
    )
    parser.add_argument(
        "--budget", type=float, default=600.0, help="CPU-seconds of training for each (600)"
    )
    parser.add_argument(
        "--count", type=int, default=500, help="number of samples to evaluate (500)"
    )
    options, others = parser.parse_known_args()
    silence_libraries()
    configs = {
        "recipe": ROOT / "configs" / "fashion_mnist.yaml",
        "EDM baseline": ROOT / "benchmarks" / "edm_baseline.yaml",
    }
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        found = [row(name, config, options, others) for name, config in configs.items()]
        os.chdir(ROOT)
    columns = [
        "",
        "parameters",
        "images seen",
        "CPU-s",
        "NFE",
        "images/CPU-s",
        "Frechet distance (held-out images)",
    ]
    show(columns, [line for line, _ in found])
    print(f"The recipe's distance is {found[0][1] / found[1][1]:.3f} of the baseline's.")


if __name__ == "__main__":
    main()
