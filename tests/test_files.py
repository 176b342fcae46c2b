"""Files are whole or absent, follow no link, and have one writer at a time."""

import errno
import importlib
import os
import pkgutil
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ncsn.model.files import atomic_write, check_writable, exclusive_file, exclusive_folder, lock_of, temporary_file
from safetensors.torch import save_file

RANDOM = r"[0-9a-f]{16}"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_there_once_it_is_whole(tmp_path):
    with atomic_write(tmp_path / "new" / "a.txt") as partial:
        partial.write_text("one")
        assert not (tmp_path / "new" / "a.txt").exists()
    assert (tmp_path / "new" / "a.txt").read_text() == "one"
    assert names(tmp_path / "new") == ["a.txt"]


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt])
def test_what_breaks_off_leaves_the_old_file_as_it_was(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")

    def write(partial: Path) -> None:
        partial.write_text("ne")
        raise error("in the middle")

    with pytest.raises(error, match="in the middle"), atomic_write(tmp_path / "a.txt") as partial:
        write(partial)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order = []

    def flushed(descriptor: int) -> None:
        order.append(("flush", Path(f"/proc/self/fd/{descriptor}").readlink().name))

    monkeypatch.setattr(os, "fsync", flushed)
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append(("rename", self.name)), replace(self, to)))
    with atomic_write(tmp_path / "a.txt") as partial:
        partial.write_text("one")
    assert order == [("flush", partial.name), ("rename", partial.name), ("flush", tmp_path.name)]


def test_temporary_names_are_others_each_time(tmp_path):
    """A name that can be foreseen is one where somebody can leave a link, or a second writer writes, too."""
    with atomic_write(tmp_path / "a.txt") as one, atomic_write(tmp_path / "a.txt") as other:
        for partial in (one, other):
            assert re.fullmatch(rf"\.a\.txt\.{RANDOM}\.partial", partial.name)
            assert partial.read_bytes() == b""
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a.txt").read_text() == "one"  # the last to end, whole


def test_a_temporary_file_is_never_one_that_is_there(tmp_path, monkeypatch):
    """Neither a file nor a link that has the name by chance is opened: O_EXCL."""
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 2 * size)
    (tmp_path / "mine").write_text("mine")
    for make in (Path.symlink_to, Path.hardlink_to):
        make(tmp_path / f".a.txt.{'0' * 16}.partial", tmp_path / "mine")
        with pytest.raises(FileExistsError), atomic_write(tmp_path / "a.txt") as partial:
            partial.write_text("yours")
        assert (tmp_path / "mine").read_text() == "mine"
        (tmp_path / f".a.txt.{'0' * 16}.partial").unlink()


