"""Atomic writes, and locks for outputs that one process writes at a time.

Windows has no POSIX locks: there, nothing is locked.
"""

import hashlib
import os
import re
import secrets
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from importlib.util import find_spec
from io import FileIO
from pathlib import Path

__all__ = [
    "atomic_write",
    "check_writable",
    "empty_folders_removed",
    "exclusive_file",
    "exclusive_folder",
    "hold",
    "lock_of",
    "temporary_file",
]

POSIX_LOCKS = find_spec("fcntl") is not None
NOFOLLOW, NONBLOCK, CLOEXEC = (
    getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC")
)  # 0 on Windows
LONGEST_NAME = 200  # bytes; file systems take 255, and our suffixes add up to 26
HOLDER_TIMEOUT = 1  # seconds to wait for the name of a lock's holder
ATTEMPTS = 100  # attempts to take a lock that others make and remove
TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}\.partial", re.DOTALL)  # temporary files
ENDINGS = (".png", ".ckpt", ".npz", ".json", ".safetensors")  # of files we write
HOLDER = re.compile(r"process \d+ on \S{1,100} since [\d-]{10} [\d:]{8}")


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Yield a temporary path; on success flush it to disk and rename it to `file`.

    If writing fails, `file` does not change. Missing folders are made. A link at `file`
    is replaced, and its target is left alone. The permissions are those of a new file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary_file(file)
    try:
        mode = stat.S_IMODE(partial.stat().st_mode)
        yield partial
        with _opened(partial, os.O_RDWR | NOFOLLOW) as descriptor:
            if hasattr(os, "fchmod"):
                os.fchmod(descriptor, mode)  # some libraries hide their files from others
            os.fsync(descriptor)
        partial.replace(file)
        if POSIX_LOCKS:  # Windows opens no folders
            with _opened(file.parent, os.O_RDONLY) as descriptor:
                os.fsync(descriptor)
    finally:
        partial.unlink(missing_ok=True)


def temporary_file(file: Path) -> Path:
    """Create an empty file with a random name next to `file`, and return its path."""
    path = file.with_name(f".{_short(file.name)}.{secrets.token_hex(8)}.partial")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW | CLOEXEC
    os.close(os.open(path, flags, 0o666))
    return path


def check_writable(folder: Path) -> None:
    """Check that a folder could be made or written to, without making it.

    Raises:
        OSError: if it cannot be made or written to.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OSError(f"cannot write to {there}: {error.strerror}") from error


@contextmanager
def hold(option: str, *locks: AbstractContextManager[None]) -> Iterator[None]:
    """Hold `locks`, not yet entered, of the outputs that an option names.

    Raises:
        ValueError: if another command holds one of the outputs.
        OSError: if there is no place for one.
    """
    with ExitStack() as held:
        try:
            for lock in locks:
                held.enter_context(lock)
        except (ValueError, OSError) as error:
            kind = OSError if isinstance(error, OSError) else ValueError
            raise kind(f"{option}: {error}") from error
        yield


@contextmanager
def exclusive_file(file: Path) -> Iterator[None]:
    """Lock `file` for this process, and remove the partial files of killed writers.

    The lock is a file next to it, `.NAME.lock`; missing folders are made.

    Raises:
        ValueError: if another process has the lock, or its place is taken.
        OSError: if the folder cannot be made or written to.
    """
    with _exclusive(lock_of(file), file):
        _remove_partial(file.parent, lambda name: name == _short(file.name))
        yield


@contextmanager
def exclusive_folder(folder: Path) -> Iterator[None]:
    """Lock `folder` for this process, and remove the partial files of killed writers.

    The lock is a file in it, `.lock`; missing folders are made. A new folder is made
    under its lock of `exclusive_file`, so that no other process can put a whole
    folder there. Files with a lock of their own are left to their writers.

    Raises:
        ValueError: if another process has the lock, or its place is taken.
        OSError: if the folder cannot be made or written to.
    """
    with empty_folders_removed(folder), ExitStack() as held:
        with nullcontext() if folder.exists() else _exclusive(lock_of(folder), folder):
            held.enter_context(_exclusive(folder / ".lock", folder))
        _remove_partial(
            folder, lambda name: name.endswith(ENDINGS) and not (folder / f".{name}.lock").exists()
        )
        yield


def lock_of(file: Path) -> Path:
    """Return the path of the lock of `exclusive_file`."""
    return file.with_name(f".{_short(file.name)}.lock")


@contextmanager
def _exclusive(lock: Path, output: Path) -> Iterator[None]:
    """Hold the POSIX lock of the file `lock`, and remove the file at the end."""
    if not POSIX_LOCKS:
        with empty_folders_removed(lock.parent):
            lock.parent.mkdir(parents=True, exist_ok=True)
            yield
        return
    # The lock ends with its process, and a fork does not inherit it. It is lost when
    # the process closes any descriptor of the file: never open `lock` elsewhere.
    with empty_folders_removed(lock.parent), _locked(lock, output) as file:
        try:
            file.truncate(0)
            since = time.strftime("%F %T")
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
            yield
        finally:
            if _is_at(file, lock):  # nobody has replaced it by hand
                lock.unlink()


@contextmanager
def empty_folders_removed(folder: Path) -> Iterator[None]:
    """At the end, remove a folder and its parents if they are new and empty."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()


