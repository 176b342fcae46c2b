"""The options of `ncsn train` that are used most, and hints at one that was meant."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["MOST_USED", "meant"]

# The options by name, with a value and its meaning.
MOST_USED = {
    "config": ("FILE", "a YAML file, or a name of `ncsn configs`"),
    "name": ("NAME", "the folders checkpoints/NAME and logs/NAME"),
    "ckpt_path": ("last", "resume from the newest checkpoint, or a file"),
    "model.weights": ("FILE", "start from the weights of a trained model"),
    "seed_everything": ("N", "the seed of the run"),
    "data.root": ("DIR", "the folder of the images or the data set"),
    "data.batch_size": ("N", "examples in a batch, on each device"),
    "data.labels": ("true", "train with the classes of the data"),
    "trainer.max_steps": ("N", "the length of the run"),
    "trainer.val_check_interval": ("N", "training batches between validations"),
    "trainer.devices": ("N", "GPUs, or processes on a CPU"),
    "trainer.precision": ("bf16-mixed", "the precision of the network"),
    "model.optimizer.lr": ("X", "the learning rate"),
    "model.denoiser.network.width": ("N", "channels of the U-Net at full resolution"),
    "model.schedule.sigma_max": ("X", "the highest noise level; white is 1"),
    "model.sampler": ("CLASS", "and its settings: --model.sampler.eta 1"),
}
# Names of other programs.
OTHER_NAMES = {
    "checkpoint": "ckpt_path",
    "pretrained": "model.weights",
    "epochs": "trainer.max_epochs",
    "gpus": "trainer.devices",
    "learning_rate": "model.optimizer.lr",
    "resume": "ckpt_path",
    "seed": "seed_everything",
    "steps": "trainer.max_steps",
}


def meant(name: str, options: Iterable[str]) -> str:
    """Return "; did you mean --OPTION?" for the close one of `options` or `MOST_USED`, or nothing."""
    ends = {option.rpartition(".")[2]: option for option in [*options, *MOST_USED]} | OTHER_NAMES
    close = get_close_matches(name.replace("-", "_"), ends, 1)
    if not close:
        return ""
    option = ends[close[0]]
    value = MOST_USED[option][0] if option in MOST_USED else "VALUE"
    return f"; did you mean --{option} {value}?"
