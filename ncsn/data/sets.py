"""Public data sets of small images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from ncsn.data.examples import Examples, HeldExamples, held_out_last
from ncsn.data.module import ImageData

__all__ = ["CIFAR10", "MNIST", "BinaryDigits", "Digits", "FashionMNIST"]

BROKEN = (
    OSError,
    AssertionError,
    ArithmeticError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)  # exceptions that missing or broken files of a data set cause


class Digits(ImageData):
    """scikit-learn's 1,797 handwritten digits, 8x8, grey; a tenth is for validation."""

    def __init__(
        self, batch_size: int = 128, labels: bool = False, dequantise: bool = False
    ) -> None:
        super().__init__(
            (1, 8, 8), list("0123456789"), batch_size, labels, flip=False, dequantise=dequantise
        )

    def load(self) -> dict[str, Examples]:
        pixels, labels = self.scans()
        parts = held_out_last(len(pixels), fraction=0.1)
        return {
            name: HeldExamples(pixels[indices], labels[indices]) for name, indices in parts.items()
        }

    def scans(self) -> tuple[Tensor, Tensor]:
        """Return all images, uint8 (N, 1, 8, 8), and their labels (N,)."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = torch.tensor(digits.images / 16 * 255).round().to(torch.uint8).unsqueeze(1)
        return pixels, torch.tensor(digits.target)


class BinaryDigits(Digits):
    """The images of `Digits`, thresholded at half of the range."""

    def __init__(self, batch_size: int = 128, labels: bool = False) -> None:
        super().__init__(batch_size, labels)

    def scans(self) -> tuple[Tensor, Tensor]:
        pixels, labels = super().scans()
        return 255 * (pixels > 127).to(torch.uint8), labels


class TorchvisionData(ImageData):
    """A torchvision data set, with its test split for validation.

    Args:
        root: the folder that has it, or into which it is downloaded.
    """

    source: type[Any]
    image_shape = (1, 28, 28)
    names: Sequence[str]

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        labels: bool = False,
        flip: bool = False,
        dequantise: bool = False,
    ) -> None:
        super().__init__(self.image_shape, self.names, batch_size, labels, flip, dequantise)
        self.root = Path(root)

    def prepare_data(self) -> None:
        """Download the data if it is missing, unless `downloads` is False.

        Raises:
            OSError: if the download fails.
            ValueError: if the data is damaged, or missing and must not be downloaded.
        """
        # torchvision creates the folder before the download.
        folder = self.root / self.source.__name__ / "raw"
        present = folder.is_dir() and any(folder.iterdir())
        missing = [path for path in (folder, folder.parent, self.root) if not path.exists()]
        try:
            for train in (True, False):
                self.source(self.root, train=train, download=self.downloads)
        except BROKEN as error:
            if present and "download" not in str(error):
                raise self._damaged(error) from error
            absent = f"{type(self).__name__} is not in {self.root.resolve()}"
            layout = f"torchvision.datasets.{self.source.__name__}"
            remedy = f"put the files there, as {layout} lays them out"
            if not self.downloads:
                raise ValueError(
                    f"{absent}, and nothing is downloaded into a folder that a checkpoint names; "
                    f"{remedy}, or evaluate with --data CONFIG"
                ) from error
            for path in missing:
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()
            raise OSError(
                f"{absent} and could not be downloaded ({error}); {remedy}, or set data.root"
            ) from error

    def _damaged(self, error: Exception) -> ValueError:
        what = " ".join(str(error).split()) or "its header is not that of such a file"
        return ValueError(
            f"{type(self).__name__}: the files under {self.root} are damaged ({what}); "
            "remove them, and they are downloaded again"
        )

    def load(self) -> dict[str, Examples]:
        return {"train": self._held(train=True), "val": self._held(train=False)}

    def _held(self, train: bool) -> HeldExamples:
        try:
            data = self.source(self.root, train=train)
            pixels, labels = torch.as_tensor(data.data), torch.as_tensor(data.targets)
            if (
                pixels.dtype != torch.uint8
                or labels.ndim != 1
                or not 0 <= labels.min() <= labels.max() < 10
            ):
                raise ValueError("they are not bytes with labels from 0 to 9")
            pixels = pixels.reshape(len(pixels), *self.shape[1:], self.shape[0])
            return HeldExamples(pixels.permute(0, 3, 1, 2).contiguous(), labels)
        except BROKEN as error:
            raise self._damaged(error) from error


class MNIST(TorchvisionData):
    """MNIST: 60,000 + 10,000 handwritten digits, 28x28, grey."""

    source = torchvision.datasets.MNIST
    names = source.classes

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        labels: bool = False,
        dequantise: bool = False,
    ) -> None:
        super().__init__(root, batch_size, labels, flip=False, dequantise=dequantise)


class FashionMNIST(TorchvisionData):
    """Fashion-MNIST: 60,000 + 10,000 images of clothes, 28x28, grey."""

    source = torchvision.datasets.FashionMNIST
    names = source.classes


class CIFAR10(TorchvisionData):
    """CIFAR-10: 50,000 + 10,000 photographs in ten classes, 32x32, colour."""

    source = torchvision.datasets.CIFAR10
    image_shape = (3, 32, 32)
    names = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        labels: bool = False,
        flip: bool = True,
        dequantise: bool = False,
    ) -> None:
        super().__init__(root, batch_size, labels, flip, dequantise)
