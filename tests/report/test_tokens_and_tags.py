"""What the page shows of single tokens and of tags is what the store and the scores say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.shell import ok
from helpers import Lab, some_rows
from instdiff.core.budget import parse_budget
from instdiff.data import load
from instdiff.methods import MADS, TShirt
from instdiff.reporting import plots, report, statistics, stored_values

from .kit import column, payload

ROWS = 24


def facts(page: Path) -> Any:
    return json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))


def scored(lab: Lab, folder: Path, *methods: Any, category: bool = True) -> Any:
    rows = [{**row, **({"category": "ab"[at % 2]} if category else {})} for at, row in enumerate(some_rows(ROWS))]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = lab.score(load(str(folder / "rows.jsonl")), methods, store=lab.store())
    table.write(folder / "scores.parquet")
    return table


# ── tokens ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_informative_tokens(lab: Lab, tmp_path: Path) -> None:
    table = scored(lab, tmp_path, TShirt(k=40.0, draws=2, min_response_tokens=1))
    page = report(tmp_path / "scores.parquet")
    found = facts(page)["sections"]["informative"]["facts"]["tshirt"]
    s, own = table["tshirt"].signals(), table["tshirt"]
    sizes = [np.abs(s.given[row] - s.alone[row]) for row in range(ROWS)]
    every, least = np.concatenate(sizes), own.details["least"][0]
    assert found["least"] == pytest.approx(least) and found["all"]["tokens"] == len(every)
    assert found["all"]["informative"] == pytest.approx(np.mean(every >= least))
    assert found["all"]["near_zero"] == pytest.approx(np.mean(every <= 0.01))
    top = parse_budget("10%").take(own.best(), own)  # nothing is selected yet
    mine = np.concatenate([sizes[row] for row in top])
    assert found["chosen"]["tokens"] == len(mine) == sum(found["histogram"]["chosen"])
    assert found["chosen"]["informative"] == pytest.approx(np.mean(mine >= least))
    assert sum(found["histogram"]["all"]) == len(every)
    told = payload(page)["examples"]["tokens"]
    marks, start = column(page, told["columns"]["tshirt informative"]), 0
    for row, count in told["rows"]:
        assert marks[start : start + count].tolist() == (sizes[row] >= least).astype(float).tolist()
        assert marks[start : start + count].mean() == pytest.approx(own.details["informative"][row])
        start += count


def test_without_the_store_tokens_are_not_known(lab: Lab, tmp_path: Path) -> None:
    table = scored(lab, tmp_path, TShirt(draws=2, min_response_tokens=1), MADS(common=1.0))
    shutil.rmtree(Path(table.meta["store"]) / "columns")
    found = facts(report(tmp_path / "scores.parquet"))["sections"]
    for name, said in (("informative", "tshirt: tokens are not known"), ("tags", "Which tags a row has is not known")):
        assert found[name]["notes"][0].startswith(said) and "run `instdiff score` again" in found[name]["notes"][0]
    assert found["informative"]["facts"] == {} and "shared" not in found["tags"]["facts"]


def test_sizes_on_a_logarithmic_axis() -> None:
    sizes, chosen = np.array([0.0, 1e-5, 0.01, 0.5, 0.5, 2.0]), np.array([1, 0, 0, 1, 0, 1], bool)
    found = statistics.log_histogram(sizes, chosen)
    assert found["edges"][0] == -4 and found["edges"][-1] == pytest.approx(np.log10(2))
    assert found["all"][0] == 2 and found["chosen"][0] == 1 and found["all"][-1] == found["chosen"][-1] == 1
    assert (sum(found["all"]), sum(found["chosen"])) == (6, 3)
    figure = plots.token_sizes(found, 0.1)
    assert [sum(bar.y) for bar in figure.data] == [3, 3] and figure.layout.shapes[0].x0 == pytest.approx(-1)
    assert not plots.token_sizes(found, 0.0).layout.shapes  # every token


# ── tags ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_tags_of_categories_and_their_tail(lab: Lab, tmp_path: Path) -> None:
    table = scored(lab, tmp_path, MADS(common=1.0, quantile=0.8))
    page = report(tmp_path / "scores.parquet")
    found = facts(page)["sections"]["tags"]["facts"]
    s, method = table["mads"].signals(), table["mads"].method
    assert isinstance(method, MADS)
    offsets, marks = method.tags(s, np.arange(ROWS))
    sets = [set(marks[offsets[row] : offsets[row + 1]].tolist()) for row in range(ROWS)]
    count = sorted((sum(tag in one for one in sets) for tag in set().union(*sets)), reverse=True)
    assert found["frequency"] == count and found["categories"] == ["a", "b"]
    for i, first in enumerate((range(0, ROWS, 2), range(1, ROWS, 2))):
        for j, second in enumerate((range(0, ROWS, 2), range(1, ROWS, 2))):
            pairs = [len(sets[a] & sets[b]) for a in first for b in second if a != b]
            assert found["shared"][i][j] == pytest.approx(np.mean(pairs), rel=1e-5)
    assert [label for label, _ in payload(page)["figures"]["tags"]] == [
        "tags",
        "shared tags",
        "frequency",
        "tags per row",
    ]


def test_tags_without_categories(lab: Lab, tmp_path: Path) -> None:
    scored(lab, tmp_path, MADS(common=1.0), category=False)
    page = report(tmp_path / "scores.parquet")
    found = facts(page)["sections"]["tags"]
    assert found["title"] == "Neuron tags" and found["facts"]["categories"] == ["all rows"]
    assert [label for label, _ in payload(page)["figures"]["tags"]] == ["frequency"]


TOPICS = """
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from instdiff.methods import Longest