@pytest.mark.parametrize("place", ["a.txt", ".a.txt.partial"])
def test_what_a_link_points_to_is_left_alone(tmp_path, place):
    """Catches an `open(file, "w")`, and a temporary name without anything random in it."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / place).symlink_to("mine")
    with atomic_write(tmp_path / "a.txt") as partial:
        partial.write_text("new")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "a.txt").read_text() == "new"
    assert not (tmp_path / "a.txt").is_symlink()


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_permissions_are_those_of_a_file_that_is_opened(tmp_path, mask, mode):
    """Those of `mkstemp` are 0600, and safetensors gives its files the same: others could not read what is shared."""
    before = os.umask(mask)
    try:
        with atomic_write(tmp_path / "a.txt") as partial:
            partial.write_text("one")
        with atomic_write(tmp_path / "a.safetensors") as partial:
            save_file({"x": torch.zeros(1)}, partial)
    finally:
        os.umask(before)
    for name in ("a.txt", "a.safetensors"):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("letter", ["a", "\N{GREEK SMALL LETTER SIGMA}"])
def test_names_as_long_as_the_file_system_takes_are_written_and_told_apart(tmp_path, letter):
    room = 254 - 254 % len(letter.encode())
    one, other = (tmp_path / (letter * (room // len(letter.encode()) - 1) + end) for end in "12")
    assert lock_of(one) != lock_of(other)
    with exclusive_file(one), exclusive_file(other):
        for file in (one, other):
            with atomic_write(file) as partial:
                partial.write_text(file.name[-1])
    assert names(tmp_path) == [one.name, other.name]
    assert [file.read_text() for file in (one, other)] == ["1", "2"]


def test_whether_a_folder_can_be_written_is_known_before_it_is_made(tmp_path, monkeypatch):
    check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    check_writable(Path("a"))
    Path("file").touch()
    Path("link").symlink_to("nothing")
    for name in ("file", "link"):
        with pytest.raises(OSError, match=f"cannot write to .*{name}: "):
            check_writable(Path(name, "logs"))
    with pytest.raises(OSError, match="cannot write to /proc/self: "):
        check_writable(Path("/proc/self/logs"))


HOLDER = """
import sys, time
from pathlib import Path
from ncsn.model.files import exclusive_folder
with exclusive_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
HOLDER_OF_FILE = """
import os, sys, time
from pathlib import Path
from ncsn.model.files import exclusive_file
with exclusive_file(Path(sys.argv[1])):
    Path(sys.argv[1]).write_text("half")
    Path(sys.argv[1]).read_text()
    if worker := os.fork():
        print(worker, flush=True)
    time.sleep(60)
"""


def started(code: str, path: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)


def test_a_folder_is_one_process_s_until_it_is_done_or_dead(tmp_path):
    folder = tmp_path / "new" / "run"
    process = started(HOLDER, folder)
    assert process.stdout.readline() == "held\n"
    with (
        pytest.raises(ValueError, match=rf"run is in use by process {process.pid} on .* since \d{{4}}-"),
        exclusive_folder(folder),
    ):
        pass
    process.kill()
    process.wait()
    temporary_file(folder / "step=5.ckpt")
    assert (folder / ".lock").exists()
    with exclusive_folder(folder):
        assert names(folder) == [".lock"]
    assert list(folder.iterdir()) == []


def test_a_file_is_one_process_s_until_it_is_done_or_dead(tmp_path):
    """Its process opens and closes the file, and leaves a worker behind: the lock is not of the file, nor of forks.

    A lock of the file itself would be lost when the process closes it, and one by `flock` be kept by the worker.
    """
    file = tmp_path / "new" / "a.npz"
    process = started(HOLDER_OF_FILE, file)
    worker = int(process.stdout.readline())
    try:
        with (
            pytest.raises(ValueError, match=rf"a\.npz is in use by process {process.pid} on \S+ since \d{{4}}-"),
            exclusive_file(file),
        ):
            pass
        process.kill()
        process.wait()
        partial = temporary_file(file)
        assert names(file.parent) == sorted([lock_of(file).name, partial.name, "a.npz"])
        with exclusive_file(file):
            assert names(file.parent) == [".a.npz.lock", "a.npz"]
            assert f"process {os.getpid()} on " in lock_of(file).read_text()
    finally:
        os.kill(worker, signal.SIGKILL)
        process.stdout.close()
    assert names(file.parent) == ["a.npz"]


def test_what_others_are_writing_is_not_removed(tmp_path):
    """`.a.*.partial` is a file of `a.png`, too; and a folder has files that are written by themselves."""
    of_folder = [temporary_file(tmp_path / name) for name in ("a", "a.png", "[a].png", "step=1.ckpt")]
    with exclusive_file(tmp_path / "a"):
        assert [path.exists() for path in of_folder] == [False, True, True, True]
    with exclusive_file(tmp_path / "a.png"):
        alive = temporary_file(tmp_path / "a.png")
        with exclusive_folder(tmp_path):
            assert names(tmp_path) == sorted([alive.name, ".a.png.lock", ".lock"])
    assert names(tmp_path) == [alive.name]


