"""Train a score model, as `ncsn train`: `python train.py --config configs/digits.yaml`."""

from ncsn.cli.main import train

if __name__ == "__main__":
    train()
