"""The help of `ncsn train` and `ncsn advise`, whose options are the settings of a run."""

import re

from ncsn.training.hints import MOST_USED

__all__ = ["ABOUT", "class_help", "short_help"]

ABOUT = {
    "train": "Train a score model.",
    "advise": "Print noise levels and Langevin steps for a data set, by Song & Ermon (2020).",
}
SETTINGS = """\
The settings are those of the --config files (digits if none is given), and the
options override them. Classes are given by name, and then their settings:
--data ImageFolder --data.root IMAGES --model.sampler Heun"""
MORE = """\
more:
  --help all                       all options, Lightning's Trainer included
  --print_config                   all settings and their values, as YAML
  --model.sampler.help Heun        the settings of a class, and so for: data,
                                   model.denoiser, model.denoiser.network,
                                   model.schedule, model.objective"""
# The parser lists every module of torch that is imported.
MODULES = re.compile(r"known\s+subclasses: torch\.nn\.Module,[^)]*")
NETWORKS = "ncsn.MLP,\n" + 24 * " " + "ncsn.UNet, or a class of yours"


def short_help(command: str) -> str:
    """Return the help with the options that are used most."""
    options = [(f"--{name} {value}", about) for name, (value, about) in MOST_USED.items()]
    lines = [f"  {option:32} {about}" for option, about in options]
    usage = f"usage: ncsn {command} [--config FILE] [--SECTION.SETTING VALUE ...]"
    return "\n".join([usage, "", ABOUT[command], SETTINGS, "", "most used:", *lines, "", MORE])


def class_help(text: str, option: str) -> str:
    """Return the parser's help of a class, with the options as they are to be given.

    `option` is the one that asked, such as `--model.denoiser.network.help`.
    """
    whole = option.removesuffix(".help")
    asked = whole.removeprefix("--").split(".")
    short = "|".join(re.escape(".".join(asked[start:])) for start in range(len(asked)))
    _, begin, rest = text.partition("Help for ")
    return begin + MODULES.sub(NETWORKS, re.sub(rf"--(?:{short})([.=])", rf"{whole}\1", rest))
