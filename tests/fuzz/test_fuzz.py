"""Whatever a file holds: no traceback, rows in are rows out and named rejects, and good rows are as they were.

The seed is printed, and ``INSTDIFF_FUZZ_SEED`` gives it again; ``INSTDIFF_FUZZ_RECORDS`` sets the size of the long run.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from helpers import CHAT_PLAIN, make_tokenizer
from instdiff.core import Prompted
from instdiff.data import Pool, load
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.errors import DataError
from instdiff.rendering.renderer import Renderer
from instdiff.rendering.templates import ChatTemplate, template

from .generator import Generator, Made

SHORT = 1_500
RECORDS = int(os.environ.get("INSTDIFF_FUZZ_RECORDS", 10_000))
AT_ONCE = 50


@pytest.fixture(scope="module")
def tokenizer() -> HFTokenizer:
    return HFTokenizer(make_tokenizer(chat=CHAT_PLAIN), 512)


def check(made: Made, folder: Path, tokenizer: HFTokenizer) -> int:
    """Read a file and look at everything that comes of it; how many rows did."""
    source = made.data
    if isinstance(source, bytes):
        path = folder / made.name
        path.write_bytes(source)
        source = str(path)  # type: ignore[assignment]
    told = list[str]()
    try:
        pool = load(source, log=told.append, rejects_path=folder / "my.rejected.jsonl")
    except DataError as error:
        # So many bad ones that the file is refused: it says which.
        assert "cannot be used, which is more than half" in str(error), error
        return 0
    rows = pool.source_rows(range(len(pool)))
    if made.lines:
        assert isinstance(made.data, bytes)
        blank = made.data.count(b"\n\n")
        taken = sum(1 + "".join(row.values()).count("\n") for row in rows) + len(pool.rejected)
        assert made.records - blank <= taken <= made.records
    else:
        assert len(rows) + len(pool.rejected) == made.records
    assert all(reject.reason and reject.line > 0 for reject in pool.rejected)
    kept = iter(json.dumps(row) for row in rows)
    missing = [row for row in made.good if json.dumps(row) not in kept]
    assert not missing, missing[:1]
    written = (folder / "my.rejected.jsonl").read_text(encoding="utf-8").splitlines() if pool.rejected else []
    assert len(written) == len(pool.rejected)
    look(pool, tokenizer)
    return len(pool)


def look(pool: Pool, tokenizer: HFTokenizer) -> None:
    """What commands do with rows: every sample, its text, and what a model would see of it."""
    assert len(set(pool.ids)) <= len(pool)
    for sample in pool.samples():
        assert sample.messages
    renderer = Renderer(pool, tokenizer)
    for layout in (template("alpaca"), ChatTemplate()):
        rows = renderer.rows(Prompted(), layout, 256)
        assert len(rows) == len(pool)
        assert all(
            (reason is None) == (length > 0) for reason, length in zip(rows.reason, rows.ids.lengths(), strict=True)
        )


def run(records: int, folder: Path, tokenizer: HFTokenizer) -> None:
    seed = int(os.environ.get("INSTDIFF_FUZZ_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}: INSTDIFF_FUZZ_SEED={seed}")
    done, read = 0, 0
    while done < records:
        made = Generator(seed + done).file(AT_ONCE)
        print(f"file {seed + done}: {made.name or 'python'}, {made.records} records")
        read += check(made, folder, tokenizer)
        done += AT_ONCE
    assert read > records / 3


def test_wrong_rows_never_end_the_reading(
    tmp_path: Path, tokenizer: HFTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(SHORT, tmp_path, tokenizer)


@pytest.mark.slow
def test_many_wrong_rows_never_end_the_reading(tmp_path: Path, tokenizer: HFTokenizer) -> None:
    run(RECORDS, tmp_path, tokenizer)


def test_a_seed_makes_the_same_files() -> None:
    one, other = (Generator(7).file(20) for _ in range(2))
    assert (one.name, one.records, one.good) == (other.name, other.records, other.good)
