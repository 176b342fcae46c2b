import subprocess
import sys
from pathlib import Path

import pytest

from ncsn.files import atomic_write, check_writable, exclusive_folder


def test_a_file_is_there_once_it_is_whole(tmp_path):
    with atomic_write(tmp_path / "new" / "a.txt") as partial:
        partial.write_text("one")
        assert not (tmp_path / "new" / "a.txt").exists()
    assert (tmp_path / "new" / "a.txt").read_text() == "one"
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt])
def test_what_breaks_off_leaves_the_old_file_as_it_was(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")

    def write(partial: Path) -> None:
        partial.write_text("ne")
        raise error("in the middle")

    with pytest.raises(error, match="in the middle"), atomic_write(tmp_path / "a.txt") as partial:
        write(partial)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr("ncsn.files._flush", lambda path: order.append(("flush", path.name)))
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append(("rename", self.name)), replace(self, to)))
    with atomic_write(tmp_path / "a.txt") as partial:
        partial.write_text("one")
    assert order == [("flush", ".a.txt.partial"), ("rename", ".a.txt.partial"), ("flush", tmp_path.name)]


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
from ncsn.files import exclusive_folder
with exclusive_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_one_process_s_until_it_is_done_or_dead(tmp_path):
    folder = tmp_path / "new" / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with (
        pytest.raises(ValueError, match=rf"run is in use by process {process.pid} on .* since \d{{4}}-"),
        exclusive_folder(folder),
    ):
        pass
    process.kill()
    process.wait()
    (folder / ".step=5.ckpt.partial").touch()
    assert (folder / ".lock").exists()
    with exclusive_folder(folder):
        assert [file.name for file in folder.iterdir()] == [".lock"]
    assert list(folder.iterdir()) == []


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path):
    with pytest.raises(ValueError, match="wrong"), exclusive_folder(tmp_path / "a" / "b"):
        raise ValueError("wrong")
    assert not list(tmp_path.iterdir())
