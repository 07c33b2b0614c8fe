"""What all tests share: a quiet, offline process, a store of their own, tiny models, the shared folder."""

from __future__ import annotations

import gc
import os
import sys

# Before torch and tokenizers are imported, by whatever test comes first.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from helpers import Lab, make_models

ROOT = Path(__file__).resolve().parents[1]

settings.register_profile(
    "suite",
    deadline=None,
    max_examples=10,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("suite")


_FROZEN = [0]


@pytest.fixture(autouse=True)
def _collect_what_is_new() -> None:
    """Modules that stay are not looked through by each collection of garbage, which every training asks for."""
    if len(sys.modules) > _FROZEN[0] + 100:
        gc.collect()  # what is garbage now would stay
        gc.freeze()
        _FROZEN[0] = len(sys.modules)


@pytest.fixture(autouse=True)
def _own_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTDIFF_STORE", str(tmp_path_factory.getbasetemp() / "store-of-no-one"))


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power cut is waited for, and a busy disk takes a while."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in another order have other last bits."""
    yield from _threads(1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """So many have lanes."""
    yield from _threads(2)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data and models."""
    folder = Path(os.environ.get("INSTDIFF_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("no shared folder; set INSTDIFF_SHARED")
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny random models: see ``helpers.make_models``."""
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def lab(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Scores rows with tiny models, each time in a fresh store unless told otherwise."""
    return Lab(models, tmp_path_factory.mktemp("stores"))