@dataclass(frozen=True)
class Topics(Longest):
    name: ClassVar[str] = "topics"
    tag: ClassVar[str] = "topic"

    def tags(self, s, rows):
        return np.arange(len(rows) + 1), (s.response[rows] % 3).astype(np.int32)
"""


def test_a_method_of_one_s_own_declares_its_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{**row, "category": "ab"[at % 2]} for at, row in enumerate(some_rows(ROWS))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text(TOPICS)
    ok("score", "--data", "rows.jsonl", "--method", "./mine.py:Topics", "--store", "st", "--output", "scores.parquet")
    ok("report", "scores.parquet", "--store", "st")
    assert "tags" not in facts(tmp_path / "report.html")["sections"]  # a file that nobody names is not run
    ok("report", "scores.parquet", "--store", "st", "--method", "./mine.py:Topics")
    found = facts(tmp_path / "report.html")["sections"]["tags"]
    length = [len(row["output"]) for row in rows]
    assert found["title"] == "Topic tags by category" and set(found["facts"]["tags"]) <= {
        "topic 0",
        "topic 1",
        "topic 2",
    }
    assert sum(found["facts"]["frequency"]) == len(length) and found["facts"]["n_tags"]["a"]["mean"] == 1.0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sets(st.integers(0, 5))), min_size=1, max_size=7))
def test_shared_tags_are_means_over_pairs(rows: list[tuple[str, set[int]]]) -> None:
    kinds = sorted({kind for kind, _ in rows})
    counts = np.array([[sum(tag in own for k, own in rows if k == kind) for kind in kinds] for tag in range(6)], float)
    sizes = np.array([sum(k == kind for k, _ in rows) for kind in kinds], float)
    shared = stored_values._shared(counts, sizes)
    for i, a in enumerate(kinds):
        for j, b in enumerate(kinds):
            pairs = [
                len(x & y)
                for m, (k, x) in enumerate(rows)
                for n, (other, y) in enumerate(rows)
                if (k, other) == (a, b) and m != n
            ]
            assert np.isnan(shared[i, j]) if not pairs else shared[i, j] == pytest.approx(np.mean(pairs))


def test_a_tail_has_few_points_and_all_ends() -> None:
    few = plots.tail([5, 3, 3, 1]).data[0]
    assert (list(few.x), list(few.y)) == ([1, 2, 3, 4], [5, 3, 3, 1])
    count = np.arange(20_000, 0, -1)
    many = plots.tail(count.tolist(), "neuron")
    assert len(many.data[0].x) <= plots.TAIL and many.data[0].y[0] == 20_000 and many.data[0].y[-1] == 1
    assert (many.layout.xaxis.type, many.layout.yaxis.type) == ("log", "log")
    assert len(plots.tail([]).data[0].x) == 0
