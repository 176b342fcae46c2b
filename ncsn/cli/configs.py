"""`ncsn configs`: the configurations that come with the package."""

from argparse import Namespace

from ncsn.model.shipped import shipped_configs

__all__ = ["run"]


def run(options: Namespace) -> None:
    """Print the name of each configuration, and the first line of its header."""
    configs = shipped_configs()
    width = max(map(len, configs))
    for name, file in configs.items():
        first = file.read_text("utf-8").partition("\n")[0]
        print(f"{name:{width}}  {first.lstrip('# ')}")
