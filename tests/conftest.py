"""What the tests share: exact scores to compare with, and where the real pictures are."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers each time, on one core: the networks are too small for more."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets, as torchvision lays them out."""
    folder = os.environ.get("NCSN_TEST_DATA")
    if not folder:
        pytest.skip("NCSN_TEST_DATA does not name a folder of real data sets")
    return Path(folder)


def gaussian_score(mean: float, std: float):
    """The exact score of N(mean, std^2) at every noise level."""

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        return (mean - x) / (std**2 + sigma**2)

    return score


def mixture_score(weights: list[float], means: list[float], std: float):
    """The exact score of a mixture of one-dimensional Gaussians of equal width, at every noise level."""
    log_weights, centres = torch.tensor(weights).log(), torch.tensor(means)

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        pull = (centres - x[..., None]) / (std**2 + sigma**2)[..., None]
        responsibility = torch.softmax(log_weights - pull**2 * (std**2 + sigma**2)[..., None] / 2, dim=-1)
        return (responsibility * pull).sum(-1)

    return score
