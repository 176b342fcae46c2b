"""Images from a folder of files."""

import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from operator import index
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
import torchvision
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image, ImageOps
from rich.progress import track
from torch import Tensor

from ncsn.data.examples import Examples, HeldExamples, held_out_last
from ncsn.data.module import ImageData

__all__ = ["BrokenImageError", "FileImages", "ImageFolder", "same_images", "upright"]

STACKS = ("GIF", "PNG", "TIFF", "WEBP")  # formats whose files may hold many images
# Names of the parts of a data set.
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


class BrokenImageError(OSError):
    """An image that turns out to be broken when it is streamed."""


class ImageFolder(ImageData):
    """Images from files: every file under `root`, at any depth, in a format of Pillow.

    The images are turned upright, resized and centre-cropped to the size.
    Transparent images are composited on white, and 16-bit grey is scaled to 8 bits.
    Links are followed. A broken file is reported before training or, if images are
    streamed, when it is read.

    Args:
        root: the folder.
        size: the side of square images, or [height, width], in pixels.
        channels: 3 for colour, 1 for grey.
        batch_size: images per batch, on each device.
        labels: use the top-level folder of an image as its class.
        class_names: the class folders in the order of their labels; by default sorted,
            numbers by their value.
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
        size: int | tuple[int, int],
        channels: int = 3,
        batch_size: int = 128,
        labels: bool = False,
        flip: bool = False,
        dequantise: bool = False,
        held_out: float = 0.05,
        memory: float = 4.0,
        workers: int = 2,
        skip_broken: bool = False,
        class_names: Sequence[str] | None = None,
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(
                f"ImageFolder: channels is {channels}, and must be 3 (colour) or 1 (grey)"
            )
        height, width = sides(size)
        if min(height, width) < 1:
            raise ValueError(f"ImageFolder: size is {size}, and must be at least 1")
        if not 0 < held_out < 1:
            raise ValueError(f"ImageFolder: held_out is {held_out}, and must be between 0 and 1")
        self.root = Path(root)
        self.files = image_files(self.root, skip_broken=skip_broken)
        if len(self.files) < 2:
            raise ValueError(f"ImageFolder: expected at least 2 images, one to hold out, in {root}")
        folders = [file.relative_to(self.root).parts[0] for file in self.files] if labels else []
        loose = next((file for file in self.files if file.parent == self.root), None)
        if labels and loose is not None:
            raise ValueError(
                f"ImageFolder: class labels are the names of folders, and {loose} is in no class "
                f"folder; move it into {self.root}/CLASS"
            )
        found = sorted(set(folders), key=by_number)
        names = found if class_names is None else list(class_names)
        if labels and sorted(names) != sorted(found):
            raise ValueError(
                f"ImageFolder: class_names: expected each of {found} once, got {names}"
            )
        if found and {name.lower() for name in found} <= SPLITS:
            raise ValueError(
                f"ImageFolder: labels is true, but the folders in {root} are parts of a data set, "
                f"not classes: {', '.join(names)}; set root to {self.root / names[-1]}, or rename them"
            )
        super().__init__(
            (channels, height, width), names, batch_size, labels, flip, dequantise, workers
        )
        self.size, self.channels, self.held_out = size, channels, held_out
        self.memory = memory
        self.skip_broken = skip_broken
        self.targets = torch.tensor(
            [names.index(folder) for folder in folders] if labels else [0] * len(self.files)
        )

    def load(self) -> dict[str, Examples]:
        channels, *size = self.shape
        if self.skip_broken:
            self._drop_broken()
        order = held_out_last(len(self.files), self.held_out)
        splits: dict[str, Examples] = {}
        for name, indices in order.items():
            images = FileImages(
                [self.files[i] for i in indices], self.targets[indices], channels, size
            )
            small = len(self.files) * math.prod(self.shape) <= self.memory * 2**30
            splits[name] = images.held() if small else images
        held = [split.values for split in splits.values() if isinstance(split, HeldExamples)]
        distinct = {hash(image.tobytes()) for values in held for image in values.numpy()}
        copies = sum(map(len, held)) - len(distinct)
        if copies:
            share = f"{copies:,} of {len(self.files):,} images are exact copies of another"
            rank_zero_warn(
                f"{share} ({self.root}); some held-out images may be known from training"
            )
        if channels == 3 and held and all(map(is_grey, held)):
            rank_zero_warn(f"all images of {self.root} are grey; set data.channels to 1 for them")
        return splits

    def _drop_broken(self) -> None:
        """Try to read all images, and drop the broken ones."""
        channels, *size = self.shape
        wrong = FileImages(self.files, self.targets, channels, size).wrong()
        good = [i for i in range(len(self.files)) if i not in wrong]
        first = next(iter(wrong.values()), "")
        if len(good) < 2:
            found = f"{len(good) or 'no'} image can be read"
            raise ValueError(f"ImageFolder: root is {self.root}, where {found}; {first}")
        if wrong:
            rank_zero_warn(f"{len(wrong)} of {len(self.files)} images are left out: {first}")
        self.files, self.targets = [self.files[i] for i in good], self.targets[good]


class FileImages(Examples):
    """Images read from files on demand, resized and cropped to a side or to [height, width]."""

    def __init__(
        self, files: Sequence[Path], labels: Tensor, channels: int, size: int | Sequence[int]
    ) -> None:
        self.files, self.labels, self.channels = files, labels, channels
        self.height, self.width = sides(size)

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
        size = self.height if self.height == self.width else (self.height, self.width)
        known = repr((files, self.labels.tolist(), self.channels, size))
        return sha256(known.encode()).hexdigest()

    def read(self, file: Path) -> Tensor:
        """Return the image in `file`, uint8 (C, H, W).

        Raises:
            ValueError: if it cannot be read as an image.
        """
        image = upright(file, "L" if self.channels == 1 else "RGB")
        if image.size != (self.width, self.height):
            image = ImageOps.fit(image, (self.width, self.height), Image.Resampling.LANCZOS)
        pixels: Tensor = torchvision.transforms.functional.pil_to_tensor(image)
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
        pixels = torch.empty(len(self), self.channels, self.height, self.width, dtype=torch.uint8)
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
        if file.suffix in (".ckpt", ".safetensors"):
            raise ValueError("it is a model: give it as --model")
        with Image.open(file) as image:
            yield image
    except Exception as error:  # broken files raise errors of many kinds
        what = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot read {file} as an image ({what}); repair or remove it") from error


def upright(file: Path, mode: str = "RGB") -> Image.Image:
    """Return the image in `file` at its own size, upright and opaque, as "RGB" or grey ("L").

    Raises:
        ValueError: if it cannot be read as an image.
    """
    with opened(file) as image:
        if image.format in STACKS and getattr(image, "is_animated", False):
            warnings.warn(
                f"of a {image.format} file of several images the first is used", stacklevel=2
            )
        return on_white(eight_bits(ImageOps.exif_transpose(image))).convert(mode)


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Return the height and width of a size, which may be the side of a square."""
    try:
        height, width = map(index, size if isinstance(size, Sequence) else (size, size))
    except (TypeError, ValueError) as error:
        expected = "a side, or a height and a width"
        raise ValueError(f"size: expected {expected}, got {size!r} (ImageFolder)") from error
    return height, width


def eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits (Pillow would clip it); return other images as is."""
    if image.mode == "F":
        raise ValueError("its pixels are fractions")
    if not image.mode.startswith("I"):
        return image
    greys = np.asarray(image)
    if greys.min() < 0 or greys.max() > 65535:
        raise ValueError(f"its pixels are from {greys.min()} to {greys.max()}, and not of 16 bits")
    if image.mode == "I" and 0 < greys.max() < 256:
        raise ValueError("its pixels take 32 bits, and would be black; save it with 8 bits")
    transparent = greys == image.info.get("transparency", -1)
    return Image.fromarray(np.where(transparent, 255, greys // 257).astype(np.uint8))


def on_white(image: Image.Image) -> Image.Image:
    """Composite an image with transparency on white; return other images as is."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def same_images(root: Path, shape: tuple[int, ...]) -> FileImages:
    """Return the images under `root`, which must have the `shape` (C, H, W).

    Raises:
        ValueError: if there are none, or one is unreadable or has another size.
    """
    channels, height, width = shape
    files = image_files(root, "the folder of images")
    for file in files:
        with opened(file) as image:
            turned = image.getexif().get(0x0112, 1) > 4  # by 90 degrees
            size = image.size[::-1] if turned else image.size
        if size != (width, height):
            raise ValueError(
                f"{file} is of {size[0]}x{size[1]} pixels, and must be of {width}x{height}, "
                "as the data"
            )
    return FileImages(files, torch.zeros(len(files)), channels, (height, width))


def image_files(
    root: Path, name: str = "ImageFolder: root", skip_broken: bool = False
) -> list[Path]:
    """Return the image files under `root`, sorted, and warn of the files that are left out."""
    if not root.is_dir():
        raise ValueError(f"{name} is {root}, which is not a folder")
    Image.init()
    endings = {
        ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN
    }
    found = sorted(files_under(root))
    files = [file for file in found if kind_of(file) in endings]
    others = Counter(kind_of(file) for file in found if kind_of(file) not in endings).most_common()
    left_out = ", ".join(f"{count:,} {kind}" for kind, count in others)
    counts = (
        f"{name} is {root}, where {len(files):,} of {len(found):,} files are images; left out are "
        f"{left_out} (an image needs the ending of a format of Pillow, such as .png; unpack archives)"
    )
    for file in [] if skip_broken else files:
        if not file.is_file():
            what = "a link to nothing" if file.is_symlink() and not file.exists() else "not a file"
            raise ValueError(f"{file} has the name of an image, and is {what}; remove it")
    if not files:
        raise ValueError(counts if found else f"{name} is {root}, which has no images in it")
    if others:
        rank_zero_warn(counts)
    return files


def is_grey(pixels: Tensor) -> bool:
    """Return True if the channels of all images (N, C, H, W) are equal."""
    parts = torch.split(pixels, 1024)  # a comparison of all would take as much memory as they do
    return all(bool((part == part[:, :1]).all()) for part in parts)


def kind_of(file: Path) -> str:
    """Return the ending of a file as it is counted, in lower case."""
    if file.name.startswith("."):
        return "hidden"
    return file.suffix.lower() or "without an ending"


def by_number(name: str) -> tuple[list[int | str], str]:
    """Return a key that sorts names as text, but the numbers in them by their value."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def files_under(root: Path) -> Iterator[Path]:
    """Yield files and hidden folders, also in linked folders, and refuse cycles.

    Hidden files without an ending are those of the system, such as .DS_Store.
    """

    def refuse(error: OSError) -> NoReturn:
        raise error

    for name, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        folder = Path(name)
        if folder.is_symlink() and folder.resolve() in [
            parent.resolve() for parent in folder.parents
        ]:
            raise ValueError(f"{folder} is a link to a folder that it is in; remove it")
        yield from (folder / below for below in folders if below.startswith("."))
        folders[:] = [below for below in folders if not below.startswith(".")]
        yield from (folder / file for file in files if file[0] != "." or Path(file).suffix)
