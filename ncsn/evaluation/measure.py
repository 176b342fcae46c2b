"""Metrics of a set of images, computed from one row of numbers per image.

A row has F features, K logits, and two distances to training images. The metrics are functions
of all rows, and of the features of the training images.
"""

import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ncsn.data import Examples, ImageData
from ncsn.evaluation.classifier import default_file, load_classifier, weights_file
from ncsn.evaluation.copies import COPIES, are_copies, nearest
from ncsn.evaluation.extractors import FeatureExtractor, Features, extract, real_examples
from ncsn.evaluation.inception import load_inception
from ncsn.evaluation.metrics import classifier_score, frechet, kernel_distance, precision_recall
from ncsn.model.labels import NONE
from ncsn.model.model import Model
from ncsn.score.likelihood import bits_per_dim

__all__ = ["all_rows", "chosen_extractor", "held_out_bits", "knows_classes", "metrics_of", "rows"]

INCEPTION = "inception"  # instead of the name of a file


def chosen_extractor(given: str | None, data: ImageData) -> FeatureExtractor:
    """Return the extractor that `given` names: a file, or "inception".

    By default it is the classifier of the data set, if there is one, and otherwise Inception.

    Raises:
        ValueError: if the file is missing or damaged, or its network does not take the images.
        OSError: if Inception's weights are damaged, or cannot be downloaded.
    """
    own, name = default_file(data), type(data).__name__
    if given is None:
        given = str(own) if weights_file(own).is_file() else INCEPTION
    if given != INCEPTION:
        extractor: FeatureExtractor = load_classifier(Path(given))
    elif data.shape[0] == 3:
        extractor = load_inception()
    else:
        raise ValueError(
            f"--features: Inception expects colour images, got shape {data.shape} ({name}), and "
            f"there is no {own}; `ncsn features --data CONFIG` trains it on a data set with labels"
        )
    extract(extractor, torch.zeros(1, *data.shape))
    return extractor


def rows(extractor: FeatureExtractor, training: Examples, x: Tensor) -> Tensor:
    """Return the rows (B, F + K + 2) of states (B, C, H, W), on their device.

    Raises:
        ValueError: as `extract`.
    """
    features, logits = extract(extractor.to(x.device), x)
    return torch.cat([features, logits, nearest(x, training)], dim=1)


def all_rows(extractor: FeatureExtractor, training: Examples, images: Iterable[Tensor]) -> Tensor:
    """Return the rows (N, F + K + 2) of batches of states (B, C, H, W), on the CPU."""
    place = next(extractor.parameters()).device
    return torch.cat([rows(extractor, training, x.to(place)).cpu() for x in images])


def metrics_of(extractor: FeatureExtractor, seen: Tensor, reference: Features) -> dict[str, float]:
    """Return the metrics of images by name, from their rows (N, F + K + 2) on the CPU."""
    features, logits, distances = torch.split(
        seen, [reference.features.shape[1], reference.logits.shape[1], 2], dim=1
    )
    of_distance, of_kernel, of_classes = extractor.metric_names
    precision, recall = precision_recall(features, reference.features)
    return {
        of_distance: frechet(features, reference.features),
        of_kernel: kernel_distance(features, reference.features),
        of_classes: classifier_score(logits),
        "precision": precision,
        "recall": recall,
        "nearest distance (median)": distances[:, 0].median().item(),
        COPIES: are_copies(distances).cpu().double().mean().item(),
    }


def knows_classes(module: Model, data: ImageData, label: str | None = None) -> bool:
    """Return True if the classes of images are the model's, and `label` is not "none"."""
    return label != NONE and module.class_names == data.class_names != []


def held_out_bits(
    module: Model, data: ImageData, count: int, label: str | None = None
) -> tuple[float, float, int]:
    """Return the bits per dimension of `count` held-out images, at the lowest noise level.

    Args:
        module: the model.
        data: images, prepared and set up.
        count: the number of images.
        label: "none" for the likelihood without classes (`knows_classes`).

    Returns:
        The mean, its standard error, and the number of images.

    Raises:
        ValueError: if there are fewer images, or the model's noise levels give no likelihood.
        RuntimeError: if the probability flow does not converge.
    """
    ((x, classes),) = real_examples(data, "val", count, batch_size=count)
    given = classes.long() if knows_classes(module, data, label) else NONE
    chosen = module.labels.of(given, range(count))
    sigmas = module.schedule.sigmas()
    low, high = sigmas.min().item(), sigmas.max().item()
    prior = x.mean().item(), x.std().item()

    def bits(indices: Tensor) -> Tensor:
        classes = None if chosen is None else chosen[indices].to(module.device)
        score = partial(module.denoiser.score, label=classes)
        return bits_per_dim(
            score, x[indices].to(module.device), low, high, prior, rtol=1e-3, atol=1e-3
        )

    with torch.random.fork_rng([module.device] if module.device.type == "cuda" else []):
        torch.manual_seed(0)
        each = torch.cat([bits(indices) for indices in torch.split(torch.arange(count), 64)])
    return each.mean().item(), each.std().item() / math.sqrt(count), count
