"""How many digits can be read after 90 seconds of training: `python -m benchmarks.readable`.

The default configuration is trained by the training command, with labels, for so long; then as many digits of each
class are drawn as the model's sampler draws them. Printed is how many of them the shipped classifier takes for the
digit that was asked for.
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
    """Train, draw, and print the share."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=90, help="of training (90)")
    parser.add_argument(
        "--count", type=int, default=500, help="digits that are drawn, of ten classes in turn (500)"
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
        f"{right:.1%} of {options.count} digits are what was asked for, after {options.seconds} s of training"
    )


if __name__ == "__main__":
    main()
