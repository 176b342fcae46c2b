"""Files that are damaged, evil or mutated: experiments of `tests/reliability.py`."""

import io
import json
import os
import pickle
import random
import resource
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ncsn.data import MNIST, FileImages
from ncsn.model import checkpoint_file
from ncsn.model.load import contents, load, load_data, newest_whole, save_safetensors
from ncsn.training.module import ScoreModule
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from runs import CONFIG, Folder, same


def changed(content: bytes, kind: str) -> bytes:
    """Bytes with damage of a kind at a random place, but never the same bytes."""
    place = random.randrange(len(content))
    if kind == "flip":
        return content[:place] + bytes([content[place] ^ 1 << random.randrange(8)]) + content[place + 1 :]
    if kind == "zeros":
        start = place // 4096 * 4096
        page = bytes(len(content[start : start + 4096]))
        return (
            changed(content, kind)
            if content[start : start + 4096] == page
            else (content[:start] + page + content[start + 4096 :])
        )
    return content[:place] if kind == "cut" else b""


def trained(folder: Path) -> Path:
    """A checkpoint of a small run, the newest of two."""
    run = Folder(folder / "run", CONFIG.replace("max_steps: 18", "max_steps: 2"))
    run.run()
    return run.path / "checkpoints/run/step=2.ckpt"


def damage(folder: Path, count: int) -> str:
    """Damage the newest checkpoint: it is noticed, and the one before is taken."""
    newest = trained(folder)
    content, before = newest.read_bytes(), newest.with_name("step=1.ckpt")
    for i in range(count):
        newest.write_bytes(changed(content, ("flip", "cut", "zeros", "empty")[i % 4]))
        found, wrong = newest_whole(newest.parent)
        assert (found, len(wrong)) == (before, 1)
        assert str(newest) in wrong[0]
    return f"{count} damaged newest checkpoints: all noticed, all fell back by exactly one"


