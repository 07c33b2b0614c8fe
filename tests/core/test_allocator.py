"""What workers are started with for glibc's allocator, what the user has set stands; what a training keeps."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

from instdiff.engine.allocator import NAME, NO_SMALL_CACHES, worker_environment


def test_a_worker_is_told_unless_the_user_says_something() -> None:
    assert worker_environment({"A": "1"}) == {NAME: NO_SMALL_CACHES, "A": "1"}
    assert worker_environment({NAME: "mine"}) == {NAME: "mine"}


FAULTS = """
import resource
import torch
from instdiff.engine.allocator import keeping_all_pages

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(48 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
with keeping_all_pages():
    for _ in range(12):  # until glibc's small caches are full of what torch's alignment cuts off
        faults()
    print(sum(faults() for _ in range(5)))
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it asks glibc")
def test_a_training_gets_its_pages_once() -> None:
    """In a process of its own, whose memory nothing else has used."""
    ran = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    before, inside, after = map(int, ran.stdout.split())
    pages = (48 << 20) // resource.getpagesize()
    assert before >= pages and inside < pages / 100 and after >= pages
