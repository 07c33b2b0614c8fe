"""Another cut in the page, histograms that filter, and how much a page of many rows holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cli.shell import cli, ok
from instdiff.core.budget import parse_budget
from instdiff.reporting import report
from instdiff.scoring.table import read_scores

from .kit import make_scores, make_table, opened
from .test_browser import cells

TOLD = (
    "all => Object.fromEntries(all.map(r => [r.cells[0].textContent, [...r.cells].slice(1).map(c => c.textContent)]))"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recut")
    make_scores(folder)
    return report(folder)


def test_another_budget_and_method(page: Path, tmp_path: Path) -> None:
    table = read_scores(page.parent / "scores.parquet")
    mine = parse_budget("20%").take(table["instructdiff"].best(), table["instructdiff"])
    with opened(page) as tab:
        told = tab.eval_on_selector_all("#cut-told tr", TOLD)
        assert told["rows"] == ["40", "40", "40"] and told["shared with the selection"] == ["40", "40", "8"]
        tab.select_option("#cut-method", "longest")
        tab.locator("#cut-slide").focus()
        tab.keyboard.press("ArrowRight")
        best = table["longest"].best()[:41]
        told = tab.eval_on_selector_all("#cut-told tr", TOLD)
        tokens = table.n_tokens
        assert tab.input_value("#cut-rows") == "41" and told["rows"] == ["41", "40", "41"]
        assert told["response tokens"][0] == f"{tokens[best].sum():,}"
        assert told["response tokens"][2] == f"{round(41 * tokens.sum() / 200):,}"
        assert float(told["median tokens"][0]) == pytest.approx(np.median(tokens[best]), rel=0.01)
        assert told["shared with the selection"][0] == str(len({*best} & {*mine}))
        assert int(told["source: math"][0]) == sum(row % 4 == 0 and row >= 3 for row in best)
        covered = [float(one) for one in told["kinds of text, of 64"]]
        assert 1 <= covered[0] <= 41 and 1 <= covered[2] <= 41
        with tab.expect_download() as asked:
            tab.click("#cut-save")
        asked.value.save_as(tmp_path / "rows.txt")
        assert asked.value.suggested_filename == "longest.rows.txt"
    assert [int(one) for one in (tmp_path / "rows.txt").read_text().split()] == table.rows[best].tolist()
    some = ["--data", page.parent / "rows.jsonl", "--rows", tmp_path / "rows.txt", "--output", tmp_path / "cut.jsonl"]
    ok("select", *some, "--scores", page.parent / "scores.parquet", "--method", "longest")
    assert json.loads((tmp_path / "cut.selection.json").read_text())["rows"] == table.rows[best].tolist()
    ok("select", *some)  # without scores
    record = json.loads((tmp_path / "cut.selection.json").read_text())
    assert (record["rows"], record["budget"]) == (table.rows[best].tolist(), "41")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1\n200\n", ":2: '200' is no row of"),
        ("1\nx\n", ":2: 'x' is no row of"),
        ("1\n\n1\n", ":3: '1' stands there twice"),
        ("\n", "lists no row"),
    ],
)
def test_row_numbers_that_are_none_are_named(page: Path, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "rows.txt").write_text(text)
    some = ["--data", page.parent / "rows.jsonl", "--rows", tmp_path / "rows.txt", "--output", tmp_path / "cut.jsonl"]
    ran = cli("select", *some)
    assert ran.code == 2 and said in ran.error and not (tmp_path / "cut.jsonl").exists()
    assert "give one of them" in cli("select", *some, "--budget", "10").error


def test_a_part_of_a_histogram_is_a_filter(page: Path) -> None:
    table = read_scores(page.parent / "scores.parquet")
    with opened(page, width=1440) as tab:
        tab.select_option("#show", "")
        box = tab.locator("#rows thead input[aria-label='longest from']")
        box.fill("60")
        box.press("Enter")
        assert tab.text_content("#count") == f"{(table.n_tokens >= 60).sum()} of 200 rows"
        at = tab.evaluate("location.hash")
        assert "in+longest=60%2C" in at
        picture = tab.locator("#rows .brush svg").last  # of random
        picture.scroll_into_view_if_needed()
        place = picture.bounding_box()
        y = place["y"] + place["height"] / 2
        tab.mouse.move(place["x"] + 1, y)
        tab.mouse.down()
        tab.mouse.move(place["x"] + place["width"] / 2 - 1, y, steps=4)
        tab.mouse.up()
        shown = int(tab.text_content("#count").split()[0])
        both = (table.n_tokens >= 60) & (table["random"].value <= np.median(table["random"].value) + 0.05)
        assert 0 < shown <= both.sum() + 3 < 100 and all(float(row[-2]) >= 60 for row in cells(tab))
        tab.fill("#rows thead input[aria-label='longest from']", "")
        tab.keyboard.press("Enter")
        assert int(tab.text_content("#count").split()[0]) > shown
    with opened(page, at=at) as tab:
        assert tab.text_content("#count") == f"{(table.n_tokens >= 60).sum()} of 200 rows"


def test_many_rows_make_no_more_elements(page: Path, tmp_path: Path) -> None:
    count = 50_000
    ids = [f"{row:032x}" for row in range(count)]
    make_table(count, ids, str(tmp_path / "rows.jsonl")).write(tmp_path / "scores.parquet")
    many = report(tmp_path / "scores.parquet")
    nodes = "document.querySelectorAll('*').length"
    with opened(many) as tab:
        assert tab.evaluate(nodes) < 3000
        assert tab.get_attribute("#cut-slide", "max") == "40000"
        tab.locator("#cut-slide").focus()
        tab.keyboard.press("End")
        assert tab.text_content("#cut-told tr td") == "40,000"
