"""Train a score model: `python train.py` is `ncsn train`."""

from ncsn.cli.main import train

if __name__ == "__main__":
    train()