def test_files_that_no_writer_of_this_package_made_are_kept(tmp_path):
    """Catches a removal by a pattern that others' names match, of folders, and of links."""
    folder = tmp_path / f".model.{'0' * 16}.partial"
    for others in (tmp_path / ".my.project.partial", folder):
        others.mkdir()
        (others / "thesis").touch()
    for name in (".photo.jpg.partial", ".a.npz.mine.partial", ".notes.txt.0123456789abcdef.partial"):
        (tmp_path / name).touch()
    (tmp_path / f".a.npz.{'1' * 16}.partial").symlink_to(folder)
    (tmp_path / f".a.npz.{'2' * 16}.partial").mkdir()
    kept = sorted(tmp_path.rglob("*"))
    ours = [temporary_file(tmp_path / name) for name in ("a.npz", "0.png", "1.ckpt", "b.json", "c.safetensors")]
    with exclusive_file(tmp_path / "a.npz"), exclusive_file(tmp_path / "model"):
        assert [path.exists() for path in ours] == [False, True, True, True, True]
    with exclusive_folder(tmp_path):
        assert not any(path.exists() for path in ours)
    assert sorted(tmp_path.rglob("*")) == kept


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda lock, mine: lock.symlink_to(mine), "it is a link"),
        (lambda lock, mine: lock.symlink_to("absent"), "it is a link"),
        (lambda lock, mine: lock.hardlink_to(mine), "it is not a file of one name"),
        (lambda lock, mine: lock.mkdir(), "Is a directory"),
        (lambda lock, mine: os.mkfifo(lock), "it is not a file of one name"),
        (lambda lock, mine: socket.socket(socket.AF_UNIX).bind(str(lock)), "No such device or address"),
    ],
)
@pytest.mark.parametrize(("exclusive", "lock"), [(exclusive_file, ".run.lock"), (exclusive_folder, "run/.lock")])
def test_what_cannot_be_a_lock_is_refused(tmp_path, monkeypatch, exclusive, lock, make, reason):
    """What a link points to would be cut to nothing, and the process written into it; a pipe would wait for good."""
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("mine").write_text("mine")
    make(Path(lock), Path("mine").absolute())
    before = sorted(tmp_path.rglob("*"))
    said = re.escape(f"{lock} is in the place of a lock and cannot be used ({reason}); remove it")
    with pytest.raises(ValueError, match=f"^{said}$"), exclusive(Path("run")):
        pass
    assert Path("mine").read_text() == "mine"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_new_folder_has_one_writer_whether_it_is_made_at_once_or_renamed_to_its_name(tmp_path):
    """Catches a folder that is drawn into while an export is about to put a whole one there."""
    process = started(HOLDER.replace("exclusive_folder", "exclusive_file"), tmp_path / "new" / "model")
    assert process.stdout.readline() == "held\n"
    with (
        pytest.raises(ValueError, match=f"model is in use by process {process.pid} on "),
        exclusive_folder(tmp_path / "new" / "model"),
    ):
        pass
    assert names(tmp_path / "new") == [".model.lock"]
    process.kill()
    process.wait()
    process.stdout.close()
    with exclusive_folder(tmp_path / "new" / "model"):  # which an export refuses, as it is there
        assert names(tmp_path / "new") == ["model"]
        assert names(tmp_path / "new" / "model") == [".lock"]
    assert names(tmp_path / "new") == []


def test_a_lock_that_may_not_be_opened_is_named(tmp_path, monkeypatch):
    """As that of another user, which root, whom the tests may run as, could open."""
    lock_of(tmp_path / "a.npz").touch()

    def refused(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refused)
    with (
        pytest.raises(ValueError, match=r"/\.a\.npz\.lock is in the place .* \(Permission denied\); remove it$"),
        exclusive_file(tmp_path / "a.npz"),
    ):
        pass


def test_a_lock_that_is_never_there_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("ncsn.model.files._is_at", lambda file, path: False)
    with pytest.raises(ValueError, match=r"a is in use by other processes$"), exclusive_file(tmp_path / "a"):
        pass


