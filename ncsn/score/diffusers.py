"""Scores borrowed from diffusers.

diffusers has the NCSN++ networks of Song et al. (2021) as `UNet2DModel` with a Fourier embedding of
log sigma. Such a network divides its output by sigma itself, so that its output is the score of
data with variance-exploding noise: `ScoreSdeVePipeline` passes it to
`ScoreSdeVeScheduler.step_pred` as it is. The pipeline clamps its samples to [0, 1]; data in that
range needs no scaling.
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ncsn.noise.checks import expect
from ncsn.score import ScoreModel

__all__ = ["DiffusersScore", "from_diffusers"]


class DiffusersScore(ScoreModel):
    """The score of a `UNet2DModel` with a Fourier time embedding; the module itself is a `Score`.

    If the network was trained on y in [low, high], then y = low + (high - low) x for x in [0, 1],
    and grad_x log p(x) = (high - low) grad_y log p(y).

    Args:
        network: the `UNet2DModel`.
        data_range: low and high of the images that it was trained on.

    Raises:
        ValueError: if the network is of another kind, or not low < high.
    """

    def __init__(self, network: nn.Module, data_range: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        kind = type(network).__name__
        embedding = getattr(network, "config", {}).get("time_embedding_type")
        fits = (kind, embedding) == ("UNet2DModel", "fourier")
        rule = "a UNet2DModel with time_embedding_type 'fourier'"
        expect(rule, fits, "from_diffusers", network=kind, time_embedding_type=embedding)
        low, high = data_range
        expect("low < high", low < high, "from_diffusers", data_range=data_range)
        self.network: Any = network
        self.low, self.scale = low, high - low

    def score(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return grad_x log p_sigma(x), of the shape of `x` (B, C, H, W).

        Args:
            x: noisy images, whose clean ones are in [0, 1].
            sigma: () or (B, 1, 1, 1), above 0.
            label: the classes (B,), which a network made with `num_class_embeds` needs.

        Raises:
            ValueError: if labels are missing, or the network takes none.
        """
        if (label is None) != (self.network.config.get("num_class_embeds") is None):
            raise ValueError(f"this network {'needs a' if label is None else 'takes no'} label")
        levels = (self.scale * sigma.to(x)).reshape(-1).expand(len(x))
        score: Tensor = self.network(self.low + self.scale * x, levels, class_labels=label).sample
        return self.scale * score

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the score."""
        return self.score(x, sigma, label)


def from_diffusers(
    model: str | Path | nn.Module, data_range: tuple[float, float] = (0.0, 1.0)
) -> DiffusersScore:
    """Return the score of diffusers' variance-exploding U-Net, in evaluation mode.

    `ncsn.EulerMaruyama()(score, x, sigmas)` samples from it, with x (B, C, H, W) and the noise
    levels that it was trained at. Objectives and guidance take it as well.

    Args:
        model: a `UNet2DModel`, or a local folder written by `save_pretrained`, of the network or
            of a whole pipeline. Its weights are safetensors: no pickle is read, and nothing is
            downloaded.
        data_range: low and high of the images that it was trained on.

    Raises:
        ValueError: if there is no such folder, or the network is of another kind.
        ModuleNotFoundError: if diffusers is not installed (`pip install 'ncsn[diffusers]'`).
    """
    if isinstance(model, nn.Module):
        return DiffusersScore(model, data_range).eval()
    folder = Path(model)
    folder = folder / "unet" if (folder / "model_index.json").is_file() else folder
    if not (folder / "config.json").is_file():
        raise ValueError(f"from_diffusers: {folder} is not a local folder with a config.json")
    check_config(folder / "config.json")
    from diffusers import UNet2DModel  # an extra

    try:
        network = UNet2DModel.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"from_diffusers: {folder} does not hold a UNet2DModel whose weights are safetensors: "
            f"{str(error).strip()}"
        ) from error
    return DiffusersScore(network, data_range).eval()


def check_config(file: Path) -> None:
    """Refuse other classes and quantised weights, for which diffusers would import packages."""
    try:
        config = json.loads(file.read_text("utf-8"))
        plain = config["_class_name"] == "UNet2DModel" and not config.get("quantization_config")
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        plain = False
    if not plain:
        raise ValueError(f"from_diffusers: {file} is not the configuration of a plain UNet2DModel")