class Calls:
    """What unpickles by calling a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> Any:
        return self.called


def sealed(file: Path) -> None:
    """Give a file the checksum that it should have: an attacker can."""
    checksum = checkpoint_file.digest(file)
    with file.open("ab") as end:
        end.write(checkpoint_file.SEAL + checksum.encode())


def evil_values(marker: Path) -> dict[str, Any]:
    """Values whose unpickling runs code, or takes memory."""
    touch = f"touch {marker}"
    return {
        "os.system": Calls(os.system, touch),
        "eval": Calls(eval, f"open({str(marker)!r}, 'w')"),
        "exec": Calls(exec, f"open({str(marker)!r}, 'w')"),
        "open": Calls(open, str(marker), "w"),
        "Path.touch": Calls(Path.touch, marker),
        "partial": Calls(partial, os.system, touch),
        "hub": Calls(torch.hub.load, "no/such", "model"),
        "torch.load": Calls(torch.load, str(marker)),
        "getattr": Calls(getattr, Path, "home"),
        "module": nn.Linear(1, 1),
        "bytearray": Calls(bytearray, 10**11),
        "tensor": Calls(torch.Tensor, 10**11),
        "sparse": torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.long), torch.ones(1), (10**12,)),
        "zero stride": torch.zeros(1).expand(10**12),
        "overlapping": torch.zeros(10**4).as_strided((10**4, 10**4), (0, 1)),
        "meta": torch.empty(10**12, device="meta"),
        "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "not finite": torch.tensor([torch.nan]),
    }


def evil_settings(marker: Path) -> dict[str, Callable[[dict[str, Any]], object]]:
    """Changes to the settings of a checkpoint that would run code, or take memory."""
    denoiser = {"class_path": "ncsn.score.EDMDenoiser", "init_args": {}}
    popen = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(marker)]}}
    laughs: list[Any] = []
    for _ in range(40):
        laughs = [laughs, laughs]
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    return {
        "sampler Popen": lambda settings: settings.update(sampler=popen),
        "schedule os.system": lambda settings: settings.update(schedule={"class_path": "os.system"}),
        "network Popen": lambda settings: settings["denoiser"]["init_args"].update(network=popen),
        "network Module": lambda settings: settings["denoiser"]["init_args"].update(network="torch.nn.Linear"),
        "no network": lambda settings: settings.update(denoiser=denoiser),
        "wide": lambda settings: settings["denoiser"]["init_args"]["network"]["init_args"].update(width=2**20),
        "deep": lambda settings: settings["denoiser"]["init_args"]["network"]["init_args"].update(blocks=10**4),
        "levels": lambda settings: settings["schedule"]["init_args"].update(levels=10**12),
        "shape": lambda settings: settings.update(shape=(1, 10**7, 10**7)),
        "laughs": lambda settings: settings.update(warmup=laughs),
        "nested": lambda settings: settings.update(warmup=deep),
    }


def evil_files(folder: Path, whole: Path) -> Iterator[Path | str]:
    """Evil files, one after the other; most of them twice, without and with a checksum that is right."""
    marker = folder / "marker"
    made = folder / "evil"
    made.mkdir()
    for name, value in evil_values(marker).items():
        content = torch.load(whole, weights_only=True) | {"state_dict": {"weight": value}}
        for legacy in (False, True):
            file = made / f"{name} {legacy}.ckpt"
            try:
                torch.save(content, file, _use_new_zipfile_serialization=not legacy)
            except (RuntimeError, NotImplementedError, ValueError):  # as a legacy file of a meta tensor
                file.unlink(missing_ok=True)
                continue
            yield file
            sealed(file)
            yield file
        for protocol in (0, 2, 4) if isinstance(value, Calls) else ():
            file = made / f"{name} {protocol}.ckpt"
            file.write_bytes(pickle.dumps(value, protocol))
            yield file
    for name, change in evil_settings(marker).items():
        content = torch.load(whole, weights_only=True)
        change(content["hyper_parameters"])
        file = made / f"settings {name}.ckpt"
        checkpoint_file.write(content, file)
        yield file
    torch.jit.script(nn.Linear(1, 1)).save(str(made / "script.ckpt"))
    yield made / "script.ckpt"
    with zipfile.ZipFile(made / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data.pkl", pickle.dumps({}))
        bomb.writestr("archive/data/0", bytes(2**28))
    sealed(made / "bomb.ckpt")
    yield made / "bomb.ckpt"
    (made / "header.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    yield made / "header.safetensors"
    settings = {"hyper_parameters": {"sampler": {"class_path": "os.system"}}}
    save_file({"weight": torch.ones(1)}, made / "class.safetensors", metadata={"ncsn": json.dumps(settings)})
    yield made / "class.safetensors"
    yield from ("http://127.0.0.1:1/a.ckpt", "https://no.such/a.ckpt", "file:///etc/passwd", "s3://a/b.ckpt")
    yield from ("/dev/zero", "/dev/stdin", str(made), "no such.ckpt")


def try_evil(file: Path | str) -> None:
    """Load a file in each way that there is; each must refuse it, in one line."""
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    for way in (load, ScoreModule.load_from_checkpoint, partial(load, raw=True), checkpoint_file.read, load_data):
        refusal = refused(lambda way=way: way(file))
        # Where the settings alone are evil, they are refused by those that build a module of them.
        builds = "settings" not in str(file) or way not in (checkpoint_file.read, load_data)
        assert refusal or not builds, f"{file} was loaded by {way}"
        assert "weights_only" not in refusal, refusal


def refused(read: Callable[[], object]) -> str:
    """The one line with which a file is refused; nothing where it is not."""
    try:
        read()
    except ValueError as error:
        lines = str(error).splitlines()
    else:
        return ""
    assert len(lines) == 1, lines
    return lines[0]


def evil(folder: Path, count: int) -> str:
    """Evil files: none is executed, or takes 1 GB or 10 s."""
    whole = trained(folder)
    tried, longest, largest = 0, 0.0, 0
    for file in evil_files(folder, whole):
        began, process = time.monotonic(), os.fork()
        if not process:
            status = 1
            try:
                resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
                try_evil(file)
                status = 0
            finally:
                os._exit(status)
        _, ending, usage = os.wait4(process, 0)
        assert ending == 0, f"{file}: {ending}"
        assert not (folder / "marker").exists(), f"{file} was executed"
        assert time.monotonic() - began < 300, file
        # Of the processor, which others may be using too.
        tried, longest = tried + 1, max(longest, usage.ru_utime + usage.ru_stime)
        largest = max(largest, usage.ru_maxrss)
        assert max(longest / 10, largest / 2**20) < 1, f"{file}: {longest:.1f} s, {largest:,} kB"
    return f"{tried} evil files: 0 executed, at most {longest:.1f} s of the processor and {largest / 1000:.0f} MB each"


def mutations(folder: Path, count: int) -> str:
    """Mutate checkpoint, safetensors, idx and image files: each is refused in one line, or loads as it was."""
    whole = trained(folder)
    save_safetensors(load(whole), folder / "model.safetensors")
    raw = folder / "MNIST/raw"
    raw.mkdir(parents=True)
    pictures = torch.randint(256, (20, 28, 28), dtype=torch.uint8)
    for part in ("train", "t10k"):
        header = struct.pack(">4i", 0x803, 20, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pictures.numpy().tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, 20) + bytes(range(10)) * 2)
    png = io.BytesIO()
    Image.fromarray(pictures[0].numpy()).save(png, format="PNG")
    (folder / "a.png").write_bytes(png.getvalue())
    jpeg = io.BytesIO()
    Image.fromarray(pictures[0].numpy()).save(jpeg, format="JPEG")
    (folder / "a.jpg").write_bytes(jpeg.getvalue())

    def mnist() -> Any:
        data = MNIST(root=str(folder), batch_size=4)
        data.setup()
        return tuple(data.splits["train"].values.shape)

    def picture(name: str) -> Any:
        return FileImages([folder / name], torch.zeros(1), 1, 28).read(folder / name)

    ways: list[tuple[Path, Callable[[], Any]]] = [
        (whole, lambda: contents(whole)),
        (folder / "model.safetensors", lambda: contents(folder / "model.safetensors")),
        (raw / "train-images-idx3-ubyte", mnist),
        (raw / "train-labels-idx1-ubyte", mnist),
        (folder / "a.png", lambda: picture("a.png")),
        (folder / "a.jpg", lambda: picture("a.jpg").shape),
    ]
    refusals = 0
    for i in range(count):
        file, read = ways[i % len(ways)]
        content, expected = file.read_bytes(), read()
        file.write_bytes(changed(content, random.choice(["flip", "flip", "cut", "zeros"])))
        began = time.monotonic()
        if refused(read):
            refusals += 1
        else:
            assert same(read(), expected), f"{file} loads as something else"
        assert time.monotonic() - began < 5
        file.write_bytes(content)
    return f"{count} mutated files: {refusals} refused in one line, the others as they were; 0 crashes, 0 hangs"
