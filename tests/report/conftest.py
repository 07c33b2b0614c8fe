"""One browser for a file of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .kit import CHROMIUM


@pytest.fixture(scope="module", autouse=True)
def _chromium() -> Iterator[None]:
    yield
    CHROMIUM.close()
