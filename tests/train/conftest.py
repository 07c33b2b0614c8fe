from __future__ import annotations

from pathlib import Path

import pytest
from tiny_llama import make_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("model") / "base")
