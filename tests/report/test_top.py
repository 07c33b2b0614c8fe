"""What stands first on the page: the verdict, what to look at, the best rows and those just missed, the funnel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instdiff.reporting import report
from instdiff.scoring.table import read_scores

from .kit import make_scores, opened, payload
from .test_verdict import RANDOM, compared, line


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of pipelines that came out worse, better and with too few seeds."""
    pages = {}
    for word, value, p in (("worse", 4.753, 0.001), ("better", 2.2, 0.001), ("too", 4.753, None)):
        folder = tmp_path_factory.mktemp("top") / "a_folder_name"
        (folder / "iter_1").mkdir(parents=True)
        make_scores(folder / "iter_1", 120)
        found = compared(folder, line("instructdiff round 1", value, p, rows=24, tokens=700, train_s=4.0))
        events = [{"event": "scored round 1", "seconds": 29.2}, {"event": "trained iter_1/x", "seconds": 7.6}]
        (found / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in events))
        pages[word] = report(found)
    return pages


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize(("word", "scheme"), [("worse", "light"), ("better", "dark"), ("too", "dark")])
def test_the_first_400_pixels_hold_the_verdict(runs: dict[str, Path], word: str, scheme: str, width: int) -> None:
    said = {"worse": "Worse than random", "better": "Better than random", "too": "Too few seeds"}[word]
    with opened(runs[word], scheme, width=width) as tab:
        box = tab.locator("#verdict").bounding_box()
        assert box["y"] + box["height"] <= 400
        assert tab.text_content("#verdict .word") == said
        shown = " ".join(tab.inner_text("#verdict").split())
        for part in ("seeds", "response tokens 700 of", "cost 37 s on the CPU", "rows 24 of 120"):
            assert part in shown, shown
        if word == "too":
            assert "4.753 held-out NLL; each of 3 random selections lies between 2.877 and 2.895" in shown
            assert "1 against 3" in shown
        else:
            gap = {"worse": "+1.868", "better": "-0.685"}[word]
            assert f"{gap} nats per token, 95 % interval" in shown and "3 against 3" in shown
            assert "lower is better" in shown
        colours = tab.evaluate(
            "[getComputedStyle(document.querySelector('#verdict .word')).color, scheme()]".replace(
                "scheme()", "getComputedStyle(document.querySelector('#verdict')).backgroundColor"
            )
        )
        assert contrast(*colours) >= 4.5


def contrast(one: str, other: str) -> float:
    """The ratio of two colours as browsers write them."""

    def light(colour: str) -> float:
        part = np.array([float(n) for n in colour[colour.index("(") + 1 : -1].split(",")[:3]]) / 255
        return float(
            np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
        )

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_title_says_what_it_is(runs: dict[str, Path]) -> None:
    with opened(runs["worse"], scripts=False) as tab:
        assert tab.text_content("h1") == "instructdiff on rows.jsonl: 24 of 120 rows"
        assert tab.title() == "Worse than random: instructdiff on rows.jsonl: 24 of 120 rows"


def test_alerts_lead_to_sections_that_are_there(runs: dict[str, Path]) -> None:
    with opened(runs["too"], scripts=False) as tab:
        links = tab.eval_on_selector_all("#attention a", "all => all.map(a => a.getAttribute('href'))")
        assert 0 < len(links) <= 6 and "#comparison" in links
        assert all(tab.locator(f"section{link}").count() == 1 for link in links)
        order = tab.eval_on_selector_all("main > section", "all => all.map(one => one.id)")
        assert order[:4] == ["attention", "best", "summary", "funnel"]


