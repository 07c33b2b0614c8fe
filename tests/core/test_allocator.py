"""What workers are started with for glibc's allocator, what the user has set stands; what a training keeps."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from instdiff.engine.allocator import NAME, NO_SMALL_CACHES, keeping_all_pages, worker_environment


def test_a_worker_is_told_unless_the_user_says_something() -> None:
    assert worker_environment({"A": "1"}) == {NAME: NO_SMALL_CACHES, "A": "1"}
    assert worker_environment({NAME: "mine"}) == {NAME: "mine"}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it asks glibc")
def test_a_training_gets_its_pages_once() -> None:
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(48 << 20, dtype=torch.uint8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    pages = (48 << 20) // resource.getpagesize()
    assert faults() >= pages
    with keeping_all_pages():
        faults()
        assert faults() < pages / 100
    assert faults() >= pages
