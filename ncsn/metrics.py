"""How far drawn pictures are from real ones, as sets: the Frechet distance in a classifier's features.

Each set is summed up by the mean m and the covariance C of its features (`ncsn.features`), and two sets differ by

    d^2 = ||m_1 - m_2||^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)),

the squared Frechet (2-Wasserstein) distance of two Gaussians (Dowson & Landau, 1982; Heusel et al., 2017, equation 6).
The features are not Inception's: it is no FID, and not comparable with one. It falls as the number of pictures
rises, and depends on the reference: a figure names both counts, the reference split and the features. Real pictures
that were held out, as many as were drawn, give the figure that a perfect model would reach: the floor.

States x are (B, C, H, W), of which [0, 1] is the visible range, in batches of any sizes. They are judged as the pixels
that a file would hold: clamped, scaled and rounded. Sums are in float64.
"""

from collections.abc import Iterable, Iterator
from copy import deepcopy

import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance  # `torchmetrics.image` has it only with torch-fidelity

from ncsn.data import ImageData, to_pixels, to_unit
from ncsn.features import Features

__all__ = ["FrechetDistance", "frechet_distance", "real_pictures"]


class FrechetDistance(FrechetInceptionDistance):
    """The squared Frechet distance in a classifier's features, as a metric of torchmetrics, by whose rules it works.

    `update(x, real)` takes a batch, `compute()` gives the distance so far, `reset()` forgets all but the real pictures,
    which are the reference; ranks are summed over. Keep it in a callback and not in a module, whose checkpoints it
    would enter.

    Args:
        features: what the pictures are seen with; a copy is kept, so that nobody trains it.

    Raises:
        ValueError: of `update`, where a state is not finite or not of a shape that the features take; of `compute`,
            where there are fewer than two pictures of either kind.
    """

    def __init__(self, features: Features) -> None:
        frozen = deepcopy(features).eval().requires_grad_(False)
        super().__init__(feature=frozen, normalize=True, reset_real_features=False)

    def train(self, mode: bool = True) -> "FrechetDistance":
        """Nothing: the features stay in evaluation, whatever the metric is a part of."""
        return self

    def update(self, imgs: Tensor, real: bool) -> None:
        """Take in a batch of states (B, C, H, W): of the reference where it is `real`, and else of what is judged."""
        if not imgs.isfinite().all():
            raise ValueError("Frechet distance: the pictures have numbers that are not finite")
        super().update(to_unit(to_pixels(imgs.to(self.device))), real)

    def compute(self) -> Tensor:
        """The squared distance, a number."""
        judged, real = int(self.fake_features_num_samples), int(self.real_features_num_samples)
        if min(judged, real) < 2:
            raise ValueError(f"Frechet distance: of {judged} pictures and {real} real ones, and takes two at least")
        return super().compute()


def frechet_distance(features: Features, pictures: Iterable[Tensor], reference: Iterable[Tensor]) -> float:
    """The squared Frechet distance between two streams of batches (B, C, H, W), where the features' weights are.

    Args:
        features: what the pictures are seen with.
        pictures: what is judged, such as samples.
        reference: what it is judged by, such as `real_pictures(data)`.

    Raises:
        ValueError: as `FrechetDistance` does.
    """
    distance = FrechetDistance(features).to(next(features.parameters()).device)
    for x in reference:
        distance.update(x, real=True)
    for x in pictures:
        distance.update(x, real=False)
    return distance.compute().item()


def real_pictures(
    data: ImageData, split: str = "train", count: int | None = None, batch_size: int = 100
) -> Iterator[Tensor]:
    """Batches of the pictures of a split, each one once, as they are: not mirrored, and not spread over their 1/256.

    Args:
        data: pictures, prepared and set up.
        split: "train" or "val".
        count: how many, drawn without replacement, the same ones every time; all where it is not given.
        batch_size: pictures in a batch, but for the last.

    Raises:
        ValueError: where there are not so many pictures.
    """
    examples = data.splits[split]
    count = len(examples) if count is None else count
    if not 1 <= count <= len(examples):
        raise ValueError(f"real pictures: {count} of them, and the split {split} has {len(examples)}")
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))[:count].tolist()
    for start in range(0, count, batch_size):
        pixels, _ = examples[order[start : start + batch_size]]
        yield to_unit(pixels)
