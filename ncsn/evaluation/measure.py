"""All that is measured of one set of pictures: each is looked at once, and makes a row of numbers.

A row has what a judge saw, F features and the logits of K classes, and the distances to the nearest training picture
and to those near it: (B, F + K + 2). Figures are functions of all the rows, and of the looks at the training pictures.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from ncsn.data import Examples, ImageData
from ncsn.evaluation.classifier import default_file, load_classifier, weights_file
from ncsn.evaluation.copies import COPIES, are_copies, nearest
from ncsn.evaluation.extractors import FeatureExtractor, Features, extract, real_images
from ncsn.evaluation.inception import load_inception
from ncsn.evaluation.metrics import classifier_score, frechet, kernel_distance, precision_recall
from ncsn.model.model import Model
from ncsn.score.likelihood import bits_per_dim

__all__ = ["chosen_extractor", "held_out_bits", "metrics_of", "rows"]

INCEPTION = "inception"
"""What is given in the place of a file of features, for Inception."""


def chosen_extractor(given: str | None, data: ImageData) -> FeatureExtractor:
    """The judge that `given` names, a file or "inception"; or the one that goes with the data, where none is given.

    That is the data set's own features, where there are any, and otherwise Inception for pictures in colour.

    Raises:
        ValueError: where there is none, it is damaged, or it does not take pictures of the data's shape.
        OSError: where Inception's weights cannot be had.
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
            f"--features: Inception is for pictures in colour, those of {name} are of shape {data.shape}, and there is "
            f"no {own}; `ncsn features --data CONFIG` trains it, of a data set with labels"
        )
    extract(extractor, torch.zeros(1, *data.shape))
    return extractor


def rows(extractor: FeatureExtractor, training: Examples, x: Tensor) -> Tensor:
    """What is kept of states (B, C, H, W): (B, F + K + 2), on their device.

    Raises:
        ValueError: as `extract` does.
    """
    features, logits = extract(extractor.to(x.device), x)
    return torch.cat([features, logits, nearest(x, training)], dim=1)


def metrics_of(extractor: FeatureExtractor, seen: Tensor, reference: Features) -> dict[str, float]:
    """The figures of pictures by their rows (N, F + K + 2), on the CPU, by their names."""
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
        COPIES: are_copies(distances).double().mean().item(),
    }


def held_out_bits(module: Model, data: ImageData, count: int) -> tuple[float, float, int]:
    """Bits per dimension of `count` held-out pictures, by the model at its lowest noise level, on its device.

    Returns:
        Their mean, its standard error, and their number.

    Raises:
        ValueError: where there are not so many, or the model's ladder gives no likelihood.
        RuntimeError: where the probability flow does not arrive.
    """
    (x,) = real_images(data, "val", count, batch_size=count)
    sigmas = module.schedule.sigmas()
    low, high = sigmas.min().item(), sigmas.max().item()
    prior = x.mean().item(), x.std().item()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = [
            bits_per_dim(
                module.denoiser.score,
                part.to(module.device),
                low,
                high,
                prior,
                rtol=1e-3,
                atol=1e-3,
            )
            for part in torch.split(x, 64)
        ]
    each = torch.cat(parts)
    return each.mean().item(), each.std().item() / math.sqrt(count), count
