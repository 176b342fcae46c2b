"""How far drawn pictures are from real ones, as sets: figures of the looks at both, by torchmetrics and torch-fidelity.

Each set is known by what a extractor (`ncsn.evaluation.extractors`) saw: features (N, F), and logits of classes (N, K).

- The Frechet distance sums up each set by the mean m and the covariance C of its features,

      d^2 = ||m_1 - m_2||^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)),

  the squared 2-Wasserstein distance of two Gaussians (Dowson & Landau, 1982; Heusel et al., 2017, equation 6).
- The kernel distance is the squared maximum mean discrepancy under a cubic kernel, unbiased (Binkowski et al., 2018).
- The score of the classes is exp of the mean information that a picture gives of its class (Salimans et al., 2016).
- Precision is the share of the drawn pictures that lie among the real ones, recall that of the real ones that lie among
  the drawn: nearer to one of them than its third neighbour is (Kynkaanniemi et al., 2019).

With Inception's features the first three are FID, KID and the inception score of the literature; with others they are
not, and not comparable with them. All depend on the counts: the Frechet distance falls as there are more pictures. So a
figure names its counts, its reference and its features; real pictures that were held out, as many as were drawn, give
what a perfect model would reach: the floor.
"""

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch_fidelity.metric_prc import prc_features_to_metric

# `torchmetrics.image` has these only where it was imported after torch-fidelity.
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from ncsn.evaluation.extractors import FeatureExtractor, extract_all

__all__ = ["classifier_score", "frechet", "frechet_distance", "kernel_distance", "precision_recall"]

ALONE: dict[str, Any] = {"sync_on_compute": False}
"""What is given to a metric is all that there is: nothing is asked of other processes."""
CHUNK = 4096
"""Rows that are turned into float64 at a time."""


class Given(nn.Identity):
    """In the place of a network: what the metric is given are features already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def frechet(features: Tensor, reference: Tensor) -> float:
    """The squared Frechet distance between features (N, F) and (M, F), in float64.

    Raises:
        ValueError: where there are fewer than two of either.
    """
    if min(len(features), len(reference)) < 2:
        raise ValueError(
            f"Frechet distance: of {len(features)} pictures and {len(reference)} real ones, and takes two at least"
        )
    distance = FrechetInceptionDistance(Given(features.shape[1]), **ALONE)
    for real, rows in ((True, reference), (False, features)):
        for chunk in torch.split(rows, CHUNK):
            distance.update(chunk.double(), real=real)
    return distance.compute().item()


def kernel_distance(features: Tensor, reference: Tensor) -> float:
    """The squared kernel distance between features (N, F) and (M, F): the mean of 100 subsets of up to 1,000 of each.

    The subsets are the same ones every time.
    """
    size = min(1000, len(features), len(reference))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", ".*will save all extracted features in buffer"
        )  # they are in memory anyway
        torch.manual_seed(0)
        distance = KernelInceptionDistance(Given(features.shape[1]), subset_size=size, **ALONE)
        distance.update(reference.float(), real=True)
        distance.update(features.float(), real=False)
        mean, _ = distance.compute()
    return mean.item()


def classifier_score(logits: Tensor) -> float:
    """The score of the classes of logits (N, K), from 1 to K: the mean of ten parts, the same ones every time."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*will save all extracted features in buffer")
        torch.manual_seed(0)
        score = InceptionScore(Given(logits.shape[1]), **ALONE)
        score.update(logits.double())
        mean, _ = score.compute()
    return mean.item()


def precision_recall(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """Precision and recall, from 0 to 1, of features (N, F) among real ones (M, F), of as many of each: the first.

    Both depend on the counts, which are therefore equal, as in the paper.
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
    extractor: FeatureExtractor, pictures: Iterable[Tensor], reference: Iterable[Tensor]
) -> float:
    """The squared Frechet distance between two streams of batches of states (B, C, H, W).

    Args:
        extractor: what the pictures are seen with, on the device where its weights are.
        pictures: what is judged, such as samples.
        reference: what it is judged by, such as `real_images(data)`.

    Raises:
        ValueError: where there are fewer than two pictures of either kind, where one is not finite, or not of a shape
            that the judge takes.
    """
    return frechet(
        extract_all(extractor, pictures).features, extract_all(extractor, reference).features
    )
