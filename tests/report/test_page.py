"""The page as a file: what it says, what it carries, and that data stay text."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.shell import cli, ok
from helpers import Lab, some_rows
from instdiff.core import DetailPlot
from instdiff.core.budget import parse_budget
from instdiff.data import load
from instdiff.errors import DataError
from instdiff.methods import IFD, MADS, Longest, Perplexity, ResponseEntropy
from instdiff.reporting import plots, report, score_sections, statistics
from instdiff.reporting.context import ReportContext
from instdiff.reporting.page import cell
from instdiff.reporting.sources import Part, ReportSources
from instdiff.scoring.table import ScoreTable, read_scores
from instdiff.selection.record import record_path
from instdiff.selection.selector import select

from .kit import HOSTILE, column, make_scores, make_table, payload, write_rows


class Page(HTMLParser):
    """The elements and attributes of a page, its text, and its scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.raw = path.read_text(encoding="utf-8")
        self.scripts = re.findall("<script>(.*?)</script>", self.raw, re.DOTALL)
        self.feed(self.raw)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def facts(page: Path) -> Any:
    return json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    make_scores(folder)
    return report(folder / "scores.parquet")


def test_the_facts_are_those_of_the_scores(made: Path) -> None:
    table = read_scores(made.parent / "scores.parquet")
    record = json.loads((made.parent / "selection.json").read_text())
    found = facts(made)["sections"]
    stages = found["funnel"]["facts"]["scores.parquet"]
    assert [s["rows"] for s in stages["stages"]] == [200, 200, 160, 40] and stages["excluded"] == {"filtered": 40}
    assert stages["stages"][3]["tokens"] == record["counts"]["selected_tokens"]
    scored, mask = table["instructdiff"], np.zeros(200, bool)
    mask[record["rows"]] = True
    cut = found["distributions"]["facts"]["instructdiff"]["cut"]
    assert np.isclose(cut, scored.value[mask].min(), rtol=1e-5)
    band = found["delta"]["facts"]["instructdiff"]["band"]
    kept = scored.details["diff_nll"][scored.eligible]
    assert np.allclose(band, [kept.min(), kept.max()])
    math = found["delta"]["facts"]["instructdiff"]["domains"]["math"]
    own = scored.details["diff_entropy"][4::4]
    assert math["rows"] == 49 and np.isclose(math["mean"], own.mean(), atol=1e-4) and math["max"] <= own.max() + 1e-4
    related = found["correlation"]["facts"]
    assert related["copies"] == {"longest: length": "response tokens"}
    at = [related["columns"].index(name) for name in ("random", "response tokens")]
    both = statistics.spearman({"a": table["random"].value, "b": table.n_tokens.astype(float)})
    assert related["spearman"][at[0]][at[1]] == both[0][1]
    assert found["length"]["facts"]["longest"]["rank_correlation"] == 1.0
    overlap = found["overlap"]["facts"]
    assert list(overlap["selections"].values()) == [40, 40, 40] and overlap["jaccard"][0][0] == 1.0
    assert found["coverage"]["facts"]["projection"] == "t-SNE"
    assert len(found["summary"]["text"]) == 2
    page = Page(made)
    spread = found["distributions"]["facts"]
    for name in ("longest", "random"):  # of tens and of parts of one, each to three digits
        assert f"<bdi>{cell(spread[name]['mean'])}</bdi>" in page.raw, name
    assert "Is the score mostly length?" in page.text and "Blue: chosen rows" in page.text
    assert found["summary"]["text"][0].startswith("instructdiff chose 40 of 200 rows, with ")


def test_the_funnel_is_a_part_of_the_page(made: Path) -> None:
    table = read_scores(made.parent / "scores.parquet")
    record = json.loads((made.parent / "selection.json").read_text())
    scored, n = table["instructdiff"], table.n_tokens
    counts = {
        "rows": [200, 200, 160, 40],
        "tokens": [n.sum(), n.sum(), n[scored.eligible].sum(), n[record["rows"]].sum()],
    }
    said = [
        (unit, f"{100 * count / some[0]:.2f}", f"{count:,} {unit}", f"{100 * count / some[0]:.1f} %")
        for stage in zip(*counts.values(), strict=True)
        for (unit, some), count in zip(counts.items(), stage, strict=True)
    ]
    raw = made.read_text(encoding="utf-8")
    bars = raw[raw.index('<figure class="bars">') : raw.index("</figure>")]
    assert re.findall("<dt>(.*?)</dt>", bars) == ["input", "scorable", "eligible", "chosen"]
    bar = r'<i class="(\w+)" style="width: ([\d.]+)%"></i><span>(.*?)</span><span class="soft">(.*?)</span>'
    assert re.findall(bar, bars) == said
    assert raw.count('class="bars"') == 1 and payload(made)["figures"]["funnel"] == []


