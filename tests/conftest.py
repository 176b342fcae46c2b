"""What the tests share: exact scores to compare with, and where the real pictures are."""

import gc
import math
import os
import re
import signal
from itertools import pairwise
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many tests run at once as there are cores; and what they start, too

import hypothesis
import torch
from torch import Tensor

# On a busy machine an example may take any time.
hypothesis.settings.register_profile("any time", deadline=None)
hypothesis.settings.load_profile("any time")

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs, from the processes that tests start as well, unless the tests for them are asked for.

    Commands take the GPU if there is one, and Python the CPU.
    """
    gc.disable()  # until all modules are imported, which leave no garbage
    hangup = getattr(signal, "SIGHUP", None)
    if hangup and signal.getsignal(hangup) == signal.SIG_IGN:  # under `nohup`, whose effect is tested
        signal.signal(hangup, signal.SIG_DFL)
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported stays, and is not looked through again
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU; run by `pytest -m gpu`"))


def named(value: object) -> str:
    """What a case is called: the same in every process that collects the tests, as a repr with an address is not."""
    return re.sub(r" object at 0x\w+| at 0x\w+", "", repr(value))


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder in which a small model was trained."""
    from test_cli import train_small

    folder = tmp_path_factory.mktemp("run")
    train_small(folder)
    return folder


@pytest.fixture
def here(folder, monkeypatch) -> Path:
    """That folder, made the current one."""
    monkeypatch.chdir(folder)
    return folder


def gaussian_score(mean: float, std: float):
    """The exact score of N(mean, std^2) at every noise level."""

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        return (mean - x) / (std**2 + sigma**2)

    return score


def mixture_score(weights: list[float], means: list[float], std: float):
    """The exact score of a mixture of one-dimensional Gaussians of equal width, at every noise level."""

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        # The components come first: a softmax over a last dimension of two is slow.
        shape = -1, *[1] * x.ndim
        log_weights, centres = torch.tensor(weights).log().view(shape), torch.tensor(means).view(shape)
        pull = (centres - x) / (std**2 + sigma**2)
        responsibility = torch.softmax(log_weights - pull**2 * (std**2 + sigma**2) / 2, dim=0)
        return (responsibility * pull).sum(0)

    return score


class Correlated:
    """A Gaussian with correlated dimensions, its exact score, and what it becomes once y is measured."""

    def __init__(self, mean, covariance, shape):
        self.mean, self.covariance, self.shape = mean, covariance, shape
        self.variances, self.axes = torch.linalg.eigh(covariance)

    @classmethod
    def draw(cls, shape, correlation=1.5):
        d = math.prod(shape)
        factor = torch.eye(d, dtype=torch.float64) + correlation * torch.randn(d, d, dtype=torch.float64) / d**0.5
        return cls(torch.randn(d, dtype=torch.float64), factor @ factor.T / 2, shape)

    def score(self, x, sigma):
        variances, axes = self.variances.to(x), self.axes.to(x)
        along = (self.mean.to(x) - x.flatten(1)) @ axes
        return (along / (variances + sigma.to(x).reshape(-1, 1) ** 2) @ axes.T).view_as(x)

    def sample(self, n):
        z = torch.randn(n, len(self.mean), dtype=torch.float64)
        return (self.mean + z @ torch.linalg.cholesky(self.covariance).T).view(n, *self.shape)

    def given(self, operator, y, noise):
        matrix = columns(operator, self.shape)
        seen = matrix @ self.covariance @ matrix.T + noise**2 * torch.eye(len(matrix)).double()
        gain = torch.linalg.solve(seen, matrix @ self.covariance).T
        mean = self.mean + gain @ (y.flatten() - matrix @ self.mean)
        return Correlated(mean, self.covariance - gain @ matrix @ self.covariance, self.shape)

    def assert_law(self, x, sigma=0.0, bias=0.0):
        """`x` has this mean and covariance, blurred by sigma, within 5 standard errors and a share `bias`."""
        x, covariance = x.double().flatten(1), self.covariance + sigma**2 * torch.eye(len(self.mean)).double()
        scale = torch.outer(covariance.diagonal(), covariance.diagonal())
        assert ((x.mean(0) - self.mean).abs() < (5 / len(x) ** 0.5 + bias) * covariance.diagonal().sqrt()).all()
        error = ((scale + covariance**2) / len(x)).sqrt()
        assert ((x.T.cov() - covariance).abs() < 5 * error + bias * scale.sqrt()).all()


def columns(operator, shape):
    """The matrix of a linear operator: its images of the unit pictures, side by side."""
    return operator(torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)).flatten(1).T


def flow(score, x, sigmas):
    """Heun's method down the probability flow (Karras et al., 2022, Algorithm 1)."""
    for sigma, below in pairwise(sigmas.to(x)):
        slope = -sigma * score(x, sigma)
        ahead = x + (below - sigma) * slope
        x = x + (below - sigma) * (slope - below * score(ahead, below)) / 2
    return x