def test_the_best_rows_and_the_nearest_misses(runs: dict[str, Path]) -> None:
    page = runs["worse"]
    record = json.loads((page.parent / "iter_1" / "selection.json").read_text())
    scored = read_scores(page.parent / "iter_1" / "scores.parquet")["instructdiff"]
    rest = [int(row) for row in scored.best() if row not in set(record["rows"])]
    facts: Any = json.loads(page.with_suffix(".json").read_text())
    assert facts["sections"]["best"]["facts"] == {"best": record["rows"][:10], "nearest misses": rest[:10]}
    with opened(page) as tab:
        lists = tab.locator("#best ol")
        assert [lists.nth(n).locator("li").count() for n in (0, 1)] == [10, 10]
        tab.locator("#best a").first.click()
        row = record["rows"][0]
        assert tab.text_content("#rows tr.open button") == str(row)
        assert f"Row {row}, chosen: rank 1 of" in tab.text_content("#rows td.whole")
        place = tab.locator("#rows tr.open").bounding_box()["y"]
        assert 0 <= place < 900


def test_differences_to_random_are_drawn(runs: dict[str, Path]) -> None:
    (label, figure), *_ = payload(runs["worse"])["figures"]["comparison"]
    (trace,) = figure["data"]
    assert label == "held-out NLL" and trace["x"] == [pytest.approx(1.868)] and trace["name"] == "worse"
    assert figure["layout"]["yaxis"]["ticktext"] == ["<b>instructdiff round 1</b>"]
    (band,) = figure["layout"]["shapes"]
    assert (band["x0"], band["x1"]) == (pytest.approx(2.877 - 2.885), pytest.approx(2.895 - 2.885))
    assert "difference to random (lower is better)" in figure["layout"]["xaxis"]["title"]["text"]


def test_a_comparison_begins_with_its_lines_against_random(tmp_path: Path) -> None:
    compared(tmp_path, line("full", 1.2, None), line("zip", 3.4, 0.001), line("ifd", 2.6, 0.001))
    page = report(tmp_path)
    with opened(page, scripts=False) as tab:
        said = [one.inner_text() for one in tab.locator("#verdict > p").all()]
        assert said[0] == "Better than random" and said[1] == "Of 2 selections: 1 better than random: ifd, 1 worse."
        assert said[2].startswith("ifd: -0.285 nats per token")
        assert "full" not in " ".join(said)
        tab.set_viewport_size({"width": 390, "height": 900})
        for part in ("#verdict .gap", "#verdict dl div:has-text('seeds')"):
            box = tab.locator(part).bounding_box()
            assert box["y"] + box["height"] <= 400, part


def test_too_few_seeds_of_random_are_told(tmp_path: Path) -> None:
    one = {**RANDOM, "seeds": 1, "by_seed": [2.885]}
    compared(tmp_path, line("ifd", 4.86, None))
    facts = json.loads((tmp_path / "comparison.json").read_text())
    facts["lines"][0] = one
    (tmp_path / "comparison.json").write_text(json.dumps(facts))
    found = json.loads(report(tmp_path).with_suffix(".json").read_text())["verdict"]
    assert found["beside"] == "one of random is 2.885" and found["seeds_against"] == 1


def searched(folder: Path) -> None:
    """The folder of a search that found ``longest``."""
    (folder / "scores").mkdir()
    make_scores(folder, 60, selected=False)
    (folder / "scores.parquet").rename(folder / "scores" / "a_seed_0.parquet")
    final = line("longest", 2.5, 0.001)
    compared(folder, final)
    recipes = [{"name": "longest", "gain": 0.3}]
    told = {"told": ["Choose rows by longest."], "best": "longest", "final": final, "gain_untouched": 0.3}
    (folder / "search.json").write_text(json.dumps({**told, "rungs": [{"seeds": 1, "recipes": recipes}]}))


def test_the_page_of_a_search(tmp_path: Path) -> None:
    searched(tmp_path)
    with opened(report(tmp_path)) as tab:
        assert tab.text_content("h1") == "Search for a recipe on rows.jsonl"
        assert tab.text_content("#verdict .word") == "Better than random" and tab.locator("#search table").count() == 1
        tab.fill("#find", "117")
        assert tab.locator("#rows tr.row").count() == 0
        ids = tab.eval_on_selector_all("[id]", "all => all.map(one => one.id)")
        assert len(ids) == len(set(ids))
