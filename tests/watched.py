"""Every way that reads a model, over files whose settings are evil: an experiment of `tests/reliability.py`."""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import ncsn
import torch
from ncsn.cli.main import main, sample
from ncsn.model.load import load, load_data
from ncsn.training.module import ScoreModule
from PIL import Image

from evil_settings import GOOD, Evil, evil_settings, good_module, named, write

OURS = tuple(f"{Path(str(package.__file__)).parent}{os.sep}" for package in (ncsn, torch))
HELPER = """
from pathlib import Path
from torch import nn
Path({marker!r}).touch()
class Helper(nn.Module):
    def __init__(self, **settings):
        super().__init__()
Instance = Helper()
def function(*arguments, **settings) -> nn.Module:
    Path({marker!r}).touch()
    return Helper()
"""
REPOSITORY = Path(__file__).parent.parent


class Watch:
    """A hook that notes imports of other modules than torch's and ours, and code that runs from other files."""

    def __init__(self) -> None:
        self.armed = False
        self.seen: list[str] = []
        sys.addaudithook(self.note)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed or event not in ("import", "exec"):
            return
        name = str(arguments[0] if event == "import" else getattr(arguments[0], "co_filename", "text"))
        ours = name.partition(".")[0] in ("torch", "ncsn") if event == "import" else name.startswith(OURS)
        if not ours:
            self.seen.append(f"{event} {name}")

    @contextlib.contextmanager
    def over(self, what: object) -> Iterator[None]:
        """Fail if there is something to note meanwhile."""
        with self.noting() as seen:
            yield
        assert not seen, f"{what}: {seen[:3]}"

    @contextlib.contextmanager
    def noting(self) -> Iterator[list[str]]:
        """Yield a list that has what was noted, once this ends: modules too, which `importlib` imports silently."""
        before, self.armed = set(sys.modules), True
        try:
            yield self.seen
        finally:
            self.armed = False
        new = (name for name in set(sys.modules) - before if name.partition(".")[0] not in ("torch", "ncsn"))
        self.seen += [f"module {name}" for name in new]
        self.seen = []


WATCH = Watch()
"""The one hook of this process: a hook cannot be taken away again."""


