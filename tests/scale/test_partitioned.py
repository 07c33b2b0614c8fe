"""Two stages against the exact way: what is equal, what is lost, and within which bound."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from instdiff.choose.facility import facility
from instdiff.choose.kcenter import kcenter
from instdiff.choose.partitioned import partitioned

Floats = npt.NDArray[np.float32]
FARTHEST = partial(kcenter, start="mean")


@pytest.fixture(scope="module")
def x() -> Floats:
    """Forty clouds of points."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(40, 8))[rng.integers(0, 40, 1200)] * 3 + rng.normal(size=(1200, 8))).astype(np.float32)


def radius(x: Floats, chosen: npt.NDArray[np.int64]) -> float:
    return float(np.sqrt(((x[:, None] - x[chosen][None]) ** 2).sum(-1).min(1).max()))


def coverage(x: Floats, chosen: npt.NDArray[np.int64]) -> float:
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return float(np.maximum(unit @ unit[chosen].T, 0).max(1).sum())


@pytest.mark.parametrize("choose", [FARTHEST, facility])
def test_one_part_is_the_exact_way(x: Floats, choose: object) -> None:
    np.testing.assert_array_equal(partitioned(x[:200], 20, choose, parts=1), choose(x[:200], 20))  # type: ignore


@pytest.mark.parametrize("choose", [FARTHEST, facility])
@pytest.mark.parametrize(("parts", "over"), [(2, 1.0), (7, 2.0), (7, 7.0), (30, 3.0)])
def test_rows_are_taken_once(x: Floats, choose: object, parts: int, over: float) -> None:
    some = x[:300]
    found = partitioned(some, 60, choose, parts=parts, over=over)  # type: ignore[arg-type]
    assert len(found) == len(set(found.tolist())) == 60 and 0 <= found.min() <= found.max() < 300
    again = partitioned(some, 60, choose, parts=parts, over=over)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, again)


def test_the_radius_keeps_to_its_bound(x: Floats) -> None:
    """Four times the best, which the exact way cannot be below; what is lost here is far less, whatever the parts."""
    exact = radius(x, FARTHEST(x, 40))
    for seed in range(3):
        whole = radius(x, partitioned(x, 40, FARTHEST, parts=6, over=6, seed=seed))
        quick = radius(x, partitioned(x, 40, FARTHEST, parts=6, over=2, seed=seed))
        assert whole <= 4 * exact
        assert whole <= 1.5 * exact and quick <= 1.5 * exact  # measured, no theorem


def test_little_coverage_is_lost(x: Floats) -> None:
    exact = coverage(x, facility(x, 40))
    at_random = coverage(x, np.arange(40))
    for seed in range(2):
        found = coverage(x, partitioned(x, 40, facility, parts=6, over=2, seed=seed))
        assert found >= 0.97 * exact and found > at_random + 0.5 * (exact - at_random)


def test_a_mapped_array(x: Floats, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(partitioned(mapped, 30, FARTHEST, parts=5), partitioned(x, 30, FARTHEST, parts=5))


def test_what_cannot_be(x: Floats) -> None:
    assert len(partitioned(x, 0, FARTHEST, parts=4)) == 0
    for k, parts, over, says in [(1201, 2, 2, "1201 rows are asked for"), (5, 1300, 2, "1300 parts of 1200 rows"),
                                 (5, 0, 2, "0 parts"), (5, 2, 0.5, "over is 0.5")]:  # fmt: skip
        with pytest.raises(ValueError, match=says):
            partitioned(x, k, FARTHEST, parts=parts, over=over)
