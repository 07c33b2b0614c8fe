"""What comes back to other libraries, and how it shows itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import instdiff
from instdiff.errors import ConfigError, DataError

from .test_taken import ROWS, TINY

POOL = instdiff.load([{**row, "domain": "even" if n % 2 == 0 else "odd"} for n, row in enumerate(ROWS)])


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> instdiff.ScoreTable:
    return instdiff.score(POOL, ["ifd", "longest"], **TINY, store=tmp_path_factory.mktemp("st"))


def test_a_selection_is_a_frame_and_a_data_set(scores: instdiff.ScoreTable) -> None:
    pytest.importorskip("pandas", reason="pandas is missing")
    pytest.importorskip("datasets", reason="datasets is missing")
    subset = instdiff.select(POOL, scores["ifd"], 4)
    own = POOL.source_rows(subset.at)
    assert subset.to_pandas().to_dict("records") == own == subset.to_dataset().to_list() == subset.head(9)
    scored = subset.to_pandas(with_scores=True)
    assert scored["ifd"].tolist() == scores["ifd"].value[subset.at].tolist()
    assert instdiff.load(subset).ids == subset.ids == list(subset.to_pool().ids)


def test_scores_are_a_frame(scores: instdiff.ScoreTable) -> None:
    pytest.importorskip("pandas", reason="pandas is missing")
    frame, whole = scores["ifd"].to_pandas(), scores.to_pandas()
    for name in frame.columns:
        assert frame[name].tolist() == pytest.approx(whole[name].tolist(), nan_ok=True) or name.endswith(("id", "why"))
    assert frame["id"].tolist() == whole["id"].tolist() and len(frame) == len(POOL)
    assert scores.head(2) == scores.to_arrow().to_pylist()[:2] and scores["ifd"].head(1)[0]["id"] == POOL.ids[0]


def test_rows_that_no_data_set_holds() -> None:
    pytest.importorskip("datasets", reason="datasets is missing")
    with pytest.raises(DataError, match="write them with to_jsonl"):
        instdiff.load([{**ROWS[0], "x": 1}, {**ROWS[1], "x": {"a": 1}}]).to_dataset()


def test_an_export_says_model_and_template(scores: instdiff.ScoreTable, tmp_path: Path) -> None:
    subset = instdiff.select(POOL, scores["ifd"], 4)
    done = subset.export("trl", tmp_path / "trl")
    assert done.rows == 4 and done.extra["config"]["max_length"] == 128
    assert done.extra["config"]["model_name_or_path"].endswith("tiny")
    again = instdiff.export(subset, "trl", tmp_path / "other", name="ifd")
    assert [file.read_text() for file in again.files[:1]] == [file.read_text() for file in done.files[:1]]


def test_the_record_says_what_the_scores_came_from(scores: instdiff.ScoreTable) -> None:
    record = instdiff.select(POOL, scores["ifd"], 4).record()
    assert record["models"]["base"]["where"] == "builtin:tiny" and record["settings"]["max_length"] == 128


def test_a_table_of_several_methods_is_no_ranking(scores: instdiff.ScoreTable) -> None:
    with pytest.raises(ConfigError, match=r"of several methods; give one, as scores\['ifd'\]"):
        instdiff.select(POOL, scores)


def test_comparing_with_itself_and_with_random(scores: instdiff.ScoreTable) -> None:
    subset = instdiff.select(POOL, scores["ifd"], 4)
    same = subset.compare(subset)
    assert same.rows == (4, 4) and same.shared == 4 and same.lengths[0] == same.lengths[1]
    assert same.covered[0] == same.covered[1] and same.by_chance == pytest.approx(16 / 12)
    assert same.by == "domain" and {name: count for name, count, _, _ in same.sources} == {"even": 6, "odd": 6}
    random = subset.compare("random", seed=1)
    assert random.rows == (4, 4) and 0 < random.covered[0] < 1
    assert random.unit == "response tokens" and random == subset.compare(seed=1)
    with pytest.raises(DataError, match="has a column 'domian'; did you mean 'domain'"):
        subset.compare(by="domian")
    with pytest.raises(ConfigError, match="another selection of the same pool"):
        subset.compare(instdiff.select(ROWS[:6], instdiff.score(ROWS[:6], "longest"), 2))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(0, 99), st.booleans())
def test_what_is_shared_is_counted(size: int, seed: int, tokens: bool) -> None:
    scored = instdiff.score(POOL, "longest", **TINY)["longest"] if tokens else RANDOM
    subset = instdiff.select(POOL, scored, size)
    found = subset.compare("random", seed=seed)
    assert found.rows == (size, size) and max(0, 2 * size - 12) <= found.shared <= size
    assert sum(row[2] for row in found.sources) == size and sum(row[1] for row in found.sources) == 12


RANDOM = instdiff.score(POOL, "random")["random"]


def test_everything_shows_itself_in_a_few_lines(scores: instdiff.ScoreTable, tmp_path: Path) -> None:
    subset = instdiff.select(POOL, scores["ifd"], 4)
    task = instdiff.TaskResult("gsm8k", "accuracy", ["a", "b"], np.array([0.0, 1.0]))
    shown: dict[str, Any] = {
        "<Pool of 12 rows": POOL,
        "<ScoreTable of 12 rows: ifd (": scores,
        "<Scored by ifd: ": scores["ifd"],
        "<Selection: 4 of 12 rows (33.3 %), ": subset,
        "<Bill: ": instdiff.plan(POOL, "ifd", **TINY, store=tmp_path),
        "<ifd within 4 beside random rows: 4 and 4 rows": subset.compare(),
        "<Exported 4 rows": subset.export("trl", tmp_path / "trl"),
        "<Store in ": instdiff.Store(tmp_path),
        "<SuiteResult math of m: gsm8k accuracy 0.5>": instdiff.SuiteResult("math", "m", (task,)),
        "<TaskResult gsm8k: accuracy 0.5 on 2 items>": task,
        "<Scores of 1 rows, 1 with a value>": instdiff.Scores([1.0]),
        "<Ragged of 2 rows, 3 values, int64>": instdiff.Ragged.of([[1], [2, 3]], np.int64),
    }
    for begin, one in shown.items():
        text = repr(one)
        assert text.startswith(begin) and len(text.splitlines()) <= 5 and len(text) < 600, text
        if "Ragged" not in begin:
            assert one._repr_html_().startswith("<p") and "object at 0x" not in one._repr_html_()


def test_a_notebook_gets_text_not_markup() -> None:
    pool = instdiff.load([{"instruction": "<script>alert(1)</script>", "output": "<b>"}])
    html = pool._repr_html_()
    assert "<script" not in html and "&lt;script&gt;" in html and "<b>" not in html


def test_a_plot_counts_all_rows(scores: instdiff.ScoreTable) -> None:
    pytest.importorskip("plotly", reason="plotly is missing")
    figure = scores.plot("longest", budget=4)
    counts = {bars.name: int(sum(bars.y)) for bars in figure.data}
    assert counts == {"other rows": 8, "within 4": 4} and len(scores.plot().data) == 4
    with pytest.raises(DataError, match="no method 'idf'"):
        scores.plot("idf")


def test_training_and_judging_by_keywords(scores: instdiff.ScoreTable, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="trl is missing")
    subset = instdiff.select(POOL, scores["ifd"], 4)
    how: dict[str, Any] = {"num_train_epochs": 1, "global_batch_size": 4, "learning_rate": 1e-3}
    model = instdiff.train(
        subset, "builtin:tiny", tmp_path / "m", template="plain", store=tmp_path / "st", max_length=64, **how
    )
    facts = json.loads((tmp_path / "m" / "training.json").read_text())
    assert facts["rows"] == 4 and facts["settings"]["model_max_length"] == 64 and facts["seed"] == 42
    (found,) = instdiff.evaluate(model, suite="heldout", data=ROWS[:6], template="plain", store=tmp_path / "st")
    assert found["heldout"].ids and found.value > 0
    with pytest.raises(DataError, match="no task 'gsm8k'"):
        found["gsm8k"]
    with pytest.raises(ConfigError, match="unknown training key 'learning_rat'; did you mean 'learning_rate'"):
        instdiff.train(subset, "builtin:tiny", tmp_path / "n", learning_rat=1e-3)
    kept = list((tmp_path / "st" / "given").glob("*.jsonl"))
    assert len(kept) == 1 and [json.loads(line) for line in kept[0].read_text().splitlines()] == ROWS[:6]