@contextlib.contextmanager
def among_helpers(folder: Path) -> Iterator[Path]:
    """Work in a new `folder` with modules that leave a file `marker` when they run; yield that file."""
    marker = folder / "marker"
    for file in ("helper.py", "evilpackage/__init__.py", "evilpackage/part.py", "elsewhere/onpath.py"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(HELPER.format(marker=str(marker)))
    before, path = Path.cwd(), sys.path.copy()
    os.chdir(folder)
    sys.path[:0] = ["", str(folder / "elsewhere")]
    try:
        yield marker
    finally:
        os.chdir(before)
        sys.path[:] = path


def in_library(file: Path) -> dict[str, Callable[[], object]]:
    """Return the ways of the library to read a file, by name."""
    ways: dict[str, Callable[[], object]] = {"from_pretrained": lambda: load(file)}
    if not file.is_dir():
        ways = {"load": lambda: load(file), "load_data": lambda: load_data(file)}
    if file.suffix == ".ckpt":
        ways["raw"] = lambda: load(file, raw=True)
        ways["load_from_checkpoint"] = lambda: ScoreModule.load_from_checkpoint(file)
        ways["Digits"] = lambda: ncsn.Digits.load_from_checkpoint(file)
    return ways


NUMBERS = count()


def by_command(file: Path) -> dict[str, Callable[[], object]]:
    """Return the commands that read a file, by name, with options that keep them short."""
    device = ["--device", "cpu"]
    extractor = ["--features", str(REPOSITORY / "checkpoints/features_digits.safetensors"), "--num-samples", "70"]
    out = str(Path(f"{next(NUMBERS)}.safetensors"))
    return {
        "sample": lambda: sample([str(file), *device, "--num-samples", "1", "--out", "drawn.png"]),
        "nearest": lambda: sample([str(file), *device, "--num-samples", "1", "--nearest", "1", "--out", "near.png"]),
        "show": lambda: sample([str(file), "--show-settings"]),
        "denoise": lambda: main(
            ["denoise", "a.png", "--model", str(file), *device, "--sigma", "0.5", "--out", "clean.png"]
        ),
        "export": lambda: main(["export", str(file), "--to", "safetensors", "--out", out]),
        "evaluate": lambda: main(["evaluate", str(file), *device, *extractor]),
    }


def refusals(way: Callable[[], object]) -> list[str]:
    """Return the lines with which a way refuses a file; none if it does not.

    What it warns of is left out.
    """
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            way()
        except SystemExit as stop:
            return said.getvalue().splitlines() if stop.code == 2 else [f"status {stop.code}", said.getvalue()]
        except ValueError as error:
            return str(error).splitlines()
    return []


def must_refuse(part: str, way: str) -> bool:
    """Return True if a way builds, or prints, the part of the settings that is evil."""
    if way in ("Model", "Digits"):  # never read by Lightning's loader
        return True
    of_data = way in ("load_data", "evaluate", "nearest")
    ways = {"model": way != "load_data", "data": of_data or way == "show", "root": of_data, "optimizer": way == "show"}
    return ways.get(part, False)


def attack(
    evils: Sequence[tuple[int, Evil]], kinds: Sequence[str], marker: Path, ways: Callable[[Path], dict[str, Any]]
) -> tuple[int, int, int]:
    """Write evil settings as files of some kinds and read each in some ways; return files, readings and refusals."""
    weights = good_module().state_dict()
    for kind in kinds:  # what is imported late is imported now
        for way in ways(write(GOOD, weights, marker.with_name(f"good{kind}"))).values():
            refusals(way)
    files = readings = refused = 0
    for number, evil in evils:
        for kind in kinds if evil.json else [kind for kind in kinds if kind == ".ckpt"]:
            file = write(evil.settings, weights, marker.with_name(f"evil{number}{kind}"))
            files += 1
            for name, way in ways(file).items():
                about = f"{evil.name}, {file.name} by {name}"
                with WATCH.over(about):
                    lines = refusals(way)
                assert not marker.exists(), about
                assert not marker.with_name("made").exists(), about
                assert len(lines) < 2, (about, lines)
                assert lines or not must_refuse(evil.part, name), f"{about}: it was read"
                readings, refused = readings + 1, refused + bool(lines)
    return files, readings, refused


def control(marker: Path) -> None:
    """Assert that the watch sees an import, and that there is a marker, if the user trusts a class of a helper.

    A helper that was imported would not be seen again, so that it is forgotten afterwards.
    """
    settings = {**GOOD["model"], "denoiser": named("ncsn.score.EDMDenoiser", network=named("helper.Helper"))}
    file = write({**GOOD, "model": settings}, good_module().state_dict(), marker.with_name("control.ckpt"))
    with WATCH.noting() as seen:
        lines = refusals(partial(load, file, trust=["helper.Helper"]))
    del sys.modules["helper"]
    assert "is of another network" in lines[0], lines
    assert {"module helper", f"exec {marker.with_name('helper.py')}"} <= set(seen), seen
    assert marker.exists()
    marker.unlink()


def trust(folder: Path, count: int) -> str:
    """Every `count`-th of the evil settings, as files of each kind read in every way: refused, and nothing imported."""
    with among_helpers(folder / "here") as marker:
        Image.new("L", (8, 8)).save("a.png")
        evils = list(enumerate(evil_settings(marker)))[::count]
        library = attack(evils, (".ckpt", ".safetensors", ""), marker, in_library)
        # The commands read files of two kinds, each of them half of the settings.
        halves = [(evils[i::2], (kind,)) for i, kind in enumerate((".ckpt", ".safetensors"))]
        commands = [attack(half, kind, marker, by_command) for half, kind in halves]
        control(marker)
    _, readings, refused = (sum(numbers) for numbers in zip(library, *commands, strict=True))
    return (
        f"{len(evils)} evil settings in {library[0]} files, read {readings} times, {refused} refused in one line, the "
        "others without building what is evil: 0 markers, 0 imports, 0 folders made"
    )
