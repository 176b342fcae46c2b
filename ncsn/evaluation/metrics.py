"""Distances between two sets of images, by torchmetrics and torch-fidelity.

Each set is given by features (N, F) and class logits (N, K) of a feature extractor
(`ncsn.evaluation.extractors`).

- The Frechet distance compares the means m and the covariances C of the features,

      d^2 = ||m_1 - m_2||^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)),

  the squared 2-Wasserstein distance of two Gaussians (Dowson & Landau, 1982; Heusel et al.,
  2017, equation 6).
- The kernel distance is the squared maximum mean discrepancy with a cubic kernel, unbiased
  (Binkowski et al., 2018).
- The classifier score is exp of the mean information that an image gives about its class
  (Salimans et al., 2016).
- Precision is the fraction of samples that lie among the real images, recall the fraction of real
  images that lie among the samples: closer to one of them than its third neighbour
  (Kynkaanniemi et al., 2019).

With Inception's features the first three are FID, KID and the inception score; with other
features they are not comparable with these. All depend on the number of images: the Frechet
distance falls as it grows. So a metric is stated with its counts, its reference and its features,
and next to its floor: the value of equally many held-out images, which a perfect model reaches.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch_fidelity.metric_prc import prc_features_to_metric

# `torchmetrics.image` itself has these only if it is imported after torch-fidelity.
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from ncsn.evaluation.extractors import FeatureExtractor, extract_all

__all__ = ["classifier_score", "frechet", "frechet_distance", "kernel_distance", "precision_recall"]

LOCAL: dict[str, Any] = {"sync_on_compute": False}  # without other processes
CHUNK = 4096  # rows converted to float64 at a time


class Given(nn.Identity):
    """An identity for metrics that expect a network but are given features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


@contextmanager
def seeded() -> Iterator[None]:
    """Fix the seed of random subsets, and hide a warning about features in memory."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*will save all extracted features in buffer")
        torch.manual_seed(0)
        yield


def frechet(features: Tensor, reference: Tensor) -> float:
    """Return the squared Frechet distance between features (N, F) and (M, F), in float64.

    Raises:
        ValueError: if either set has fewer than two.
    """
    if min(len(features), len(reference)) < 2:
        raise ValueError(
            "Frechet distance: expected two images of each kind, "
            f"got {len(features)} and {len(reference)}"
        )
    distance = FrechetInceptionDistance(Given(features.shape[1]), **LOCAL)
    for real, rows in ((True, reference), (False, features)):
        for chunk in torch.split(rows, CHUNK):
            distance.update(chunk.double(), real=real)
    return distance.compute().item()


def kernel_distance(features: Tensor, reference: Tensor) -> float:
    """Return the squared kernel distance between features (N, F) and (M, F).

    It is the mean over 100 fixed subsets of up to 1,000 of each.
    """
    size = min(1000, len(features), len(reference))
    with seeded():
        distance = KernelInceptionDistance(Given(features.shape[1]), subset_size=size, **LOCAL)
        distance.update(reference.float(), real=True)
        distance.update(features.float(), real=False)
        return distance.compute()[0].item()


def classifier_score(logits: Tensor) -> float:
    """Return the classifier score of logits (N, K), from 1 to K, as the mean of ten fixed parts."""
    with seeded():
        score = InceptionScore(Given(logits.shape[1]), **LOCAL)
        score.update(logits.double())
        return score.compute()[0].item()


def precision_recall(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """Return precision and recall of features (N, F) with respect to real ones (M, F).

    Both depend on the counts, so the first of each are used, equally many, as in the paper.
    """
    count = min(len(features), len(reference))
    found = prc_features_to_metric(
        features[:count],
        reference[:count],
        prc_neighborhood=3,
        prc_batch_size=1000,
        save_cpu_ram=True,
        verbose=False,
    )
    return found["precision"], found["recall"]


def frechet_distance(
    extractor: FeatureExtractor, images: Iterable[Tensor], reference: Iterable[Tensor]
) -> float:
    """Return the squared Frechet distance between two streams of batches of states (B, C, H, W).

    Args:
        extractor: the feature extractor, on the device to use.
        images: the images to evaluate, such as samples.
        reference: the images to compare with, such as `real_images(data)`.

    Raises:
        ValueError: as `extract`, and if either stream has fewer than two images.
    """
    return frechet(
        extract_all(extractor, images).features, extract_all(extractor, reference).features
    )