def test_what_is_not_known_has_no_bar_and_names_stay_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_scores(tmp_path, 30)
    stages = [{"stage": "<i>in</i>\u202e", "rows": 30, "tokens": None}, {"stage": "out", "rows": 6, "tokens": None}]
    monkeypatch.setattr(statistics, "funnel", lambda scored, chosen: stages)
    raw = report(tmp_path).read_text(encoding="utf-8")
    bars = raw[raw.index('<figure class="bars">') : raw.index("</figure>")]
    assert re.findall("<dt>(.*?)</dt>", bars) == ["&lt;i&gt;in&lt;/i&gt;⟨U+202E⟩", "out"]
    assert re.findall("<span>(.*?)</span>", bars) == ["30 rows", "6 rows"]


def test_pictures_have_their_place_before_they_are_drawn(made: Path) -> None:
    raw = made.read_text(encoding="utf-8")
    for section, figures in payload(made)["figures"].items():
        start = raw.index(f'<section id="{section}">')
        heights = re.findall(
            r'class="picture" style="min-height: (\d+)px"', raw[start : raw.index("</section>", start)]
        )
        shown = figures if section == "distributions" else figures[:1]
        assert heights == [str(figure["layout"]["height"]) for _, figure in shown]


def test_every_point_is_in_the_page(made: Path) -> None:
    table = read_scores(made.parent / "scores.parquet")
    body = payload(made)
    traces = body["figures"]["delta"][0][1]["data"]
    rows = np.concatenate([column(made, t["customdata"]) for t in traces if "$" in t["customdata"]])
    small = [row for t in traces if "$" not in t["customdata"] for row in t["customdata"]]
    assert sorted([*rows.tolist(), *small]) == list(range(200))
    rest = next(t for t in traces if t["name"] == "not chosen")
    x = table["instructdiff"].details["diff_nll"][column(made, rest["customdata"])]
    assert np.allclose(column(made, rest["x"]), x, rtol=2e-5)
    assert np.allclose(column(made, body["examples"]["scores"]["random"]), table["random"].value, rtol=2e-5)


def test_data_stay_text_and_only_two_scripts_may_run(made: Path) -> None:
    page = Page(made)
    assert not {"img", "link", "iframe", "object", "embed", "base", "form"} & set(page.elements)
    assert not [n for n, _ in page.attributes if n.startswith("on") or n in ("src", "action")]
    assert all(value and value.startswith("#") for name, value in page.attributes if name == "href")
    assert len(page.scripts) == 1 and page.elements.count("style") == 1
    policy = next(value for _, value in page.attributes if value and "default-src" in value)
    assert "default-src 'none'" in policy and "unsafe-inline'; img" in policy and "connect-src" not in policy
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy and len(re.findall("sha256-", policy)) == 2
    drawing = base64.b64encode(hashlib.sha256(payload(made, "plotly")).digest()).decode()
    assert f"'sha256-{drawing}'" in policy and ("data-library", f"sha256-{drawing}") in page.attributes
    assert "unsafe-inline" not in policy.split("style-src")[0]
    assert not any(ord(c) in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028) for c in page.raw)
    assert all(c in "\n\t" or ord(c) >= 32 for c in page.raw)
    assert "<img" not in page.raw.replace(page.scripts[0], "") and "<b>bold</b>" not in page.raw
    assert "<b>bold</b>" in page.text
    asked, said = payload(made)["examples"]["texts"][0]
    assert asked.startswith("<script>document.title='owned'</script><img src=x") and "⟨U+202E⟩fdp.exe" in asked
    assert "⟨U+2028⟩" in asked and said.endswith("⟨U+2066⟩x⟨U+2069⟩ ⟨U+0007⟩ --><!--")


def test_without_a_selection_the_best_tenth_stands_in(tmp_path: Path) -> None:
    make_scores(tmp_path, 60, selected=False)
    found = facts(report(tmp_path / "scores.parquet"))
    assert found["sections"]["summary"]["facts"]["chosen_rows"] == 6
    assert any("Nothing was selected" in note for note in found["notes"])
    assert "would choose 6 of 60 rows" in found["sections"]["summary"]["text"][0]


def test_without_the_rows_it_says_so(tmp_path: Path) -> None:
    make_scores(tmp_path, 60)
    (tmp_path / "rows.jsonl").unlink()
    page = report(tmp_path)
    assert any("give --data FILE" in note for note in facts(page)["notes"])
    assert "texts" not in payload(page)["examples"] and "coverage" not in facts(page)["sections"]


