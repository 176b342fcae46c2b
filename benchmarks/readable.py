"""Measure how many digits are readable after 90 seconds of training: `python -m benchmarks.readable`.

The training command trains the default configuration with labels. Then the same number of
samples of each class is drawn. The result is the share that the shipped classifier assigns to
the class of the sample.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks import ROOT
from ncsn import load, load_classifier
from ncsn.model.load import newest_checkpoint


def main() -> None:
    """Train, sample, and print the share."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=90, help="seconds of training (90)")
    parser.add_argument(
        "--count", type=int, default=500, help="number of samples, of ten classes in turn (500)"
    )
    options, others = parser.parse_known_args()
    limit = f"00:00:{options.seconds // 60:02d}:{options.seconds % 60:02d}"
    settings = [
        "--config",
        str(ROOT / "configs" / "digits.yaml"),
        "--data.labels",
        "true",
        "--trainer.max_time",
        limit,
    ]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        subprocess.run([sys.executable, str(ROOT / "train.py"), *settings, *others], check=True)
        module = load(newest_checkpoint(Path("checkpoints")))
        os.chdir(ROOT)
    label = torch.arange(options.count) % module.classes
    x = module.sample(options.count, label=label)
    named = (
        load_classifier("checkpoints/features_digits.safetensors").logits(x.clamp(0, 1)).argmax(1)
    )
    right = (named == label).float().mean()
    print(
        f"{right:.1%} of {options.count} digits are readable, after {options.seconds} s of training"
    )


if __name__ == "__main__":
    main()
