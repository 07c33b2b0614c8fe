"""The page in headless Chromium: it asks for nothing, complains of nothing, and does what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.shell import ok
from helpers import Lab, some_rows
from instdiff.data import load
from instdiff.methods import IFD, Longest
from instdiff.reporting import report
from instdiff.scoring.table import read_scores
from instdiff.selection.selector import select

from .kit import make_scores, make_table, opened

SORTED = "[...document.querySelectorAll('#rows tbody tr.row')].map(r => [...r.cells].map(c => c.textContent))"


def cells(tab: Any) -> list[list[str]]:
    """The rows of the table as they stand."""
    found: list[list[str]] = tab.evaluate(SORTED)
    return found


def scroll(tab: Any) -> None:
    """Past every picture, so that each is drawn."""
    height = tab.evaluate("document.body.scrollHeight")
    for top in range(0, height, 700):
        tab.evaluate(f"window.scrollTo({{top: {top}, behavior: 'instant'}})")
        tab.wait_for_timeout(60)
    tab.wait_for_function(
        "[...document.querySelectorAll('.figures .card > div:not(.tabs):not(.peek)')]"
        ".every(b => b.querySelector('.main-svg') || b.getBoundingClientRect().bottom < 0)"
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    make_scores(folder)
    return report(folder)


def test_sorting_searching_and_filtering(page: Path) -> None:
    table = read_scores(page.parent / "scores.parquet")
    with opened(page) as tab:
        tab.select_option("#show", "")
        assert tab.text_content("#count") == "200 of 200 rows"
        heads = tab.locator("#rows thead button")
        heads.filter(has_text="random").click()
        values = [float(row[-1]) for row in cells(tab)]
        assert len(values) == 25 and values == sorted(values, reverse=True)
        assert np.isclose(values[0], table["random"].value.max(), rtol=1e-2)
        heads.filter(has_text="random").click()
        assert np.isclose(float(cells(tab)[0][-1]), table["random"].value.min(), rtol=1e-2)
        heads.filter(has_text="instructdiff").click()
        assert cells(tab)[0][1] == "chosen"
        tab.select_option("#show", "chosen")
        assert tab.text_content("#count") == "40 of 200 rows" and {row[1] for row in cells(tab)} == {"chosen"}
        tab.click("#after")
        assert tab.text_content("#page") == "page 2 of 2" and len(cells(tab)) == 15
        tab.select_option("#show", "borderline")
        assert {row[1] for row in cells(tab)} == {"chosen", "not chosen"}
        tab.select_option("#show", "")
        tab.select_option("#group", "code")
        assert {row[3] for row in cells(tab)} == {"code"}
        tab.select_option("#group", "")
        tab.fill("#find", "fdp.EXE")
        assert tab.text_content("#count") == "3 of 200 rows"
        tab.fill("#find", "117")
        assert [row[0] for row in cells(tab)] == ["117"]


def test_hostile_rows_stay_text(page: Path) -> None:
    with opened(page) as tab:
        tab.select_option("#show", "")
        tab.fill("#find", "fdp.exe")
        tab.locator("#rows tr.row").first.click()
        whole = tab.text_content("#rows td.whole")
        assert "<img src=x onerror=document.title='owned'> ⟨U+202E⟩fdp.exe" in whole
        assert "<style>*{display:none}</style>" in whole and "⟨U+2066⟩x⟨U+2069⟩ ⟨U+0007⟩" in whole
        scroll(tab)
        assert tab.title() == "No outcome yet: instructdiff on rows.jsonl: 40 of 200 rows"
        assert tab.locator("main img, main a:not([href^='#']), #rows b, #rows script, #rows style").count() == 0
        drawn = tab.evaluate("document.querySelector('#delta .figures').textContent")
        assert "chosen" in drawn


def test_dark_and_light_and_every_picture(page: Path) -> None:
    with opened(page, "dark") as tab:
        scroll(tab)
        paper = "getComputedStyle(document.body).backgroundColor"
        assert tab.evaluate(paper) == "rgb(17, 21, 27)"
        tab.click("#theme")
        assert tab.evaluate(paper) == "rgb(251, 251, 250)"
        for button in tab.locator(".tabs button").all():
            button.click()
            assert button.get_attribute("aria-pressed") == "true"


BUTTONS = {
    "Download plot as a PNG", "Download plot as a png", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes", "Reset",
    "Toggle Spike Lines", "Show closest data on hover", "Compare data on hover",
}  # fmt: skip


def test_no_button_sends_anything(page: Path) -> None:
    """Tool bars hold known buttons alone; none of them opens a window or asks for anything."""
    with opened(page) as tab:
        scroll(tab)
        titles = tab.evaluate("[...new Set([...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title))]")
        assert titles and set(titles) <= BUTTONS
        windows: list[Any] = []
        asked: list[str] = []
        tab.context.on("page", lambda one: windows.append(one))
        tab.on("request", lambda request: asked.append(request.url))
        sent = "document.querySelectorAll('.modebar-btn').forEach(b => b.dataset.title.startsWith('Down') || b.click())"
        tab.evaluate(sent)
        tab.wait_for_timeout(300)
        assert not windows and not [url for url in asked if not url.startswith(("blob:", "data:", "file:"))]


def test_the_funnel_needs_no_script(page: Path) -> None:
    table = read_scores(page.parent / "scores.parquet")
    with opened(page, scripts=False) as tab:
        bars = tab.locator("#funnel .bars dd")
        assert [bar.inner_text().split("\n")[0] for bar in bars.all()][::2] == [
            "200 rows",
            "200 rows",
            "160 rows",
            "40 rows",
        ]
        widths = [bar.bounding_box()["width"] for bar in tab.locator("#funnel .bars i.rows").all()]
        assert np.allclose(np.array(widths) / widths[0], [1, 1, 0.8, 0.2], atol=0.01)
        assert bars.nth(1).inner_text().startswith(f"{table.n_tokens.sum():,} tokens")
        assert not any(place.is_visible() for place in tab.locator(".figures").all())  # nothing waits for ever


def test_rows_and_funnel_do_not_wait_for_the_library(page: Path) -> None:
    with opened(page) as tab:
        times = tab.evaluate("performance.getEntriesByType('mark').map(m => [m.name, m.startTime])")
        assert [name for name, _ in times] == ["unpacked", "rows", "library"]
        scroll(tab)
        assert tab.locator(".picture:empty").count() == 0
    text = page.read_text(encoding="utf-8")
    start = text.index('id="payload-plotly">') + len('id="payload-plotly">')
    without = page.with_name("without.html")
    without.write_text(text[:start] + text[text.index("</script>", start) :], encoding="utf-8")
    with opened(without, ready="#rows tbody tr.row", complaints=1) as tab:  # of the library, which is not there
        assert tab.text_content("#count") == "40 of 200 rows"
        tab.select_option("#show", "")
        tab.fill("#find", "fdp.EXE")
        assert tab.text_content("#count") == "3 of 200 rows"
        assert tab.locator("#funnel .bars dd").first.is_visible()
        assert tab.locator(".main-svg").count() == 0


def test_a_point_tells_its_row_and_the_rows_most_like_it(page: Path) -> None:
    with opened(page) as tab:
        tab.locator("#coverage .card").scroll_into_view_if_needed()
        tab.wait_for_selector("#coverage .main-svg")
        tab.wait_for_function("document.querySelector('#coverage .js-plotly-plot')")
        tab.evaluate(
            "document.querySelector('#coverage .js-plotly-plot').emit('plotly_hover', {points: [{customdata: 10}]})"
        )
        said = tab.text_content("#coverage .peek")
        assert said.startswith("Row 10, ") and said.count("most like it: row ") == 3


def test_tokens_are_coloured_by_what_a_model_said(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some_rows(10)))
    pool = load(str(tmp_path / "rows.jsonl"))
    table = lab.score(pool, [IFD(), Longest()], store=lab.store())
    table.write(tmp_path / "scores.parquet")
    select(pool, table["longest"], "3", meta=table.meta).write_record(tmp_path / "selection.json")
    with opened(report(tmp_path)) as tab:
        tab.select_option("#show", "chosen")
        tab.locator("#rows tr.row").first.click()
        spans = tab.locator("#rows .said span")
        row = int(cells(tab)[0][0])
        assert spans.count() == int(table.n_tokens[row])
        assert tab.evaluate("document.querySelector('#rows .said span').title").startswith("NLL by base: ")
        assert tab.evaluate(
            "[...document.querySelectorAll('#rows .said span')].some(s => s.style.background.startsWith('rgba'))"
        )
        tab.select_option("#rows select", "NLL: what the prompt saves (base)")
        assert "what the prompt saves" in tab.evaluate("document.querySelector('#rows .said span').title")
        tab.select_option("#rows select", "")
        assert spans.count() == 0


def test_fifty_thousand_rows_open(tmp_path: Path) -> None:
    count = 50_000
    make_table(count, [f"{row:032x}" for row in range(count)], str(tmp_path / "rows.jsonl")).write(
        tmp_path / "scores.parquet"
    )
    page = report(tmp_path / "scores.parquet")
    assert page.stat().st_size < 15_000_000
    with opened(page) as tab:
        tab.select_option("#show", "")
        assert tab.text_content("#count") == "2,000 of 2,000 rows"
        tab.locator("#delta .card").scroll_into_view_if_needed()
        tab.wait_for_selector("#delta .gl-canvas, #delta .main-svg")
        assert "WebGL is not supported" not in tab.text_content("#delta")
        points = "document.querySelector('#delta .js-plotly-plot').data.reduce((n, t) => n + t.x.length, 0)"
        tab.wait_for_function("document.querySelector('#delta .js-plotly-plot')?.data?.length === 3")
        assert tab.evaluate(points) == count or not tab.evaluate(
            "Boolean(document.createElement('canvas').getContext('webgl'))"
        )
        table = read_scores(tmp_path / "scores.parquet")
        heads = tab.locator("#rows thead button")
        heads.filter(has_text="random").click()
        assert np.isclose(float(cells(tab)[0][-1]), table["random"].value.max(), rtol=1e-2)
        tab.select_option("#show", "chosen")
        assert {row[1] for row in cells(tab)} == {"chosen"}
        tab.select_option("#show", "")
        best = str(int(np.argmax(table["random"].value)))  # the ends of every score are among the rows shown
        tab.fill("#find", best)
        assert [row[0] for row in cells(tab)] == [best]


@pytest.mark.slow
def test_fifty_thousand_rows_with_their_texts(tmp_path: Path) -> None:
    make_scores(tmp_path, 50_000, hostile=2000)  # some of them are among the rows shown
    page = report(tmp_path)
    assert page.stat().st_size < 15_000_000
    table = read_scores(tmp_path / "scores.parquet")
    with opened(page) as tab:
        scroll(tab)
        tab.select_option("#show", "")
        assert tab.text_content("#count") == "2,000 of 2,000 rows"
        tab.fill("#find", "fdp.exe")
        assert cells(tab) and all(int(row[0]) < 2000 for row in cells(tab))
        tab.locator("#rows tr.row").first.click()
        whole = tab.text_content("#rows td.whole")
        assert "<img src=x onerror=document.title='owned'> ⟨U+202E⟩fdp.exe" in whole
        assert "<style>*{display:none}</style>" in whole and "⟨U+2066⟩x⟨U+2069⟩ ⟨U+0007⟩" in whole
        assert tab.title() == "No outcome yet: instructdiff on rows.jsonl: 10,000 of 50,000 rows"
        assert tab.locator("main img, main a:not([href^='#']), #rows b, #rows script, #rows style").count() == 0
        tab.fill("#find", "")
        tab.select_option("#group", "code")
        assert {row[3] for row in cells(tab)} == {"code"}
        tab.select_option("#group", "")
        tab.select_option("#show", "chosen")
        heads = tab.locator("#rows thead button")
        heads.filter(has_text="instructdiff").click()
        values = [float(row[5]) for row in cells(tab)]
        assert values == sorted(values, reverse=True)
        assert np.isclose(values[0], np.nanmax(table["instructdiff"].value), rtol=1e-2)


def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    score = ["score", "--data", "builtin:demo", "--limit", 40, "--model", "builtin:tiny", "--method", "ifd,longest"]
    ok(*score, "--store", "store", "--output", "scores.parquet")
    some = ["--data", "builtin:demo", "--limit", 40, "--scores", "scores.parquet", "--method", "ifd"]
    ok("select", *some, "--store", "store", "--budget", "25%", "--output", "selected.jsonl")
    ok("report", "scores.parquet", "--data", "builtin:demo", "--store", "store", "--output", "report.html")
    table = read_scores(tmp_path / "scores.parquet")
    with opened(tmp_path / "report.html") as tab:
        scroll(tab)
        assert tab.text_content("#count") == "10 of 40 rows"
        tab.select_option("#show", "")
        assert tab.text_content("#count") == "40 of 40 rows"
        tab.locator("#rows thead button").filter(has_text="longest").click()
        assert float(cells(tab)[0][-1].replace(",", "")) == table["longest"].value.max()
        tab.select_option("#show", "chosen")
        assert tab.text_content("#count") == "10 of 40 rows"
        row = int(cells(tab)[0][0])
        tab.locator("#rows tr.row").first.click()
        assert tab.locator("#rows .said span").count() == min(int(table.n_tokens[row]), 400)
        tab.select_option("#show", "")
        text = load("builtin:demo", limit=40).samples()
        words = list(text)[7].instruction[:40]
        tab.fill("#find", words.upper())
        assert "7" in [row[0] for row in cells(tab)]
