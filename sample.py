"""Sample from a trained model, as `ncsn sample`: `python sample.py CHECKPOINT`."""

from ncsn.cli.main import sample

if __name__ == "__main__":
    sample()
