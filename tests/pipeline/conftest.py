from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from .kit import Ran, pipeline, set_up


@dataclass(frozen=True)
class Done:
    """A finished run: its working folder, its run folder, and what the command said."""

    home: Path
    run: Path
    ran: Ran


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Two rounds with all controls. Tests read it and leave it as it is."""
    home = set_up(tmp_path_factory.mktemp("pipeline") / "home")
    return Done(home, home / "run", pipeline(home))


@pytest.fixture
def home(done: Done, tmp_path: Path) -> Path:
    """A working folder of the test's own, with rows, model and configuration, and without a run."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "base").symlink_to(done.home / "base")
    return set_up(tmp_path / "home")
