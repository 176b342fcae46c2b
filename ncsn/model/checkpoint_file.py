"""Checkpoint files: the zip that torch writes, followed by a checksum.

torch can read them. `read` trusts nothing in a file: it must be local, intact, of a
known version, made of tensors and plain values alone, no larger in memory than on disk,
and finite. The checksum and the absence of code are verified before unpickling. Files
that Lightning wrote have no checksum, but those of their parts, and are read as well.
"""

import hashlib
import pickletools
import re
import warnings
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

FORMAT = 1  # the version of the file format; no other is read
LIGHTNING = "pytorch-lightning_version"  # an entry of all files that Lightning writes
SEAL = b"\nncsn sha256 "  # between the zip and its checksum
SEAL_SIZE = len(SEAL) + 64  # bytes, with the checksum in hexadecimal
STORAGES = ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")
# Globals that a file may call; none takes more memory than the file has.
KNOWN = {
    "collections OrderedDict",
    "torch Size",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {kind}Storage" for kind in STORAGES),
}
FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
DTYPES = (*FLOATS, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
CALLS = ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4")  # of a pickle
WEIGHTS = ("state_dict", "current_model_state", "optimizer_states")
MAX_VALUES = 500_000  # keys and values; a run of 20,000 tensors has about 280,000


class DamagedError(ValueError):
    """A file that `write` did not write, or that has changed since."""


def write(content: dict[str, Any], path: Path) -> None:
    """Write tensors and plain values to `path` atomically, with a checksum.

    Raises:
        OSError: if the file cannot be written, for example because the disk is full.
    """
    try:
        with atomic_write(path) as partial:
            # Given a path, torch would write its random name into the file.
            with partial.open("wb") as file:
                torch.save({**content, "format": FORMAT}, file)
            checksum = digest(partial)
            with partial.open("ab") as file:
                file.write(SEAL + checksum.encode())
    except (OSError, RuntimeError) as error:  # torch's writer hides the disk's error
        reason = error if isinstance(error, OSError) else "is the disk full?"
        raise OSError(f"cannot write {path}: {reason}") from error


def read(path: str | Path) -> dict[str, Any]:
    """Return the content that `write`, or Lightning, wrote to `path`, on the CPU.

    Raises:
        DamagedError: if the file is not intact.
        ValueError: if it is missing, of another format, or has non-finite weights.
    """
    path = local_file(path)
    sealed = check_seal(path)
    try:
        check_zip(path, sealed)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except DamagedError:
        raise
    except Exception as error:  # torch's message suggests turning the protection off
        raise DamagedError(
            f"checkpoint: {path} is not a checkpoint, is damaged, or holds code, which is not run "
            f"({path.stat().st_size:,} bytes)"
        ) from error
    content = plain(content, path)
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint: {path} is not a training checkpoint of this package")
    version = content.get("format")
    if not sealed:
        lost = "has no checksum at its end"
        remedy = "Trainer(plugins=[ncsn.DurableCheckpointIO()])"
        if "format" in content or LIGHTNING not in content:
            raise DamagedError(
                f"checkpoint: {path} {lost}: it is damaged, or was not written with {remedy}"
            )
        warnings.warn(f"{path} {lost}, as Lightning wrote it; {remedy} adds it", stacklevel=4)
    elif type(version) is not int or version != FORMAT:
        found = ascii(version)[:20]
        raise ValueError(f"checkpoint: {path} is of format {found}, this version reads {FORMAT}")
    step = content.get("global_step", 0)
    if type(step) is not int or step < 0:
        found = f"a global_step of {ascii(step)[:20]}, expected an integer from 0"
        raise ValueError(f"checkpoint: {path} has {found}")
    check_tensors(content, path)
    return content


def plain(content: Any, path: Path) -> Any:
    """Return a copy of unpickled tensors and plain values, in new containers."""
    # Attributes of an unpickled `OrderedDict` can hide its methods from a check.
    left = MAX_VALUES

    def copied(value: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"checkpoint: {path} holds more than {MAX_VALUES:,} keys and values")
        kind = type(value)
        if kind in (Tensor, nn.Parameter, torch.Size, bool, int, float, str, bytes, NoneType):
            return value
        if kind in (list, tuple):
            return kind(map(copied, value))
        if kind in (dict, OrderedDict):
            return {copied(key): copied(one) for key, one in dict.items(value)}
        raise ValueError(
            f"checkpoint: {path} holds a value of type {kind.__name__}, which is not read"
        )

    try:
        return copied(content)
    except (RecursionError, TypeError) as error:  # TypeError: unhashable key
        raise ValueError(
            f"checkpoint: {path} holds values that are nested too deep, or impossible keys"
        ) from error


def local_file(path: str | Path) -> Path:
    """Return `path`, which must be a file on this machine.

    Raises:
        ValueError: if it is an address, a folder, or missing.
    """
    if re.match(r"[a-zA-Z][\w+.-]+:/", str(path)):
        advice = "only local files are read; download it first"
        raise ValueError(f"checkpoint: {path} is an address, and {advice}")
    if Path(path).is_dir():
        raise ValueError(f"checkpoint: {path} is a folder; give a file in it")
    if not Path(path).is_file():
        raise ValueError(f"checkpoint: there is no file {path}")
    return Path(path)


def digest(path: Path, sealed: bool = False) -> str:
    """Return the sha256 of a file in hexadecimal, without its seal if `sealed`."""
    sha, rest = hashlib.sha256(), path.stat().st_size - SEAL_SIZE * sealed
    with path.open("rb") as file:
        while chunk := file.read(min(rest, 2**20)):
            sha.update(chunk)
            rest -= len(chunk)
    return sha.hexdigest()


def check_seal(path: Path) -> bool:
    """Return True if a file ends with its checksum; raise an error if it is wrong."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - SEAL_SIZE))
        seal = file.read()
    if not seal.startswith(SEAL):
        return False
    if seal[len(SEAL) :].decode(errors="replace") != digest(path, sealed=True):
        raise DamagedError(f"checkpoint: {path} is damaged: it does not match its checksum")
    return True


def check_zip(path: Path, sealed: bool) -> None:
    """Check, without unpickling, that a file is a zip of its size that calls only `KNOWN`.

    Without a seal, the zip's own checksums of its parts must be right.
    """
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        size = sum(part.file_size for part in parts)
        compressed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
        if compressed or size > path.stat().st_size:
            raise DamagedError(
                f"checkpoint: {path} claims to hold {size:,} bytes, more than it has"
            )
        for part in parts:
            if part.filename.endswith("/data.pkl"):
                with archive.open(part) as pickled:
                    check_globals(pickled, path)
        if not sealed and archive.testzip() is not None:
            raise DamagedError(f"checkpoint: {path} is damaged: a part has another checksum")


def check_globals(pickled: IO[bytes], path: Path) -> None:
    """Check that a pickle calls only `KNOWN` globals."""
    for operation, argument, _ in pickletools.genops(pickled):
        called = argument if operation.name == "GLOBAL" else operation.name
        if operation.name in CALLS and called not in KNOWN:
            code = f"it would call {ascii(called)[:80]}"
            raise DamagedError(f"checkpoint: {path} holds code, which is not run: {code}")


def check_tensors(content: dict[str, Any], path: Path) -> None:
    """Check that tensors are no larger than the file, and that weights are finite."""
    total, size = 0, path.stat().st_size
    for tensor in tensors(content):
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            kind = f"{tensor.layout}, {tensor.device}"
            raise ValueError(f"checkpoint: {path} has a tensor that is not plain ({kind})")
        total += tensor.nbytes
        if tensor.nbytes > tensor.untyped_storage().nbytes() or total > 4 * size:
            large = f"a tensor of shape {tuple(tensor.shape)}, larger than its data"
            raise ValueError(f"checkpoint: {path} has {large}")
    for section in WEIGHTS:
        if not all(tensor.float().isfinite().all() for tensor in tensors(content.get(section))):
            where = f"numbers in its {section} that are not finite in 32 bits"
            raise ValueError(f"checkpoint: {path} has {where}")


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
    """Return the sha256 of the names and values of a network's weights and buffers.

    Values are taken in float32, in which a model is loaded from a file of half precision.
    """
    state = network.state_dict().items()
    return tensors_fingerprint(
        {name: value.float() if value.is_floating_point() else value for name, value in state}
    )


def tensors_fingerprint(tensors: dict[str, Tensor]) -> str:
    """Return the sha256 of the names, dtypes, shapes and values of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).numpy().data)
    return digest.hexdigest()
