"""Files that are whole or absent, and folders that one process has to itself."""

import fcntl
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["atomic_write", "check_writable", "exclusive_folder"]


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """A path beside `file` to write to; when that has succeeded it is flushed to the disk, and takes the name `file`.

    Whatever ends the writing early, `file` is as it was before. Missing folders are made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    try:
        yield partial
        _flush(partial)
        partial.replace(file)
        _flush(file.parent)
    finally:
        partial.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Refuse a folder that could not be made, or written to. Nothing of it is made.

    Raises:
        OSError: with what stands in the way.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OSError(f"cannot write to {there}: {error.strerror}") from error


@contextmanager
def exclusive_folder(folder: Path) -> Iterator[None]:
    """Have `folder`, made where it is missing, for this process alone; and clear what a killed one left half written.

    The lock is the system's, of a file in the folder: it dies with its process, and not with those that it forked.

    Raises:
        ValueError: where another process has it, with that process.
        OSError: where the folder cannot be made or written to.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ".lock"
    while True:
        with file.open("a+") as lock:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                lock.seek(0)
                raise ValueError(f"{folder} is in use by {lock.read() or 'another process'}") from error
            if not file.exists() or file.stat().st_ino != os.fstat(lock.fileno()).st_ino:
                continue  # it was another's, who removed it at this moment
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}")
            lock.flush()
            for partial in folder.glob(".*.partial"):
                partial.unlink(missing_ok=True)
            try:
                yield
            finally:
                file.unlink(missing_ok=True)
                for path in made:
                    with suppress(OSError):
                        path.rmdir()
            return


def _flush(path: Path) -> None:
    """Have the disk hold what was written to a file, or which names a folder has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
