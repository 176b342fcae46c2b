"""Images from a folder of files."""

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
import torchvision
from PIL import Image, ImageOps
from rich.progress import track
from torch import Tensor

from ncsn.data.examples import Examples, HeldExamples, held_out_last
from ncsn.data.module import ImageData

__all__ = ["BrokenImageError", "FileImages", "ImageFolder", "same_images"]


class BrokenImageError(OSError):
    """An image that turns out to be broken when it is streamed."""


class ImageFolder(ImageData):
    """Images from files: every file under `root`, at any depth, in a format of Pillow.

    The images are turned upright, resized and centre-cropped to size x size.
    Transparent images are composited on white, and 16-bit grey is scaled to 8 bits.
    Links are followed. A broken file is reported before training or, if images are
    streamed, when it is read.

    Args:
        root: the folder.
        size: height and width of an image, in pixels.
        channels: 3 for colour, 1 for grey.
        batch_size: images per batch, on each device.
        labels: use the top-level folder of an image as its class.
        flip: mirror half of the training images, left to right.
        dequantise: add uniform noise of 1/256 of the range to each training pixel.
        held_out: the fraction of the images for validation, a fixed random subset.
        memory: GiB up to which the images are held in memory; above, they are streamed.
        workers: processes that read ahead if the images are streamed.
        skip_broken: skip unreadable images with a warning, after trying all of them.

    Raises:
        ValueError: if there are no images, a file is broken, or a number out of range.
        OSError: if a folder cannot be read.
    """

    def __init__(
        self,
        root: str,
        size: int,
        channels: int = 3,
        batch_size: int = 128,
        labels: bool = False,
        flip: bool = True,
        dequantise: bool = False,
        held_out: float = 0.05,
        memory: float = 4.0,
        workers: int = 2,
        skip_broken: bool = False,
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(
                f"ImageFolder: channels is {channels}, and must be 3 (colour) or 1 (grey)"
            )
        if size < 1:
            raise ValueError(f"ImageFolder: size is {size}, and must be at least 1")
        if not 0 < held_out < 1:
            raise ValueError(f"ImageFolder: held_out is {held_out}, and must be between 0 and 1")
        self.root = Path(root)
        self.files = image_files(self.root, skip_broken=skip_broken)
        folders = [file.relative_to(self.root).parts[0] for file in self.files] if labels else []
        names = sorted(
            set(folders) - {file.name for file in self.files if file.parent == self.root}
        )
        super().__init__(
            (channels, size, size), names, batch_size, labels, flip, dequantise, workers
        )
        if labels and len(names) < len(set(folders)):
            raise ValueError(
                f"ImageFolder: labels is true, but some images in {root} are in no class folder"
            )
        self.held_out = held_out
        self.memory = memory
        self.skip_broken = skip_broken
        self.targets = torch.tensor(
            [names.index(folder) for folder in folders] if labels else [0] * len(self.files)
        )

    def load(self) -> dict[str, Examples]:
        channels, size, _ = self.shape
        if self.skip_broken:
            self._drop_broken()
        order = held_out_last(len(self.files), self.held_out)
        splits: dict[str, Examples] = {}
        for name, indices in order.items():
            images = FileImages(
                [self.files[i] for i in indices], self.targets[indices], channels, size
            )
            small = len(self.files) * channels * size**2 <= self.memory * 2**30
            splits[name] = images.held() if small else images
        return splits

    def _drop_broken(self) -> None:
        """Try to read all images, and drop the broken ones."""
        channels, size, _ = self.shape
        wrong = FileImages(self.files, self.targets, channels, size).wrong()
        good = [i for i in range(len(self.files)) if i not in wrong]
        if not good:
            raise ValueError(
                f"ImageFolder: root is {self.root}, where no image can be read; {wrong[0]}"
            )
        if wrong:
            first = next(iter(wrong.values()))
            warnings.warn(
                f"{len(wrong)} of {len(self.files)} images are left out: {first}", stacklevel=2
            )
        self.files, self.targets = [self.files[i] for i in good], self.targets[good]


class FileImages(Examples):
    """Images read from files on demand, resized and cropped to size x size."""

    def __init__(self, files: Sequence[Path], labels: Tensor, channels: int, size: int) -> None:
        self.files, self.labels, self.channels, self.size = files, labels, channels, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        try:
            return torch.stack([self.read(self.files[i]) for i in indices]), self.labels[indices]
        except ValueError as error:  # during a run the settings are not to blame
            raise BrokenImageError(error) from error

    def fingerprint(self) -> str:
        """Return the sha256 of file names and sizes, labels and image shape."""
        files = [(file.name, file.stat().st_size) for file in self.files]
        known = repr((files, self.labels.tolist(), self.channels, self.size))
        return sha256(known.encode()).hexdigest()

    def read(self, file: Path) -> Tensor:
        """Return the image in `file`, uint8 (C, size, size).

        Raises:
            ValueError: if it cannot be read as an image.
        """
        with opened(file) as image:
            upright = on_white(eight_bits(ImageOps.exif_transpose(image)))
            upright = upright.convert("L" if self.channels == 1 else "RGB")
        if upright.size != (self.size, self.size):
            upright = ImageOps.fit(upright, (self.size, self.size), Image.Resampling.LANCZOS)
        pixels: Tensor = torchvision.transforms.functional.pil_to_tensor(upright)
        return pixels

    def wrong(self) -> dict[int, str]:
        """Return the error message of each unreadable image, by its index."""

        def reason(file: Path) -> str | None:
            try:
                self.read(file)
            except ValueError as error:
                return str(error)
            return None

        with ThreadPoolExecutor() as threads:
            reasons = threads.map(reason, self.files, chunksize=64)
            tried = track(reasons, "Trying images", total=len(self), transient=True)
            return {i: said for i, said in enumerate(tried) if said is not None}

    def complaint(self) -> str:
        """Try all images, and return one line that names the unreadable ones, or nothing."""
        wrong = self.wrong()
        if not wrong:
            return ""
        first, *others = wrong
        names = ", ".join(str(self.files[i]) for i in others)
        more = f"; so are {len(others)} more of {len(self):,}: {names}" if others else ""
        return f"{wrong[first]}{more}; or leave such images out by --data.skip_broken true"

    def held(self) -> HeldExamples:
        """Read all images into memory."""
        pixels = torch.empty(len(self), self.channels, self.size, self.size, dtype=torch.uint8)
        with ThreadPoolExecutor() as threads:
            images = threads.map(self.read, self.files, chunksize=64)
            try:
                for i, image in enumerate(
                    track(images, "Reading images", total=len(self), transient=True)
                ):
                    pixels[i] = image
            except ValueError as error:
                raise ValueError(self.complaint()) from error
        return HeldExamples(pixels, self.labels)


@contextmanager
def opened(file: Path) -> Iterator[Image.Image]:
    """Open an image, and turn every error into a one-line ValueError."""
    try:
        if file.exists() and not file.is_file():  # opening a pipe would block
            raise ValueError("it is not a file")
        with Image.open(file) as image:
            yield image
    except Exception as error:  # broken files raise errors of many kinds
        what = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot read {file} as an image ({what}); repair or remove it") from error


def eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits (Pillow would clip it); return other images as is."""
    if image.mode == "F":
        raise ValueError("its pixels are fractions")
    if not image.mode.startswith("I"):
        return image
    greys = np.asarray(image)
    if greys.min() < 0 or greys.max() > 65535:
        raise ValueError(f"its pixels are from {greys.min()} to {greys.max()}, and not of 16 bits")
    transparent = greys == image.info.get("transparency", -1)
    return Image.fromarray(np.where(transparent, 255, greys // 257).astype(np.uint8))


def on_white(image: Image.Image) -> Image.Image:
    """Composite an image with transparency on white; return other images as is."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def same_images(root: Path, shape: tuple[int, ...]) -> FileImages:
    """Return the images under `root`, which must have the `shape` (C, H, W) with H = W.

    Raises:
        ValueError: if there are none, or one is unreadable or has another size.
    """
    channels, height, width = shape
    files = image_files(root, "the folder of images")
    for file in files:
        with opened(file) as image:
            size = image.size
        if size != (width, height):
            raise ValueError(
                f"{file} is of {size[0]}x{size[1]} pixels, and must be of {width}x{height}, "
                "as the data"
            )
    return FileImages(files, torch.zeros(len(files)), channels, height)


def image_files(
    root: Path, name: str = "ImageFolder: root", skip_broken: bool = False
) -> list[Path]:
    """Return the image files under `root`, sorted, without hidden ones."""
    if not root.is_dir():
        raise ValueError(f"{name} is {root}, which is not a folder")
    Image.init()
    endings = {
        ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN
    }
    files = sorted(file for file in files_under(root) if file.suffix.lower() in endings)
    for file in [] if skip_broken else files:
        if not file.is_file():
            what = "a link to nothing" if file.is_symlink() and not file.exists() else "not a file"
            raise ValueError(f"{file} has the name of an image, and is {what}; remove it")
    if not files:
        raise ValueError(f"{name} is {root}, which has no images in it")
    return files


def files_under(root: Path) -> Iterator[Path]:
    """Yield the files that are not hidden, also in linked folders, and refuse cycles."""

    def refuse(error: OSError) -> NoReturn:
        raise error

    for name, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        folder = Path(name)
        if folder.is_symlink() and folder.resolve() in [
            parent.resolve() for parent in folder.parents
        ]:
            raise ValueError(f"{folder} is a link to a folder that it is in; remove it")
        folders[:] = [below for below in folders if not below.startswith(".")]
        yield from (folder / file for file in files if not file.startswith("."))