def test_other_rows_and_other_places_are_refused(tmp_path: Path) -> None:
    make_scores(tmp_path, 20)
    (tmp_path / "other.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 20)
    with pytest.raises(DataError, match="is not the row that was scored"):
        report(tmp_path / "scores.parquet", data=str(tmp_path / "other.jsonl"))
    with pytest.raises(DataError, match="give a run folder, or the score file"):
        report(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is no run folder"):
        report(tmp_path / "empty")


def test_a_comparison_with_its_cells(tmp_path: Path) -> None:
    table = make_scores(tmp_path, 60, selected=False)
    pool = load(str(tmp_path / "rows.jsonl"))
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores.parquet").rename(tmp_path / "scores" / "a1_seed_0.parquet")
    for name in ("instructdiff", "random"):
        place = tmp_path / "cells" / name / "10pct" / "seed_0"
        place.mkdir(parents=True)
        select(pool, table[name], "10%", meta=table.meta).write_record(place / "selection.json")
    some = {"budget": "10%", "suite": "s", "task": "t", "metric": "accuracy", "seeds": 3, "rows": 6, "tokens": 9}
    lines = [
        {"name": name, **some, "value": value, "low": value - 0.1, "high": value + 0.1, "diff": 0.1,
         "verdict": "better"}
        for name, value in (("random", 0.4), ("instructdiff", 0.5))
    ]  # fmt: skip
    (tmp_path / "comparison.json").write_text(
        json.dumps({"lines": [*lines, {"name": "half a line"}], "against": "random"})
    )
    page = report(tmp_path)
    found, told = facts(page)["sections"], facts(page)["verdict"]
    assert told["word"] == "Better than random" and told["sentence"].startswith(
        "instructdiff has a t accuracy of 0.500"
    )
    assert found["summary"]["facts"]["method"] == "instructdiff"
    assert [line["name"] for line in found["comparison"]["facts"]["lines"]] == ["random", "instructdiff", "half a line"]
    assert "instructdiff, 10%, seed 0" in found["overlap"]["facts"]["selections"]
    assert "0.400 to 0.600" in Page(page).text and "instdiff" in Page(page).text
    assert len(found["overlap"]["facts"]["selections"]) == 2


def test_too_few_seeds_are_told_and_have_no_interval(tmp_path: Path) -> None:
    some = {"budget": "10%", "suite": "s", "task": "t", "metric": "accuracy", "higher_is_better": True, "rows": 6}
    told = {"low": 0.4, "high": 0.6, "diff_low": 0.05, "diff_high": 0.2, "seeds": 3}
    few = {"low": None, "high": None, "diff_low": None, "diff_high": None, "seeds": 1}
    lines = [
        {"name": "random", **some, "value": 0.4, "low": 0.3, "high": 0.5, "seeds": 3},
        {"name": "ifd", **some, **told, "value": 0.5, "diff": 0.1, "verdict": "better"},
        {"name": "miwv", **some, **few, "value": 0.9, "diff": 0.5, "verdict": "too few seeds"},
        {"name": "zip", **some, **told, "value": 0.3, "diff": -0.1, "verdict": "not told apart"},
    ]
    (tmp_path / "comparison.json").write_text(json.dumps({"lines": lines, "against": "random"}))
    page = report(tmp_path)
    told = facts(page)["verdict"]
    assert (told["word"], told["line"]) == ("Better than random", "ifd")
    assert told["family"] == (
        "Of 3 selections: 1 better than random: ifd at 10%, 1 not told apart, 1 with too few seeds."
    )
    shown = " ".join(Page(page).text.split())
    assert "too few seeds" in shown and shown.count("0.400 to 0.600") == 2


def test_every_selection_beside_the_scores_is_found(tmp_path: Path) -> None:
    """The newest is the one that the page is about; the others are compared with it."""
    table = make_scores(tmp_path, 60, selected=False)
    pool = load(str(tmp_path / "rows.jsonl"))
    for at, (name, budget) in enumerate((("longest", 6), ("random", 9))):
        path = record_path(tmp_path / f"{name}.jsonl")
        assert path.name == f"{name}.selection.json"
        select(pool, table[name], budget, meta=table.meta).write_record(path)
        os.utime(path, (at + 1, at + 1))
    page = report(tmp_path / "scores.parquet")
    found = facts(page)["sections"]
    assert (found["summary"]["facts"]["method"], found["summary"]["facts"]["chosen_rows"]) == ("random", 9)
    selections = found["overlap"]["facts"]["selections"]
    assert selections["longest"] == 6 and selections["random, scores.parquet"] == 9
    assert facts(page)["notes"] == []


def test_the_selection_or_method_that_is_shown_can_be_named(tmp_path: Path) -> None:
    table = make_scores(tmp_path, 60, selected=False)
    pool = load(str(tmp_path / "rows.jsonl"))
    for at, (name, budget) in enumerate((("longest", 6), ("random", 9))):
        chosen = select(pool, table[name], budget, meta=table.meta)
        chosen.write(tmp_path / f"{name}.jsonl")
        chosen.write_record(tmp_path / f"{name}.selection.json")
        os.utime(tmp_path / f"{name}.selection.json", (at + 1, at + 1))

    def shown(*words: str) -> tuple[str, int]:
        ok("report", tmp_path / "scores.parquet", *words)
        found = facts(tmp_path / "report.html")["sections"]
        return found["summary"]["facts"]["method"], found["summary"]["facts"]["chosen_rows"]

    assert shown() == ("random", 9)
    assert shown("--method", "longest") == ("longest", 6)
    assert shown("--selection", str(tmp_path / "longest.jsonl")) == ("longest", 6)
    assert shown("--selection", str(tmp_path / "longest.selection.json")) == ("longest", 6)
    assert shown("--selection", str(tmp_path / "random.jsonl")) == ("random", 9)
    assert shown("--method", "instructdiff") == ("instructdiff", 6)
    (note,) = facts(tmp_path / "report.html")["notes"]
    assert note.startswith("Nothing was selected from scores.parquet by instructdiff yet: 'chosen' are its best 10%.")
    assert cli("report", tmp_path / "scores.parquet", "--method", "longst").error.startswith(
        "no scores by 'longst' are here; did you mean 'longest'"
    )
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"method": "longest", "budget": "1", "rows": [0], "ids": ["0" * 32]}))
    said = cli("report", tmp_path / "scores.parquet", "--selection", other).error
    assert said == f"the selection '{other}' is not one of these scores"
    said = cli("report", tmp_path / "scores.parquet", "--selection", tmp_path / "rows.jsonl").error
    assert said.startswith("no record of the selection")


