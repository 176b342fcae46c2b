"""What tensors free is kept, and is there for the next ones."""

import os
import platform
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from ncsn import ScoreModule
from ncsn.cli import features, from_options
from ncsn.training import module

STEPS = """
import ctypes, resource, sys
from ncsn.training.memory import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def steps(count):  # each frees more than glibc would ever keep by itself
    for _ in range(count):
        block = ctypes.c_void_p(libc.malloc(2**26))
        ctypes.memset(block, 1, 2**26)
        libc.free(block)

if sys.argv[1] == "keep":
    keep_freed_memory()
steps(3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
steps(10)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(way: str) -> int:
    """How many pages the system gave to ten steps."""
    command = [sys.executable, "-c", STEPS, way]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="another C library")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="perhaps another allocator")
def test_what_a_step_frees_is_kept_for_the_next_one():
    assert pages("keep") < pages("give") / 20


@pytest.mark.parametrize(("device", "kept"), [("cpu", 1), ("cuda", 0)])
@pytest.mark.parametrize(("home", "trained"), [(module, ScoreModule), (features, features.Classifier)])
def test_training_keeps_memory_on_a_cpu_alone(monkeypatch, home, trained, device, kept):
    calls = []
    monkeypatch.setattr(home, "keep_freed_memory", lambda: calls.append(1))
    trained.on_fit_start(Namespace(device=torch.device(device), compiled=False))
    assert len(calls) == kept


def test_what_draws_on_a_cpu_keeps_memory(monkeypatch):
    calls = []
    monkeypatch.setattr(from_options, "keep_freed_memory", lambda: calls.append(1))
    from_options.chosen_trainer(Namespace(device="cpu", devices=1, num_nodes=1, precision="32-true"))
    assert len(calls) == 1
