"""Two commands that write one output, and links in the places that a command writes to."""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from ncsn.cli.main import main, sample

from runs import Folder, ended

SLOW = ["--num-samples", "128", "--batch-size", "32", "--sampler.steps", "12"]
"""More than a second, in which the other of two has long looked whether it may write."""
QUICK = ["--num-samples", "70", "--sampler.steps", "1"]


def evaluate() -> None:
    """Run `ncsn evaluate`."""
    main(["evaluate", *sys.argv[1:]])


KINDS: dict[str, tuple[Callable[[], None], list[str], str]] = {
    "a.npz": (sample, SLOW, "--out"),
    "folder": (sample, SLOW, "--out"),
    "a.png": (sample, SLOW, "--out"),
    "a.json": (evaluate, ["--num-samples", "70"], "--json"),
}
"""The names that are written, the command of each, and its option."""
SEEDS = (1, 2)


def writers(folder: Path, count: int) -> str:
    """Start two commands at once that write one output: one writes it as if it was alone, the other is refused."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    trained = Folder(folder / "trained")
    trained.run()
    one, other = (Folder(folder / name) for name in ("one", "other"))
    checkpoint = str(trained.path / "checkpoints/run/step=18.ckpt")
    alone = {}
    for kind in KINDS:
        for seed in SEEDS:
            out = folder / "alone" / str(seed) / kind
            out.parent.mkdir(parents=True, exist_ok=True)
            one.run(*given(checkpoint, kind, seed, out), command=KINDS[kind][0])
            alone[kind, seed] = content(out)
    for i in range(count):
        for kind, (command, _, option) in KINDS.items():
            out = folder / f"{i}" / kind / kind
            out.parent.mkdir(parents=True)
            processes = []
            for run, seed in zip((one, other), SEEDS, strict=True):
                (run.path / "err").unlink(missing_ok=True)
                processes.append(run.start(*given(checkpoint, kind, seed, out), command=command))
            statuses = [ended(process) for process in processes]
            assert sorted(statuses) == [0, 2], f"{kind} of two writers: {statuses}, {one.errors()}, {other.errors()}"
            won = statuses.index(0)
            said = (one, other)[1 - won].errors()
            named = rf"error: {option}: {out} is in use by process {processes[won]} on \S+ since [\d-]+ [\d:]+\n"
            assert re.fullmatch(named, said), said
            assert content(out) == alone[kind, SEEDS[won]], f"{kind} is not that of the one that won"
            assert [path.name for path in out.parent.iterdir()] == [kind], list(out.parent.iterdir())
        unnamed(Folder(folder / f"{i}" / "unnamed"), checkpoint, [alone["a.png", seed] for seed in SEEDS])
    links = sum(followed(folder / "links" / kind, one, checkpoint, kind) for kind in KINDS)
    return (
        f"{count} pairs of writers of each of {', '.join(KINDS)}: one wrote it, bit for bit as if alone, and the other "
        f"was refused with it named; {count} pairs without a name wrote two files; 0 of {links} links were followed"
    )


def given(checkpoint: str, kind: str, seed: int, out: Path) -> list[str]:
    """Return the options with which an output is written."""
    _, options, option = KINDS[kind]
    return [checkpoint, "--seed", str(seed), "--device", "cpu", *options, option, str(out)]


def content(out: Path) -> object:
    """Return what an output holds; of a report, all but how long it took."""
    if out.is_dir():
        return {file.name: file.read_bytes() for file in out.iterdir()}
    if out.suffix != ".json":
        return out.read_bytes()
    report = json.loads(out.read_bytes())
    del report["samples"]["cost"]
    return report


def unnamed(run: Folder, checkpoint: str, expected: list[object]) -> None:
    """Start two commands at once that are given no name: each writes a file of its own."""
    processes = [run.start(*given(checkpoint, "a.png", seed, Path())[:-2], command=sample) for seed in SEEDS]
    assert [ended(process) for process in processes] == [0, 0], run.errors()
    written = [content(run.path / name) for name in ("samples.png", "samples-2.png")]
    assert written in (expected, expected[::-1])
    assert {path.name for path in run.path.iterdir()} == {"run.yaml", "out", "err", "samples.png", "samples-2.png"}


def followed(folder: Path, run: Folder, checkpoint: str, kind: str) -> int:
    """Put a link into each place that is written, or was: what it points to stays as it is; how many there are."""
    places = (kind, f".{kind}.lock", f".{kind}.partial", f".{kind}.rows.partial")
    if kind == "folder":
        places = ("folder/.lock", "folder/000000.png", "folder/.000000.png.partial")
    (folder / "alone").mkdir(parents=True)
    command = KINDS[kind][0]
    run.run(*given(checkpoint, kind, 1, folder / "alone" / kind), *QUICK, command=command)
    for number, place in enumerate(places):
        out, mine = folder / f"{number}" / kind, folder / "mine"
        link = out.parent / place
        link.parent.mkdir(parents=True)
        mine.write_text("mine")
        link.symlink_to(mine)
        (run.path / "err").unlink()
        status, said = ended(run.start(*given(checkpoint, kind, 1, out), *QUICK, command=command)), ""
        if place.endswith(".lock"):
            said = f": {link} is in the place of a lock and cannot be used (it is a link); remove it\n"
        elif place in ("a.json", "folder/000000.png"):  # neither a report nor one of the samples is there
            said = " exists"
        assert (status, said in run.errors()) == (2 if said else 0, True), f"{place}: {status}, {run.errors()}"
        assert mine.read_text() == "mine", f"{place} was followed"
        if place.endswith(".partial"):
            link.unlink()  # it is not ours: it stays
        assert said or (not out.is_symlink() and content(out) == content(folder / "alone" / kind)), place
    return len(places)
