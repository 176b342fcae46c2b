"""Sample from a trained model: `python sample.py` is `ncsn sample`."""

from ncsn.cli.main import sample

if __name__ == "__main__":
    sample()
