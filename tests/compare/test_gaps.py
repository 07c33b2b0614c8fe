"""Shares of the gap over pools, of planted numbers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t

from instdiff.evaluation.results import SuiteResult, TaskResult
from instdiff.experiments.items import write_items
from instdiff.experiments.run_folder import Cell, CellResult

SCRIPT = Path(__file__).parents[2] / "scripts" / "gaps.py"
IDS = [f"i{n}" for n in range(100)]


def plant(folder: Path, lines: Mapping[str, tuple[float, float]], **facts: float) -> Path:
    """A pool's run, whose lines are right on so many hundredths of both tasks, two seeds to either side."""
    cells = [CellResult(Cell("base"), {}, [tasks(0.0, 1.0)]), CellResult(Cell("ifd", "10%", 0), error="no answer")]
    for line, (new, old) in lines.items():
        budget = "100%" if line == "full" else "10%"
        cells += [
            CellResult(Cell(line, budget, seed), facts, [tasks(new + by, old)]) for seed, by in ((0, 0.01), (1, -0.01))
        ]
    folder.mkdir()
    write_items(folder / "items.parquet", cells, {})
    return folder


def tasks(new: float, old: float) -> SuiteResult:
    def task(name: str, share: float) -> TaskResult:
        return TaskResult(name, "accuracy", IDS, (np.arange(100) < round(100 * share)).astype(float))

    return SuiteResult("skills", "m", (task("known", old), task("learnable", new)))


def told(*places: Path) -> dict[str, list[str]]:
    """The table's rows by line, in their order."""
    done = subprocess.run([sys.executable, str(SCRIPT), *map(str, places)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in done.stdout.splitlines() if "|" in line
    ]
    return {row[0]: row[1:] for row in rows[2:]}


POOLS = (
    {"random": (0.1, 0.5), "oracle": (0.6, 0.2), "oracle_rehearsing": (0.4, 0.8), "mine": (0.5, 0.1),
     "rehearsing": (0.4, 0.76), "full": (0.7, 0.9)},
    {"random": (0.1, 0.5), "oracle": (0.5, 0.2), "oracle_rehearsing": (0.4, 0.6), "mine": (0.34, 0.1),
     "rehearsing": (0.3, 0.68)},
    {"random": (0.2, 0.5), "oracle": (0.7, 0.2), "oracle_rehearsing": (0.4, 0.8), "mine": (0.55, 0.1)},
)  # fmt: skip


def test_shares_of_planted_pools(tmp_path: Path) -> None:
    places = [plant(tmp_path / f"{n}", lines, warmup_s=30.0, score_s=1.5) for n, lines in enumerate(POOLS)]
    found = told(places[0], places[1] / "items.parquet", places[2])
    shares = [0.8, 0.6, 0.7]
    reach = t.ppf(0.975, 2) * np.std(shares, ddof=1) / 3**0.5
    assert found["mine"][:5] == ["3", "0.463", "0.100", "0.70", f"{0.7 - reach:.2f} to {0.7 + reach:.2f}"]
    assert found["mine"][-1] == "32" and found["base"][-1] == "0"
    assert found["random"][3:5] == ["0.00", "0.00 to 0.00"] and found["oracle"][3:5] == ["1.00", "1.00 to 1.00"]
    both = [(0.4 + 0.76) / 1.2, 0.98 / 1.0]
    reach = t.ppf(0.975, 1) * np.std(both, ddof=1) / 2**0.5
    assert found["rehearsing"][0] == "2"
    assert found["rehearsing"][5:7] == [
        f"{np.mean(both):.2f}",
        f"{np.mean(both) - reach:.2f} to {np.mean(both) + reach:.2f}",
    ]
    assert found["full"][0] == "1" and found["full"][3:5] == ["1.20", ""]  # of one pool there is no interval
    assert list(found)[:3] == ["full", "oracle", "mine"] and list(found)[-1] == "base" and "ifd" not in found


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ({"random": (0.1, 0.5)}, "has no line 'oracle'"),
        ({"random": (0.1, 0.5), "oracle": (0.1, 0.5)}, "has no gap: the oracle is not better"),
    ],
)
def test_where_there_is_no_gap(tmp_path: Path, lines: dict[str, tuple[float, float]], said: str) -> None:
    place = plant(tmp_path / "pool", lines)
    done = subprocess.run([sys.executable, str(SCRIPT), str(place)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
