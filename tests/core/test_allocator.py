"""What workers are started with for glibc's allocator; what the user has set stands."""

from __future__ import annotations

from instdiff.engine.allocator import NAME, NO_SMALL_CACHES, worker_environment


def test_a_worker_is_told_unless_the_user_says_something() -> None:
    assert worker_environment({"A": "1"}) == {NAME: NO_SMALL_CACHES, "A": "1"}
    assert worker_environment({NAME: "mine"}) == {NAME: "mine"}
