"""Your own pictures, from a folder of files."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

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

    They are turned upright, resized and centre-cropped to size x size, in colour (transparency is dropped) or grey.

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

    Raises:
        ValueError: where the folder is missing or has no pictures, or a number is out of its range.
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
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(f"ImageFolder: channels is {channels}, and must be 3 (colour) or 1 (grey)")
        if size < 1:
            raise ValueError(f"ImageFolder: size is {size}, and must be at least 1")
        if not 0 < held_out < 1:
            raise ValueError(f"ImageFolder: held_out is {held_out}, and must be between 0 and 1")
        self.root = Path(root)
        self.files = picture_files(self.root)
        folders = [file.relative_to(self.root).parts[0] for file in self.files] if labels else []
        names = sorted(set(folders) - {file.name for file in self.files if file.parent == self.root})
        super().__init__((channels, size, size), names, batch_size, labels, flip, dequantise, workers)
        if labels and len(names) < len(set(folders)):
            raise ValueError(f"ImageFolder: labels is true, but some pictures lie in {root} itself, in no class folder")
        self.held_out = held_out
        self.memory = memory
        self.targets = torch.tensor([names.index(folder) for folder in folders] if labels else [0] * len(self.files))

    def load(self) -> dict[str, Examples]:
        channels, size, _ = self.shape
        order = held_out_last(len(self.files), self.held_out)
        splits: dict[str, Examples] = {}
        for name, indices in order.items():
            pictures = FilePictures([self.files[i] for i in indices], self.targets[indices], channels, size)
            small = len(self.files) * channels * size**2 <= self.memory * 2**30
            splits[name] = pictures.held() if small else pictures
        return splits


class FilePictures(Examples):
    """Examples read from their files as they are asked for, resized and centre-cropped to size x size."""

    def __init__(self, files: Sequence[Path], labels: Tensor, channels: int, size: int) -> None:
        self.files, self.labels, self.channels, self.size = files, labels, channels, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        try:
            return torch.stack([self.read(self.files[i]) for i in indices]), self.labels[indices]
        except ValueError as error:  # in the middle of a run: a failure of the world, no more a wrong setting
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
        try:
            with Image.open(file) as picture:
                upright = eight_bits(ImageOps.exif_transpose(picture)).convert("L" if self.channels == 1 else "RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"cannot read {file} as a picture ({error}); repair or remove it") from error
        if upright.size != (self.size, self.size):
            upright = ImageOps.fit(upright, (self.size, self.size), Image.Resampling.LANCZOS)
        pixels: Tensor = torchvision.transforms.functional.pil_to_tensor(upright)
        return pixels

    def held(self) -> HeldExamples:
        """All of them, read into memory now."""
        pixels = torch.empty(len(self), self.channels, self.size, self.size, dtype=torch.uint8)
        with ThreadPoolExecutor() as threads:
            pictures = threads.map(self.read, self.files, chunksize=64)
            for i, picture in enumerate(track(pictures, "Reading pictures", total=len(self), transient=True)):
                pixels[i] = picture
        return HeldExamples(pixels, self.labels)


def eight_bits(picture: Image.Image) -> Image.Image:
    """A picture of 16-bit greys in 8 bits, which Pillow would cut off in place of scaling; any other as it is.

    Raises:
        ValueError: where its greys are fractions, whose range is not known.
    """
    if picture.mode == "F":
        raise ValueError("its pixels are fractions")
    if picture.mode.startswith("I"):
        return Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8))
    return picture


def same_pictures(root: Path, shape: tuple[int, ...]) -> FilePictures:
    """The pictures under `root`, none of which is resized: of the height and width of `shape` (C, H, W), H = W.

    Raises:
        ValueError: where there are none, one cannot be read, or is of another size.
    """
    channels, height, width = shape
    files = picture_files(root, "the folder of pictures")
    for file in files:
        try:
            with Image.open(file) as picture:
                size = picture.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"cannot read {file} as a picture ({error}); repair or remove it") from error
        if size != (width, height):
            raise ValueError(f"{file} is of {size[0]}x{size[1]} pixels, and must be of {width}x{height}, as the data")
    return FilePictures(files, torch.zeros(len(files)), channels, height)


def picture_files(root: Path, name: str = "ImageFolder: root") -> list[Path]:
    """The files under `root` whose names end as a format that Pillow reads does, hidden ones left out, sorted.

    Raises:
        ValueError: where there is no such folder, or no such file in it.
    """
    if not root.is_dir():
        raise ValueError(f"{name} is {root}, which is not a folder")
    Image.init()
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = [
        file
        for file in root.rglob("*")
        if file.suffix.lower() in endings
        and not any(part.startswith(".") for part in file.relative_to(root).parts)
        and file.is_file()
    ]
    if not files:
        raise ValueError(f"{name} is {root}, which has no pictures in it")
    return sorted(files)
