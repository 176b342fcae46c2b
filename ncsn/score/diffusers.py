"""Scores of diffusers' networks, for everything that takes a `Score`.

diffusers has the NCSN++ networks of Song et al. (2021) as `UNet2DModel` with a Fourier embedding
of log sigma. Such a network divides its output by sigma (at the end of `UNet2DModel.forward`), so
that its output is the score of data with variance-exploding noise. `ScoreSdeVePipeline` clamps its
samples to [0, 1]; data of that range needs no scaling.
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ncsn.score import ScoreModel

__all__ = ["DiffusersScore", "from_diffusers"]


class DiffusersScore(ScoreModel):
    """The score of a `UNet2DModel` with a Fourier time embedding; its call is a `Score`.

    Data y of its training in [low, high] is x in [0, 1]: y = low + (high - low) x, and

        grad_x log p(x) = (high - low) grad_y log p(y).

    Args:
        network: the `UNet2DModel`.
        data_range: low and high of the images that it was trained on.

    Raises:
        ValueError: if the network is another, or not low < high.
    """

    def __init__(self, network: nn.Module, data_range: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        config = getattr(network, "config", {})
        if (
            type(network).__name__ != "UNet2DModel"
            or config.get("time_embedding_type") != "fourier"
        ):
            raise ValueError(
                f"from_diffusers: a {type(network).__name__} with time_embedding_type "
                f"{config.get('time_embedding_type')!r}, and must be a UNet2DModel with 'fourier': only such a network "
                "gives a score at a noise level sigma"
            )
        low, high = data_range
        if not low < high:
            raise ValueError(
                f"from_diffusers: data_range is {data_range}, and must be from low to high"
            )
        self.network: Any = network
        self.low, self.scale = low, high - low

    def score(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return grad_x log p_sigma(x), of the shape of `x` (B, C, H, W).

        Args:
            x: noisy images; clean ones are in [0, 1].
            sigma: () or (B, 1, 1, 1), above 0.
            label: the classes (B,), if the network was made with `num_class_embeds`.

        Raises:
            ValueError: if the network needs labels and there are none, or takes none.
        """
        if (label is None) != (self.network.config.get("num_class_embeds") is None):
            raise ValueError(
                "this network takes no label" if label is not None else "this network needs a label"
            )
        levels = (self.scale * sigma.to(x)).reshape(-1).expand(len(x))
        score: Tensor = self.network(self.low + self.scale * x, levels, class_labels=label).sample
        return self.scale * score

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the score, as `score` does."""
        return self.score(x, sigma, label)


def from_diffusers(
    model: str | Path | nn.Module, data_range: tuple[float, float] = (0.0, 1.0)
) -> DiffusersScore:
    """Return the score of diffusers' variance-exploding U-Net, in evaluation mode.

    `ncsn.EulerMaruyama()(score, x, sigmas)` samples from it, at the levels of its training.

    Args:
        model: a `UNet2DModel`, or a local folder of `save_pretrained`, of the network or of a
            pipeline. Its weights must be safetensors: no pickle is read, and nothing downloaded.
        data_range: low and high of the images that it was trained on.

    Raises:
        ValueError: if there is no such folder, or the network is another.
        ModuleNotFoundError: if diffusers is not installed (`pip install 'ncsn[diffusers]'`).
    """
    if isinstance(model, nn.Module):
        return DiffusersScore(model, data_range).eval()
    folder = Path(model)
    folder = folder / "unet" if (folder / "model_index.json").is_file() else folder
    if not (folder / "config.json").is_file():
        raise ValueError(f"from_diffusers: {folder} is not a local folder with a config.json")
    refuse_other_config(folder / "config.json")
    from diffusers import UNet2DModel  # an extra

    try:
        network = UNet2DModel.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"from_diffusers: {folder} does not hold a UNet2DModel whose weights are safetensors: {str(error).strip()}"
        ) from error
    return DiffusersScore(network, data_range).eval()


def refuse_other_config(file: Path) -> None:
    """Refuse the configuration of anything but a plain UNet2DModel, for which diffusers imports.

    Raises:
        ValueError: if the file is such a configuration, or is not JSON.
    """
    try:
        config = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"from_diffusers: {file} is not JSON") from error
    if (
        not isinstance(config, dict)
        or config.get("_class_name") != "UNet2DModel"
        or config.get("quantization_config")
    ):
        raise ValueError(f"from_diffusers: {file} is not the configuration of a plain UNet2DModel")
