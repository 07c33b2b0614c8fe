"""Numbers and selections of the published implementations, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cli.shell import ok
from instdiff.core import Nll, Settings
from instdiff.data import load
from instdiff.methods import IFD
from instdiff.scoring.scorer import ModelRef, Workbench, score
from instdiff.store import Store

pytestmark = pytest.mark.shared_data


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    return shared / "golden"


def instdiff(*arguments: object, store: Path) -> str:
    """The command with a store of its own; what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INSTDIFF_STORE", str(store))
        return ok(*arguments).out


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def column(table: Any, name: str) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in table[name].to_pylist()], float)


FIRST = ["row", "id", "n_tokens", "truncated"]


# ── InstructDiff ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def instructdiff(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("instructdiff")
    instdiff(
        *("score", "--data", golden / "instructdiff" / "pool.jsonl", "--method", "instructdiff"),
        *("--model", f"base={golden / 'tiny_llama'}"),
        *("--model", f"calibrated={golden / 'instructdiff' / 'tiny_llama_calibrated'}"),
        *("--set", "instructdiff.compat=official", "--dtype", "float32", "--output", home / "scores.parquet"),
        store=home / "store",
    )
    return home


def test_instructdiff_numbers(golden: Path, instructdiff: Path) -> None:
    table = pq.read_table(instructdiff / "scores.parquet")
    published = lines(golden / "instructdiff" / "scored.jsonl")
    names = ["base_nll", "base_entropy", "calibrated_nll", "calibrated_entropy", "diff_nll", "diff_entropy"]
    assert table.column_names == [
        *FIRST,
        "instructdiff",
        "instructdiff.why",
        *(f"instructdiff.{name}" for name in names),
    ]
    assert table["row"].to_pylist() == list(range(39))
    assert table["n_tokens"].to_pylist() == [row["n_tokens"] for row in published]
    for ours in names:
        theirs = ours.replace("calibrated", "instruct").replace("_entropy", "_avg_entropy")
        theirs = "diff_entropy" if ours == "diff_entropy" else theirs
        reference = np.array([row[theirs] for row in published])
        np.testing.assert_allclose(column(table, f"instructdiff.{ours}"), reference, rtol=0, atol=1e-4, err_msg=ours)
    reason = table["instructdiff.why"].to_pylist()
    assert (reason.count("filtered"), reason.count(None)) == (2 * int(39 * 0.1), 39 - 2 * int(39 * 0.1))
    kept = np.array([word is None for word in reason])
    value = column(table, "instructdiff")
    np.testing.assert_array_equal(np.isfinite(value), kept)
    np.testing.assert_allclose(value[kept], -column(table, "instructdiff.diff_entropy")[kept], rtol=0, atol=0)


@pytest.mark.parametrize("share", ["0.1", "0.3"])
def test_instructdiff_selection(golden: Path, instructdiff: Path, share: str) -> None:
    out = instructdiff / f"selected_{share}.jsonl"
    instdiff(
        *("select", "--data", golden / "instructdiff" / "pool.jsonl", "--scores", instructdiff / "scores.parquet"),
        *("--method", "instructdiff", "--budget", f"{100 * float(share):g}% tokens", "--output", out),
        store=instructdiff / "store",
    )
    assert lines(out) == lines(golden / "instructdiff" / f"selected_{share}.jsonl")


# ── Cherry ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def cherry(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("cherry")
    instdiff(
        *("score", "--data", golden / "data_alpaca.json", "--model", f"base={golden / 'tiny_llama'}"),
        *("--method", "ifd", "--set", "ifd.compat=official", "--set", "ifd.ratio=loss", "--max-length", "256"),
        *("--dtype", "float32", "--output", home / "scores.parquet"),
        store=home / "store",
    )
    return home


def test_cherry_numbers(golden: Path, cherry: Path) -> None:
    table = pq.read_table(cherry / "scores.parquet")
    published = json.loads((golden / "cherry" / "scored_vic.json").read_text(encoding="utf-8"))
    reference = np.array([row.get("ifd_score", np.nan) for row in published], float)
    assert table.column_names == [*FIRST, "ifd", "ifd.why", "ifd.ifd", "ifd.nll_given", "ifd.nll_alone"]
    assert np.flatnonzero(np.isnan(reference)).tolist() == [6, 8]
    assert [row for row, value in enumerate(table["ifd.ifd"].to_pylist()) if value is None] == [6, 8]
    np.testing.assert_allclose(column(table, "ifd.ifd"), reference, rtol=0, atol=1e-5)
    reason = table["ifd.why"].to_pylist()
    assert (reason[6], reason[8]) == ("empty_response", "too_long")
    assert [word == "filtered" for word in reason] == [value > 1 for value in reference]
    np.testing.assert_allclose(column(table, "ifd"), np.where(reference > 1, np.nan, reference), rtol=0, atol=1e-5)