@pytest.mark.filterwarnings("error")
def test_a_selection_of_no_rows_has_a_page(tmp_path: Path) -> None:
    make_scores(tmp_path, 60)
    place = tmp_path / "selection.json"
    record = json.loads(place.read_text())
    record = {name: value for name, value in record.items() if name != "crc32"}
    place.write_text(json.dumps(record | {"rows": [], "ids": []}))
    page = report(tmp_path / "scores.parquet")
    assert facts(page)["sections"]["summary"]["facts"]["chosen_rows"] == 0


def test_values_of_tokens_come_from_the_store(lab: Lab, tmp_path: Path) -> None:
    rows = some_rows(12)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pool, store = load(str(tmp_path / "rows.jsonl")), lab.store()
    table = lab.score(pool, [IFD(), Perplexity(), ResponseEntropy()], store=store)
    table.write(tmp_path / "scores.parquet")
    page = report(tmp_path / "scores.parquet")
    told = payload(page)["examples"]["tokens"]
    assert list(told["columns"]) == ["NLL by base", "NLL by base without the prompt", "entropy by base"]
    assert list(told["deltas"]) == ["NLL: what the prompt saves (base)"]
    values, ids = column(page, told["columns"]["NLL by base"]), column(page, told["ids"])
    start = 0
    for row, count in told["rows"]:
        text = "".join(told["words"][i] for i in ids[start : start + count])
        assert text.strip() == rows[row]["output"].strip()
        assert np.isclose(values[start : start + count].mean(), -table["perplexity"].value[row], rtol=2e-3)
        start += count
    cost = facts(page)["sections"]["cost"]["facts"]
    assert cost["passes"] == 2 and cost["passes_alone"] == 4
    used = {line["signal"]: (line["methods"], line["rows"]) for line in cost["signals"]}
    assert (
        used["NLL with the prompt, by base"][0] == ["ifd", "perplexity"]
        and used["entropy with the prompt, by base"][1] == 12
    )


