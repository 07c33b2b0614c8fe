"""T-SHIRT as published: clean values through the command line, statistics and selections from the recorded noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from instdiff.core import Budget, Nll, Scored, Settings
from instdiff.core.arrays.ragged import Ragged
from instdiff.data import load
from instdiff.methods import TShirt
from instdiff.methods.algorithms.token_selection import Running, least_size, selective
from instdiff.scoring.scorer import ModelRef, Workbench
from instdiff.store import Store

from .test_golden import column, instdiff

pytestmark = pytest.mark.shared_data


@pytest.fixture(scope="module")
def recorded(shared: Path) -> Path:
    return shared / "golden" / "tshirt"


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# ── given the recorded noise ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("k", [50, 75])
def test_statistics_and_selection(recorded: Path, k: int) -> None:
    published = read(recorded / f"stat_{k}.json")
    noisy = np.load(recorded / "noisy_pmi.npz")
    ifds = np.array(read(recorded / "token_scores.json")["noisy_ifd"])
    rows = len(published)
    draws = [Ragged.of([noisy[str(row)][draw] for row in range(rows)], np.float32) for draw in range(30)]
    least = least_size(lambda: draws, k)
    every = np.concatenate([np.abs(noisy[str(row)]).ravel() for row in range(rows)])
    assert least == np.percentile(every.astype(np.float64), 100 - k)

    chosen, plain = Running(rows), Running(rows)
    for draw in range(30):
        chosen.add(selective(draws[draw], least, strict=True)[0])
        plain.add(ifds[:, draw])
    for name, found in (
        ("avg_noisy_ifd", plain.mean),
        ("std_noisy_ifd", plain.std),
        (f"avg_noisy_sifd_{k}", chosen.mean),
        (f"std_noisy_sifd_{k}", chosen.std),
    ):
        np.testing.assert_allclose(found, [row[name] for row in published], rtol=0, atol=1e-5, err_msg=name)

    method = TShirt(k=k, compat="official")
    misled = plain.mean >= 1
    details = {"std_noisy_sifd": chosen.std}
    reason = np.where(misled, "filtered", None)
    scored = Scored(
        "tshirt", method, np.where(misled, np.nan, chosen.mean), reason, details, list(map(str, range(rows))),
        np.ones(rows, np.int64),
    )  # fmt: skip
    pool = read(recorded / "pool.json")
    texts = [[row["instruction"] + ("\n" + row["input"] if row.get("input") else ""), row["output"]] for row in pool]
    ours = [texts[row] for row in method.pick(scored, Budget(8, "rows"))]
    theirs = [[turn["value"] for turn in row["conversations"]] for row in read(recorded / f"selected_{k}.json")]
    assert ours == theirs


# ── through the command line ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def scored(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("tshirt")
    instdiff(
        *("score", "--data", recorded / "pool.json", "--model", f"proxy={recorded.parent / 'tiny_gpt2'}"),
        *("--method", "tshirt", "--set", "tshirt.compat=official", "--max-length", "256", "--dtype", "float32"),
        *("--output", home / "scores.parquet"),
        store=home / "store",
    )
    return home


def test_clean_ifd_and_the_distribution_under_noise(recorded: Path, scored: Path) -> None:
    table, published = pq.read_table(scored / "scores.parquet"), read(recorded / "token_scores.json")
    np.testing.assert_allclose(column(table, "tshirt.ifd"), published["clean_ifd"], rtol=0, atol=1e-4)
    noisy = np.array(published["noisy_ifd"])
    off = np.abs(column(table, "tshirt.avg_noisy_ifd") - noisy.mean(1))
    within = off <= 5 * noisy.std(1, ddof=1) / np.sqrt(noisy.shape[1])
    assert within.mean() >= 0.95
    ratio = np.median(column(table, "tshirt.std_noisy_ifd") / noisy.std(1))
    assert 0.8 < ratio < 1.25
    reason, filtered = table["tshirt.why"].to_pylist(), column(table, "tshirt.avg_noisy_ifd") >= 1
    assert [word == "filtered" for word in reason] == filtered.tolist()


def test_clean_token_values(recorded: Path, scored: Path) -> None:
    settings = Settings(dtype="float32", max_length=256)
    models = {"proxy": ModelRef(str(recorded.parent / "tiny_gpt2"))}
    store = Store(scored / "store")
    bench = Workbench(load(recorded / "pool.json"), models, settings, store, log=lambda line: None)
    given, alone = (
        store.read(bench.column("proxy", Nll()), bench.render("proxy", view).keys)
        for view in TShirt(compat="official").views()
    )
    for row, reference in enumerate(read(recorded / "token_scores.json")["clean_pmi"]):
        assert len(given[row]) == len(reference) + 1  # the first token has no context when the response stands alone
        np.testing.assert_allclose(given[row][1:] - alone[row], reference, rtol=0, atol=1e-4, err_msg=str(row))
