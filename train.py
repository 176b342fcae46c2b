"""Train a score model: `python train.py --config configs/digits.yaml`."""

from ncsn.cli import train

if __name__ == "__main__":
    train()
