"""Pools that were spoiled say truly what was done to each row."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instdiff import load

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"


@pytest.fixture(scope="module", autouse=True)
def _scripts() -> Any:
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


def made(count: int, name: str = "row") -> list[dict[str, Any]]:
    """Responses of twelve different words each."""
    return [
        {"instruction": f"ask {name} {n}", "input": "", "output": " ".join(f"{name}{n}x{k}" for k in range(12)) + "."}
        for n in range(count)
    ]


@given(st.integers(2, 60), st.floats(0, 0.9), st.integers(0, 5), st.booleans())
@settings(max_examples=40, deadline=None)
def test_each_row_is_what_its_flaw_says(count: int, share: float, seed: int, strange: bool) -> None:
    from spoil import FLAWS, spoil

    rows, others = made(count), made(7, "other") if strange else []
    found = spoil(rows, share, seed, others)
    assert found == spoil(rows, share, seed, others)
    kinds = Counter(row["flaw"] for row in found)
    spoiled = round(share * count)
    assert len(found) == count and kinds[None] == count - spoiled
    each = len(FLAWS) - (not strange)
    assert all(abs(kinds[flaw] - spoiled / each) < 1 for flaw in FLAWS[:each]) and set(kinds) <= {None, *FLAWS[:each]}
    for at, (row, was) in enumerate(zip(found, rows, strict=True)):
        flaw, plain = row["flaw"], {key: value for key, value in row.items() if key != "flaw"}
        before = [{k: v for k, v in one.items() if k != "flaw"} for one in found[:at] if one["flaw"] is None]
        same_ask = row["instruction"] == was["instruction"]
        if flaw is None:
            assert plain == was
        elif flaw == "swapped":
            assert same_ask and row["output"] != was["output"] and row["output"] in [one["output"] for one in rows]
        elif flaw == "truncated":
            assert same_ask and was["output"].startswith(row["output"])
            assert 0.2 * len(was["output"]) <= len(row["output"]) <= 0.6 * len(was["output"])
        elif flaw == "garbled":
            assert same_ask and row["output"] != was["output"]
            assert len(row["output"].split()) == len(was["output"].split())
        elif flaw == "copy":
            assert plain in before
        elif flaw == "near_copy":
            assert plain not in rows and any(one["instruction"] in row["instruction"] for one in before)
        else:
            assert plain in others


def test_short_responses_are_swapped() -> None:
    from spoil import spoil

    rows = [{"instruction": f"ask {n}", "output": str(n)} for n in range(40)]
    kinds = Counter(row["flaw"] for row in spoil(rows, 0.5, 0))
    assert kinds == {None: 20, "swapped": 12, "copy": 4, "near_copy": 4}


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made(30)))
    given = [str(tmp_path / "rows.jsonl"), str(tmp_path / "out.jsonl"), "--share", "0.5", "--seed", "4"]
    subprocess.run([sys.executable, str(SCRIPTS / "spoil.py"), *given], check=True)
    pool = load(tmp_path / "out.jsonl")
    assert len(pool) == 30 and sum(flaw is None for flaw in pool.column("flaw")) == 15
    bare = load([{key: value for key, value in row.items() if key != "flaw"} for row in pool.source_rows(range(30))])
    assert list(bare.ids) == list(pool.ids), "no model sees the column"
    done = subprocess.run([sys.executable, str(SCRIPTS / "spoil.py"), *given[:2], "--share", "1"], capture_output=True)
    assert done.returncode == 2 and b"--share is 1.0" in done.stderr


def test_rows_without_a_response_are_refused() -> None:
    from spoil import spoil

    with pytest.raises(SystemExit, match="one of output, response, answer, completion"):
        spoil([{"instruction": "a"}, {"instruction": "b"}], 0.5, 0)


@pytest.mark.shared_data
def test_four_domains(shared: Path, tmp_path: Path) -> None:
    given = ["--shared", str(shared / "data"), "--rows", "60", "--heldout", "8", "--spoil", "0.33"]
    for name in ("one", "two"):
        command = [sys.executable, str(SCRIPTS / "domains.py"), *given, "--output", str(tmp_path / name)]
        subprocess.run(command, check=True, capture_output=True)
    for name in ("math", "code", "medical", "general"):
        clean, flawed, held = (load(tmp_path / "one" / f"{name}{end}.jsonl") for end in ("", ".flawed", ".heldout"))
        assert (len(clean), len(flawed), len(held)) == (60, 60, 8)
        flaws = flawed.column("flaw")
        assert sum(flaw is None for flaw in flaws) == 40
        assert all(a == b for a, b, flaw in zip(clean.ids, flawed.ids, flaws, strict=True) if flaw is None)
        assert not set(held.ids) & {*clean.ids, *flawed.ids}
        again = (tmp_path / "two" / f"{name}.flawed.jsonl").read_bytes()
        assert again == (tmp_path / "one" / f"{name}.flawed.jsonl").read_bytes()
        strange = [row for row in flawed.source_rows(range(60)) if row["flaw"] == "off_domain"]
        assert strange and not {row["source"] for row in strange} & set(clean.column("source"))


def test_rows_that_fit(models: dict[str, Path]) -> None:
    from domains import fitting

    rows = [{"instruction": f"ask {n}", "input": "", "output": "word " * n} for n in range(1, 40, 6)]
    counts = [len(fitting(rows, longest, str(models["llama"]))) for longest in (1, 60, 120, 1000)]
    assert counts[0] == 0 and counts == sorted(counts) and counts[-1] == len(rows) > counts[1]