def _locked(lock: Path, output: Path) -> FileIO:
    """Open a lock and lock it; make it and its folders if they are missing."""
    import fcntl

    for _ in range(ATTEMPTS):
        try:
            file = _open_lock(lock)
        except (FileNotFoundError, FileExistsError) as error:
            failure: Exception = error  # or another process has just removed its folder
            continue
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            with file:
                raise ValueError(f"{output} is in use by {_holder(file)}") from error
        if _is_at(file, lock):
            return file
        file.close()  # the holder removed it before we locked it
        failure = ValueError(f"{output} is in use by other processes")
    raise failure


def _open_lock(lock: Path) -> FileIO:
    """Open a lock, making it and its folders if missing; follow no link."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    reason = "it is not a file of one name"
    try:
        flags = os.O_RDWR | os.O_CREAT | NOFOLLOW | NONBLOCK | CLOEXEC
        file = os.fdopen(os.open(lock, flags, 0o666), "r+b", buffering=0)
        found = os.fstat(file.fileno())
        if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
            return file
        file.close()
    except OSError as error:
        if isinstance(error, FileNotFoundError) or not os.path.lexists(lock):
            raise
        reason = "it is a link" if lock.is_symlink() else f"{error.strerror}"
    raise ValueError(f"{lock} is in the place of a lock and cannot be used ({reason}); remove it")


def _is_at(file: FileIO, path: Path) -> bool:
    """Return True if `path` is still the name of an open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def _holder(file: FileIO) -> str:
    """Return the process that holds a lock, as it wrote it into the file."""
    until = time.monotonic() + HOLDER_TIMEOUT
    while not (found := HOLDER.fullmatch(os.pread(file.fileno(), 300, 0).decode(errors="replace"))):
        if time.monotonic() > until:
            return "another process"
        time.sleep(0.01)
    return found[0]


def _remove_partial(folder: Path, is_left: Callable[[str], bool]) -> None:
    """Remove the regular temporary files in a folder with intended names that are left."""
    for path in folder.glob(".*.partial") if POSIX_LOCKS else ():
        found = TEMPORARY.fullmatch(path.name)
        if found and is_left(found[1]):
            with suppress(OSError):
                if stat.S_ISREG(path.lstat().st_mode):
                    path.unlink()


def _short(name: str) -> str:
    """Return a name, cut and followed by its hash if it is too long to be added to."""
    encoded = os.fsencode(name)
    if len(encoded) <= LONGEST_NAME:
        return name
    start = encoded[: LONGEST_NAME - 17].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(encoded).hexdigest()[:16]}"


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """Yield a descriptor of a file or a folder."""
    descriptor = os.open(path, flags | CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
