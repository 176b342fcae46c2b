"""Your own pictures, from a folder of files."""

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

__all__ = ["FilePictures", "ImageFolder", "same_pictures"]


class ImageFolder(ImageData):
    """Your own pictures: every file under `root`, nested folders too, of a format that Pillow reads.

    They are turned upright, resized and centre-cropped to size x size, in colour or grey. Transparent ones are laid on
    white, as on a page; the colours that are hidden under transparent pixels do not show. 16-bit greys are scaled to 8
    bits. Links to files and folders are followed. What is no file or no picture is named before training; but of those
    that are streamed a damaged one is named when its turn comes, unless `skip_broken` has all of them tried.

    Args:
        root: the folder.
        size: height and width of a picture, in pixels.
        channels: 3 for colour, 1 for grey.
        batch_size: pictures in a batch, on each device.
        labels: the class of a picture is the folder of `root` that it is in.
        flip: mirror half of the training pictures, left to right.
        dequantise: spread each training pixel uniformly over its 1/256 of the range.
        held_out: the fraction of the pictures that is for validation, the same ones every time.
        memory: hold the pictures in memory where they take at most so many GiB, and stream them otherwise.
        workers: processes that read ahead where they are streamed.
        skip_broken: leave out files that cannot be read as pictures, with a warning that counts them, in place of
            refusing the folder.

    Raises:
        ValueError: where the folder is missing or has no pictures, something in it has the name of a picture and is no
            file, or a number is out of its range.
        OSError: where a folder in it cannot be read.
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
        self.files = picture_files(self.root, skip_broken=skip_broken)
        folders = [file.relative_to(self.root).parts[0] for file in self.files] if labels else []
        names = sorted(
            set(folders) - {file.name for file in self.files if file.parent == self.root}
        )
        super().__init__(
            (channels, size, size), names, batch_size, labels, flip, dequantise, workers
        )
        if labels and len(names) < len(set(folders)):
            raise ValueError(
                f"ImageFolder: labels is true, but some pictures lie in {root} itself, in no class folder"
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
            pictures = FilePictures(
                [self.files[i] for i in indices], self.targets[indices], channels, size
            )
            small = len(self.files) * channels * size**2 <= self.memory * 2**30
            splits[name] = pictures.held() if small else pictures
        return splits

    def _drop_broken(self) -> None:
        """Try all pictures, and go on with those that can be read.

        Raises:
            ValueError: where none can.
        """
        channels, size, _ = self.shape
        wrong = FilePictures(self.files, self.targets, channels, size).wrong()
        good = [i for i in range(len(self.files)) if i not in wrong]
        if not good:
            raise ValueError(
                f"ImageFolder: root is {self.root}, where no picture can be read; {wrong[0]}"
            )
        if wrong:
            first = next(iter(wrong.values()))
            warnings.warn(
                f"{len(wrong)} of {len(self.files)} pictures are left out: {first}", stacklevel=2
            )
        self.files, self.targets = [self.files[i] for i in good], self.targets[good]


class FilePictures(Examples):
    """Examples read from their files as they are asked for, resized and centre-cropped to size x size."""

    def __init__(self, files: Sequence[Path], labels: Tensor, channels: int, size: int) -> None:
        self.files, self.labels, self.channels, self.size = files, labels, channels, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        try:
            return torch.stack([self.read(self.files[i]) for i in indices]), self.labels[indices]
        except (
            ValueError
        ) as error:  # in the middle of a run: a failure of the world, no more a wrong setting
            raise OSError(error) from error

    def fingerprint(self) -> str:
        """The sha256 of what is known without reading them: names, lengths and labels, and the size that they get."""
        files = [(file.name, file.stat().st_size) for file in self.files]
        known = repr((files, self.labels.tolist(), self.channels, self.size))
        return sha256(known.encode()).hexdigest()

    def read(self, file: Path) -> Tensor:
        """The picture in `file`, uint8 (C, size, size).

        Raises:
            ValueError: where it cannot be read as a picture.
        """
        with opened(file) as picture:
            upright = on_white(eight_bits(ImageOps.exif_transpose(picture)))
            upright = upright.convert("L" if self.channels == 1 else "RGB")
        if upright.size != (self.size, self.size):
            upright = ImageOps.fit(upright, (self.size, self.size), Image.Resampling.LANCZOS)
        pixels: Tensor = torchvision.transforms.functional.pil_to_tensor(upright)
        return pixels

    def wrong(self) -> dict[int, str]:
        """What is wrong with those that cannot be read, by their places."""

        def reason(file: Path) -> str | None:
            try:
                self.read(file)
            except ValueError as error:
                return str(error)
            return None

        with ThreadPoolExecutor() as threads:
            reasons = threads.map(reason, self.files, chunksize=64)
            tried = track(reasons, "Trying pictures", total=len(self), transient=True)
            return {i: said for i, said in enumerate(tried) if said is not None}

    def held(self) -> HeldExamples:
        """All of them, read into memory now."""
        pixels = torch.empty(len(self), self.channels, self.size, self.size, dtype=torch.uint8)
        with ThreadPoolExecutor() as threads:
            pictures = threads.map(self.read, self.files, chunksize=64)
            for i, picture in enumerate(
                track(pictures, "Reading pictures", total=len(self), transient=True)
            ):
                pixels[i] = picture
        return HeldExamples(pixels, self.labels)


@contextmanager
def opened(file: Path) -> Iterator[Image.Image]:
    """The picture in a file.

    Raises:
        ValueError: in one line, where there is none, or it turns out to be broken as it is read.
    """
    try:
        if file.exists() and not file.is_file():  # a pipe would be waited for
            raise ValueError("it is not a file")
        with Image.open(file) as picture:
            yield picture
    except Exception as error:  # of many kinds, depending on where a broken file stops making sense
        what = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"cannot read {file} as a picture ({what}); repair or remove it"
        ) from error


def eight_bits(picture: Image.Image) -> Image.Image:
    """A picture of 16-bit greys in 8 bits, which Pillow would cut off in place of scaling; any other as it is.

    Raises:
        ValueError: where its greys are fractions or of more bits, whose range is not known.
    """
    if picture.mode == "F":
        raise ValueError("its pixels are fractions")
    if not picture.mode.startswith("I"):
        return picture
    greys = np.asarray(picture)
    if greys.min() < 0 or greys.max() > 65535:
        raise ValueError(f"its pixels are from {greys.min()} to {greys.max()}, and not of 16 bits")
    transparent = greys == picture.info.get("transparency", -1)
    return Image.fromarray(np.where(transparent, 255, greys // 257).astype(np.uint8))


def on_white(picture: Image.Image) -> Image.Image:
    """A picture in which something may be transparent, on white; any other as it is."""
    if not picture.has_transparency_data:
        return picture
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)


def same_pictures(root: Path, shape: tuple[int, ...]) -> FilePictures:
    """The pictures under `root`, none of which is resized: of the height and width of `shape` (C, H, W), H = W.

    Raises:
        ValueError: where there are none, one cannot be read, or is of another size.
    """
    channels, height, width = shape
    files = picture_files(root, "the folder of pictures")
    for file in files:
        with opened(file) as picture:
            size = picture.size
        if size != (width, height):
            raise ValueError(
                f"{file} is of {size[0]}x{size[1]} pixels, and must be of {width}x{height}, as the data"
            )
    return FilePictures(files, torch.zeros(len(files)), channels, height)


def picture_files(
    root: Path, name: str = "ImageFolder: root", skip_broken: bool = False
) -> list[Path]:
    """The files under `root` whose names end as a format that Pillow reads does, hidden ones left out, sorted.

    Raises:
        ValueError: where there is no such folder, or no such file in it; or something that has such a name and is no
            file, unless those are skipped.
        OSError: where a folder cannot be read.
    """
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
            raise ValueError(f"{file} has the name of a picture, and is {what}; remove it")
    if not files:
        raise ValueError(f"{name} is {root}, which has no pictures in it")
    return files


def files_under(root: Path) -> Iterator[Path]:
    """All but the hidden ones, of linked folders too.

    Raises:
        ValueError: where a linked folder leads back to one that it is in.
        OSError: where a folder cannot be read.
    """

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
