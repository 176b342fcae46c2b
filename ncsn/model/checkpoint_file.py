"""The file of a checkpoint: the zip that torch writes, with a checksum behind it.

torch reads such a file as it reads its own. `read` trusts it with nothing: it must be a local file, whole to the bit,
of a known version, made of tensors and plain values alone, no larger in memory than on the disk, and finite. That it is
whole, and that it calls nothing, is known before anything in it is unpickled.
"""

import hashlib
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import IO, Any

import torch
from torch import Tensor, nn

from ncsn.model.files import atomic_write

__all__ = [
    "DTYPES",
    "DamagedError",
    "digest",
    "local_file",
    "read",
    "tensors_fingerprint",
    "weights_fingerprint",
    "write",
]

FORMAT = 1
"""The version of what `write` writes; another is not read."""
SEAL = b"\nncsn sha256 "
"""What stands between the zip and its checksum of 64 hexadecimal digits."""
SEALED = len(SEAL) + 64
KNOWN = {
    "collections OrderedDict",
    "torch Size",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    *(
        f"torch {kind}Storage"
        for kind in ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int")
    ),
    *(f"torch {kind}Storage" for kind in ("Long", "Short")),
}
"""All that may be called to build the values again. None of it takes more memory than the file has bytes."""
FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
DTYPES = (*FLOATS, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
"""The kinds of numbers of these storages."""
WEIGHTS = ("state_dict", "current_model_state", "optimizer_states")
MOST_VALUES = 250_000
"""In a file: a run of 20,000 tensors, which is the most that is trained, has some 140,000."""


class DamagedError(ValueError):
    """A file that is not one that `write` wrote, or no more."""


def write(content: dict[str, Any], path: Path) -> None:
    """Write tensors and plain values, with the version and the checksum, to `path`: whole, or not at all.

    Raises:
        OSError: where the disk does not take it, as when it is full.
    """
    try:
        with atomic_write(path) as partial:
            with partial.open(
                "wb"
            ) as file:  # by a path, torch would write the random name into the file
                torch.save({**content, "format": FORMAT}, file)
            checksum = digest(partial)
            with partial.open("ab") as file:
                file.write(SEAL + checksum.encode())
    except RecursionError:
        raise
    except (OSError, RuntimeError) as error:  # torch's own writer does not say what the disk said
        what = error if isinstance(error, OSError) else "is the disk full?"
        raise OSError(f"cannot write {path}: {what}") from error


def read(path: str | Path) -> dict[str, Any]:
    """What `write` wrote to `path`, with its tensors on the CPU.

    Raises:
        DamagedError: where the file is not whole.
        ValueError: where it is missing, was not made by `write`, is of another version, holds what is neither a tensor
            nor a plain value, claims more memory than it fills, or has weights that are not finite.
    """
    path = local_file(path)
    sealed = check_seal(path)
    check_zip(path)
    if not sealed:
        raise DamagedError(
            f"checkpoint: {path} has no checksum at its end: it is damaged, or was not written with "
            "Trainer(plugins=[ncsn.DurableCheckpointIO()])"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds; torch's own advice is to turn the protection off
        raise _no_checkpoint(path) from error
    content = plain(content, path)
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint: {path} is not a training checkpoint of this package")
    version = content.get("format")
    if type(version) is not int or version != FORMAT:
        raise ValueError(
            f"checkpoint: {path} is of format {ascii(version)[:20]}, and this version reads {FORMAT}"
        )
    check_tensors(content, path)
    return content


def plain(content: Any, path: Path) -> Any:
    """Return a copy of what was unpickled: tensors and plain values, in new dictionaries, lists and tuples.

    An `OrderedDict` of a file can have attributes that hide its methods, so that a check sees other values than a user.

    Raises:
        ValueError: if there is anything else, or there are too many values.
    """
    left = MOST_VALUES

    def copied(value: Any) -> Any:
        nonlocal left
        kind = type(value)
        if kind in (Tensor, nn.Parameter, torch.Size, bool, int, float, str, bytes, NoneType):
            return value
        if kind not in (dict, OrderedDict, list, tuple):
            raise ValueError(
                f"checkpoint: {path} holds a value of type {kind.__name__}, which is not read"
            )
        left -= len(value) if kind in (list, tuple) else dict.__len__(value)
        if left < 0:
            raise ValueError(f"checkpoint: {path} holds more than {MOST_VALUES:,} values")
        if kind in (list, tuple):
            return kind(map(copied, value))
        return {copied(key): copied(one) for key, one in dict.items(value)}

    try:
        return copied(content)
    except (
        RecursionError,
        TypeError,
    ) as error:  # nested without an end, or a key that cannot be one
        raise ValueError(
            f"checkpoint: {path} holds values that are nested too deep, or impossible keys"
        ) from error


def local_file(path: str | Path) -> Path:
    """`path`, which must be that of a file on this machine.

    Raises:
        ValueError: where it is not.
    """
    if re.match(r"[a-zA-Z][\w+.-]+:/", str(path)):
        raise ValueError(
            f"checkpoint: {path} is an address, and only local files are read; download it first"
        )
    if Path(path).is_dir():
        raise ValueError(f"checkpoint: {path} is a folder; give a file in it")
    if not Path(path).is_file():
        raise ValueError(f"checkpoint: there is no file {path}")
    return Path(path)


def digest(path: Path, sealed: bool = False) -> str:
    """The sha256 of a file, in hexadecimal; of what is before its seal, where it is `sealed`."""
    sha, rest = hashlib.sha256(), path.stat().st_size - SEALED * sealed
    with path.open("rb") as file:
        while chunk := file.read(min(rest, 2**20)):
            sha.update(chunk)
            rest -= len(chunk)
    return sha.hexdigest()


def check_seal(path: Path) -> bool:
    """Whether a file ends with a checksum, which must be of what is before it, to the bit.

    Raises:
        DamagedError: where it is of something else.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - SEALED))
        seal = file.read()
    if not seal.startswith(SEAL):
        return False
    if seal[len(SEAL) :].decode(errors="replace") != digest(path, sealed=True):
        raise DamagedError(f"checkpoint: {path} is damaged: it is not what its checksum is of")
    return True


def check_zip(path: Path) -> None:
    """Refuse a file that is no zip, whose parts are larger than it is, or whose values only code could build.

    Raises:
        DamagedError: where it is no zip, or one whose directory makes no sense.
        ValueError: where it holds code, or more than its size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            size = sum(part.file_size for part in parts)
            if size > path.stat().st_size or any(
                part.compress_type != zipfile.ZIP_STORED for part in parts
            ):
                raise _UnwantedError(
                    f"checkpoint: {path} claims to hold {size:,} bytes, more than it has"
                )
            for part in parts:
                if part.filename.endswith("/data.pkl"):
                    with archive.open(part) as pickled:
                        check_globals(pickled, path)
    except _UnwantedError:
        raise
    except Exception as error:  # of many kinds, depending on where a broken file stops making sense
        raise _no_checkpoint(path) from error


def check_globals(pickled: IO[bytes], path: Path) -> None:
    """Refuse a pickle that calls anything but what is `KNOWN`, without unpickling it.

    Raises:
        ValueError: with the name of what it would call, or where it is no pickle.
    """
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            raise _UnwantedError(
                f"checkpoint: {path} holds code, which is not run: it has {operation.name}"
            )
        if operation.name == "GLOBAL" and argument not in KNOWN:
            name = ascii(str(argument).replace(" ", "."))[1:80].rstrip("'")
            raise _UnwantedError(
                f"checkpoint: {path} holds code, which is not run: it would call {name}"
            )


class _UnwantedError(DamagedError):
    """A file that makes sense, and would run code or fill the memory."""


def _no_checkpoint(path: Path) -> DamagedError:
    return DamagedError(
        f"checkpoint: {path} is not a checkpoint, is damaged, or holds code, which is not run "
        f"({path.stat().st_size:,} bytes)"
    )


def check_tensors(content: dict[str, Any], path: Path) -> None:
    """Refuse tensors that claim more numbers than the file has, and weights that are not finite.

    Raises:
        ValueError: where there are such.
    """
    claimed, size = 0, path.stat().st_size
    for tensor in tensors(content):
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ValueError(
                f"checkpoint: {path} has a tensor that is not plain ({tensor.layout}, {tensor.device})"
            )
        claimed += tensor.numel() * tensor.element_size()
        if (
            tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
            or claimed > 4 * size
        ):
            raise ValueError(
                f"checkpoint: {path} has a tensor of shape {tuple(tensor.shape)}, larger than its data"
            )
    for section in WEIGHTS:
        if not all(tensor.isfinite().all() for tensor in tensors(content.get(section))):
            raise ValueError(f"checkpoint: {path} has numbers in its {section} that are not finite")


def tensors(content: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested dictionaries and lists."""
    left = [content]
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            left += value.values()
        elif isinstance(value, (list, tuple)):
            left += value


def weights_fingerprint(network: nn.Module) -> str:
    """sha256 over the names and the values of a network's weights and buffers."""
    return tensors_fingerprint(network.state_dict())


def tensors_fingerprint(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, kinds, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).numpy().data)
    return digest.hexdigest()
