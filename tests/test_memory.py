"""What tensors free is kept, and is there for the next ones."""

import os
import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, sys, torch
from ncsn.memory import keep_freed_memory

def steps(count):  # each frees more than glibc would ever keep by itself
    for _ in range(count):
        tensors = [torch.ones(2**24) for _ in range(2)]
        del tensors

if sys.argv[1] == "keep":
    keep_freed_memory()
steps(10)
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