def test_tags_by_category_come_from_the_store(lab: Lab, tmp_path: Path) -> None:
    rows = [{**row, "category": "ab"[at % 2]} for at, row in enumerate(some_rows(24))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pool, store = load(str(tmp_path / "rows.jsonl")), lab.store()
    table = lab.score(pool, [MADS(common=1.0)], store=store)
    table.write(tmp_path / "scores.parquet")
    found = facts(report(tmp_path / "scores.parquet"))["sections"]["tags"]["facts"]
    s, method = table["mads"].signals(), table["mads"].method
    assert isinstance(method, MADS)
    offsets, marks = method.tags(s, np.arange(24))
    neuron = int(found["tags"][0].removeprefix("neuron "))
    has = [neuron in marks[offsets[row] : offsets[row + 1]] for row in range(24)]
    assert found["categories"] == ["a", "b"] and found["column"] == "category"
    assert np.allclose(found["share"][0], [np.mean(has[0::2]), np.mean(has[1::2])])
    own = table["mads"].details["n_tags"][0::2]
    assert np.isclose(found["n_tags"]["a"]["mean"], own.mean(), rtol=1e-4)


def test_the_verb_writes_both_files_and_refuses_what_is_no_run(tmp_path: Path) -> None:
    make_scores(tmp_path, 30)
    page = tmp_path / "shown" / "page.html"
    ran = ok("report", tmp_path / "scores.parquet", "--data", tmp_path / "rows.jsonl", "--output", page)
    assert ran.out.strip() == f"the page is {page}; its facts are {page.with_suffix('.json')}"
    assert facts(page)["kind"] == "scores" and facts(page)["notes"] == []
    assert cli("report", tmp_path / "nothing").error.startswith("there is no ")


def test_pictures_are_functions(tmp_path: Path) -> None:
    table = make_table(100, [f"{row:032x}" for row in range(100)])
    scored = table["instructdiff"]
    bars = plots.distribution(scored)
    assert [sum(bar.y) for bar in bars.data[:2]] == [10, 70]
    low, high = (np.array(trace.y) for trace in bars.data[2:])
    assert (low <= high).all() and low.sum() < 10 < high.sum()
    counts = {"excluded": 20, "not chosen": 70, "chosen": 10}
    assert {t.name: len(t.x) for t in plots.details(scored).data} == counts
    assert sum(len(t.x) for t in plots.details(scored, labels=["a", "b"] * 50).data) == 100
    assert plots.overlap(table).data[0].z[0][0] == 1.0
    assert plots.correlation(table).data[0].x[0] == "response tokens"
    assert len(plots.correlation(table).data[0].x) == 4
    by_chance = plots.matrix(["a", "b"], [[1.0, 0.5], [0.5, 1.0]], usual=[[1.0, 0.1], [0.1, 1.0]]).data[0]
    assert by_chance.text[0][1] == "0.50<br><sub>0.10</sub>"
    assert plots.length_bias(table, name="longest").data[0].name == "not chosen"
    with pytest.raises(DataError, match="name one of instructdiff, longest, random"):
        plots.distribution(table)
    with pytest.raises(DataError, match="longest names no two details to draw"):
        plots.details(table["longest"])


def test_details_and_tags_of_a_method_of_one_s_own(tmp_path: Path) -> None:
    plot = DetailPlot("margins", "Margins", "easy", "hard", ("margin", "gap"), "nats", "What it is.")

    class Own(Longest):
        plots = (plot,)
        tag = "topic"

    pool = write_rows(tmp_path / "rows.jsonl", 30)
    table = make_table(30, pool.ids, str(tmp_path / "rows.jsonl"), pool)
    rng = np.random.default_rng(0)
    own = replace(
        table["longest"], name="own", method=Own(), details={name: rng.normal(size=30) for name in ("easy", "hard")}
    )
    scores = ScoreTable(table.rows, pool.ids, table.n_tokens, table.truncated, {"own": own}, table.meta)
    part = Part("scores", scores, "own", parse_budget("10%"), np.arange(3))
    scene = ReportContext(ReportSources("t", "scores", parts=[part], pool=pool))
    (section,) = score_sections.details(scene)
    assert (section.id, section.title, section.text) == ("margins", "Margins", ["What it is."])
    assert section.facts["own"]["band"] is None and section.facts["own"]["hard"]["rows"] == 30
    assert [label for label, _ in section.figures] == ["own", "own by source", "own: gap per source"]
    figure = section.figures[0][1]
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("margin (nats)", "gap (nats)")


def test_notebooks_show_tables(tmp_path: Path) -> None:
    table = make_scores(tmp_path, 60)
    pool = load(str(tmp_path / "rows.jsonl"))
    html = table._repr_html_()
    assert "instructdiff" in html and "60" in html and "12 filtered" in html
    chosen = select(pool, table["random"], "60")
    shown = chosen._repr_html_()
    assert "60 of 60 rows" in shown and "<img" not in shown and "&lt;b&gt;" not in shown.split("<tbody>")[0]
    assert HOSTILE["instruction"][:8] not in shown
