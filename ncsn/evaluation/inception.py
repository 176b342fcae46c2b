"""Inception-v3, the feature extractor of FID, KID and the inception score.

It is the network of Heusel et al. (2017), with its weights and its resizing, as ported by
torch-fidelity. It was trained on colour photographs, and does not suit digits. The weights (95 MB)
are downloaded on first use into torch's folder.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from hashlib import sha256
from pathlib import Path
from sys import stderr

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3,
    FeatureExtractorInceptionV3,
)

from ncsn.data import to_pixels
from ncsn.evaluation.extractors import FeatureExtractor

__all__ = ["Inception", "load_inception"]


class Inception(FeatureExtractor):
    """Inception: 2,048 features, and the logits of 1,008 classes without their bias.

    Args:
        weights: the file of torch-fidelity's weights, read with `weights_only=True`.

    Raises:
        OSError: if the file does not hold them.
    """

    num_features = 2048
    metric_names = ("FID", "KID", "inception score")

    def __init__(self, weights: Path) -> None:
        super().__init__()
        try:
            with tensors_alone():
                self.network = FeatureExtractorInceptionV3(
                    "inception-v3-compat",
                    ["2048", "logits_unbiased"],
                    feature_extractor_weights_path=str(weights),
                )
        except Exception as error:  # a broken file raises errors of many kinds
            raise OSError(
                f"Inception: {weights} does not hold its weights, or is damaged; remove it"
            ) from error
        found, published = sha256(weights.read_bytes()).hexdigest(), weights.stem.rpartition("-")[2]
        other = "" if found.startswith(published) else ", which are not the published weights"
        self.source = f"Inception-v3 ({weights}, sha256 {found[:8]}{other})"
        self.eval()

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(
                f"Inception: expected colour images (3, H, W), got {tuple(x.shape[1:])}; "
                "for grey images, `ncsn features` trains a classifier"
            )
        features, logits = self.network(to_pixels(x))
        return features, logits


@contextmanager
def tensors_alone() -> Iterator[None]:
    """Make torch.load read tensors only, even if a library asks for more."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def load_inception() -> Inception:
    """Return Inception on the CPU, with weights from torch's folder or from the network.

    Raises:
        OSError: if the weights are damaged, or cannot be downloaded.
    """
    # torch.hub downloads the file and checks its hash; it runs no code.
    file = Path(torch.hub.get_dir(), "checkpoints", Path(URL_INCEPTION_V3).name)
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with redirect_stdout(stderr):
                torch.hub.download_url_to_file(
                    URL_INCEPTION_V3, str(file), hash_prefix=file.stem.rpartition("-")[2]
                )
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"Inception: its weights could not be downloaded ({error}); "
                f"download {URL_INCEPTION_V3} and put it at {file}"
            ) from error
    return Inception(file)
