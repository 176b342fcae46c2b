"""Draw from a trained model: `python sample.py checkpoints/digits/step=2200.ckpt`."""

from ncsn.cli.main import sample

if __name__ == "__main__":
    sample()