def test_cherry_selection(golden: Path, cherry: Path) -> None:
    out = cherry / "selected.json"
    instdiff(
        *("select", "--data", golden / "data_alpaca.json", "--scores", cherry / "scores.parquet", "--method", "ifd"),
        *("--budget", "25% eligible", "--order", "input", "--output", out),
        store=cherry / "store",
    )
    published = json.loads((golden / "cherry" / "sel.json").read_text(encoding="utf-8"))
    assert json.loads(out.read_text(encoding="utf-8")) == published
    record = json.loads((cherry / "selected.selection.json").read_text(encoding="utf-8"))
    assert (record["counts"]["eligible_rows"], record["counts"]["selected_rows"]) == (24, 6)


def test_cherry_token_losses(golden: Path, cherry: Path) -> None:
    """Per-token values, read back from the store that the command filled.

    The published lists hold every token of the text but the first; the response is their end.
    """
    method = IFD(compat="official", ratio="loss")
    models = {"base": ModelRef(str(golden / "tiny_llama"))}
    store = Store(cherry / "store")
    settings = Settings(dtype="float32", max_length=256)
    pool = load(golden / "data_alpaca.json")
    bench = Workbench(pool, models, settings, store, log=lambda line: None)
    published = json.loads((golden / "cherry" / "token_losses.json").read_text(encoding="utf-8"))
    for place, view in ((2, method.views()[0]), (1, method.views()[1])):
        rendered = bench.render("base", view)
        values = store.read(bench.column("base", Nll()), rendered.keys)
        for row in sorted(set(range(40)) - {6, 8}):
            reference = published[row]["token_loss"][place]
            assert len(rendered.rows.ids[row]) == len(reference) + 1
            assert 0 < len(values[row]) < len(reference)
            tail = reference[-len(values[row]) :]
            np.testing.assert_allclose(values[row], tail, rtol=0, atol=1e-5, err_msg=f"{row}, {place}")
    again = score(pool, [method], models, settings=settings, store=store)  # from the same store, nothing new
    assert again["ifd"].eligible.sum() == 24


# ── Superfiltering ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def superfiltering(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("superfiltering")
    instdiff(
        *("score", "--data", golden / "data_alpaca.json", "--model", f"proxy={golden / 'tiny_gpt2'}"),
        *("--method", "superfiltering", "--set", "superfiltering.compat=official", "--max-length", "256"),
        *("--dtype", "float32", "--output", home / "scores.parquet"),
        store=home / "store",
    )
    return home


def test_superfiltering_numbers(golden: Path, superfiltering: Path) -> None:
    table = pq.read_table(superfiltering / "scores.parquet")
    published = json.loads((golden / "superfiltering" / "data_scored.json").read_text(encoding="utf-8"))
    details = ["superfiltering.ifd", "superfiltering.nll_given", "superfiltering.nll_alone"]
    assert table.column_names == [*FIRST, "superfiltering", "superfiltering.why", *details]
    nothing = [row for row, value in enumerate(published) if not np.isfinite(float(value["ifd_ppl"]))]
    assert nothing == [6]
    for name, key in (("ifd", "ifd_ppl"), ("nll_given", "ppl_A_condition"), ("nll_alone", "ppl_A_direct")):
        ours = column(table, f"superfiltering.{name}")
        assert np.flatnonzero(np.isnan(ours)).tolist() == [6]
        reference = np.array([float(row[key]) for row in published])
        reference = reference if name == "ifd" else np.log(reference)
        kept = np.arange(40) != 6
        np.testing.assert_allclose(ours[kept], reference[kept], rtol=1e-5, err_msg=name)
    loss = lines(golden / "superfiltering" / "scores.jsonl")
    for row in set(range(40)) - {6}:
        ours = [table[f"superfiltering.{name}"][row].as_py() for name in ("nll_alone", "nll_given")]
        np.testing.assert_allclose(ours, loss[row]["loss"][1::2], rtol=1e-5)


def test_superfiltering_selection(golden: Path, superfiltering: Path) -> None:
    out = superfiltering / "selected.jsonl"
    instdiff(
        *("select", "--data", golden / "data_alpaca.json", "--scores", superfiltering / "scores.parquet"),
        *("--method", "superfiltering", "--budget", "10", "--output", out),
        store=superfiltering / "store",
    )
    published = json.loads((golden / "superfiltering" / "selected.json").read_text(encoding="utf-8"))["rows"]
    rows = json.loads((golden / "data_alpaca.json").read_text(encoding="utf-8"))
    record = json.loads((superfiltering / "selected.selection.json").read_text(encoding="utf-8"))
    assert record["rows"] == published
    assert lines(out) == [rows[row] for row in published]