def test_text_that_no_writer_wrote_is_not_repeated(tmp_path, monkeypatch):
    """A lock is anyone's to write into; what is printed of it is a process, or nothing."""
    monkeypatch.setattr("ncsn.model.files.HOLDER_TIMEOUT", 0)
    process = started(HOLDER, tmp_path)
    assert process.stdout.readline() == "held\n"
    (tmp_path / ".lock").write_text("\x1b[2J process 1")
    with pytest.raises(ValueError, match=r"is in use by another process$"), exclusive_folder(tmp_path):
        pass
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_folder_that_another_has_just_removed_is_made_again(tmp_path, monkeypatch):
    """As the first of two writers does with the folder that it made, if it writes nothing."""
    mkdir, removed = Path.mkdir, []

    def removing(self, *given, **named):
        mkdir(self, *given, **named)
        if not removed:
            removed.append(self)
            self.rmdir()

    monkeypatch.setattr(Path, "mkdir", removing)
    with exclusive_file(tmp_path / "new" / "a"):
        assert names(tmp_path / "new") == [".a.lock"]
    assert removed == [tmp_path / "new"]


def test_a_folder_that_no_attempt_makes_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    for folder in ("/proc/self/new", "/proc/self", tmp_path / "file", tmp_path / "file" / "new"):
        with pytest.raises(OSError, match=f"{folder}"), exclusive_file(Path(folder, "a")):
            pass


def test_a_lock_that_another_has_made_again_is_not_removed(tmp_path):
    with exclusive_file(tmp_path / "a"):
        lock_of(tmp_path / "a").unlink()
        lock_of(tmp_path / "a").write_text("another's")
    assert lock_of(tmp_path / "a").read_text() == "another's"


COUNTER = """
import sys
from pathlib import Path
from ncsn.model.files import exclusive_file
file, added = Path(sys.argv[1]), 0
while added < 100:
    try:
        with exclusive_file(file):
            count = int(file.read_text())
            file.write_text(str(count + 1))
            added += 1
    except ValueError as error:
        assert "in use by process " in str(error), error
"""


def test_there_is_never_a_second_holder(tmp_path):
    """Catches a program that locks a file which its holder has just removed: it shares the output with the next."""
    file = tmp_path / "count"
    file.write_text("0")
    processes = [started(COUNTER, file) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    for process in processes:
        process.stdout.close()
    assert file.read_text() == "300"
    assert names(tmp_path) == ["count"]


@pytest.mark.parametrize("exclusive", [exclusive_file, exclusive_folder])
def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path, exclusive):
    with pytest.raises(ValueError, match="wrong"), exclusive(tmp_path / "a" / "b"):
        raise ValueError("wrong")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def without_posix(monkeypatch):
    """This package imported afresh as on Windows: without fcntl, SIGHUP, and the like."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "ncsn"}
    for name in before:
        del sys.modules[name]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "fcntl", None)
        for gone in ("SIGHUP", "SIGUSR1", "pthread_sigmask"):
            patch.delattr(signal, gone)
        for gone in ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "fchmod", "pread"):
            patch.delattr(os, gone)
        yield importlib.import_module("ncsn")
    for name in [name for name in sys.modules if name.split(".")[0] == "ncsn"]:
        del sys.modules[name]
    sys.modules.update(before)


def test_without_fcntl_and_sighup_everything_imports_and_images_are_written(without_posix, tmp_path, monkeypatch):
    names = [module.name for module in pkgutil.walk_packages(without_posix.__path__, "ncsn.")]
    for name in set(names) - {"ncsn.__main__"}:
        importlib.import_module(name)
    monkeypatch.chdir(tmp_path)
    checkpoint = str(Path(__file__).parent.parent / "checkpoints" / "digits.safetensors")
    for out in ("a.png", "a.npz", "folder"):
        options = ["--num-samples", "2", "--steps", "2", "--out", out, "--device", "cpu"]
        sys.modules["ncsn.cli.main"].main(["sample", checkpoint, *options])
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "000000.png",
        "000001.png",
        "a.npz",
        "a.png",
    ]
