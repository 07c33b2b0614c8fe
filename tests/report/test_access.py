"""The page by keyboard, at every width and in both schemes; addresses of views and rows; downloads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instdiff.reporting import report
from instdiff.reporting.page import cell

from .kit import make_scores, opened
from .test_browser import cells, scroll
from .test_top import contrast


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("access")
    make_scores(folder)
    return report(folder)


MEETING = """
(() => {
  const texts = (words) => [...document.querySelectorAll(words)].map((t) => [t.textContent, t.getBoundingClientRect()]);
  const meet = ([, a], [, b]) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 0.5
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2;
  const numbers = texts(".heatmap-label text"), bars = texts(".cbaxis text"), rows = texts(".yaxislayer-above text");
  return [
    ...numbers.flatMap((a, i) => numbers.slice(i + 1).filter((b) => meet(a, b)).map((b) => [a[0], b[0]])),
    ...bars.flatMap((a) => rows.filter((b) => meet(a, b)).map((b) => [a[0], b[0]])),
  ];
})()
"""
"""Numbers of a matrix that lie on each other, and labels that a colour bar meets."""
HERE = """
[...document.querySelectorAll("nav a.here")].filter((link) => {
  const box = document.querySelector(link.getAttribute("href")).getBoundingClientRect();
  return box.top > 0.2 * innerHeight || box.bottom < 0.15 * innerHeight;
}).map((link) => link.textContent)
"""
"""Sections that the navigation takes for the one that is read, and that are not."""


@pytest.mark.parametrize("width", [390, 768, 1024, 1440])
def test_nothing_is_wider_than_the_window(page: Path, width: int) -> None:
    with opened(page, width=width) as tab:
        scroll(tab)
        tab.locator("#rows td button").first.click()
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        wide = tab.evaluate(
            "[...document.querySelectorAll('.card, .bars, .verdict, .alerts a, .reads li')].filter(one => "
            "one.scrollWidth > one.clientWidth + 1 || one.getBoundingClientRect().right > innerWidth)"
            ".map(one => one.className + one.scrollWidth + '>' + one.clientWidth)"
        )
        assert wide == [] and tab.evaluate(MEETING) == []
        tab.evaluate("window.scrollTo({top: 0, behavior: 'instant'})")
        tab.wait_for_timeout(100)
        assert tab.evaluate(HERE) == []
        for box in tab.locator(".scroll").all():  # wide tables say so and are moved by keys
            if box.evaluate("one => one.scrollWidth > one.clientWidth + 1"):
                assert box.get_attribute("tabindex") == "0" and box.get_attribute("class") == "scroll wide"


TEXTS = """
() => {
  const solid = (c) => !/rgba\\(.*, 0\\)|transparent/.test(c);
  const behind = (one) => {
    for (let box = one; box; box = box.parentElement) {
      const colour = getComputedStyle(box).backgroundColor;
      if (solid(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const own = (one) => [...one.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  const shown = (one) => one.getClientRects().length && getComputedStyle(one).visibility !== "hidden" && !one.disabled;
  const found = new Map();
  for (const one of document.querySelectorAll("body *")) {
    if (!own(one) || !shown(one) || one.closest("script, style, noscript, .modebar, .skip")) continue;
    const svg = one.closest("svg"), look = getComputedStyle(one);
    const colour = svg ? look.fill : look.color, ground = behind(svg ? svg.parentElement : one);
    found.set(`${colour} on ${ground}`, [colour, ground, one.textContent.slice(0, 40)]);
  }
  return [...found.values()];
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(page: Path, scheme: str) -> None:
    with opened(page, scheme) as tab:
        scroll(tab)
        tab.locator("#rows td button").first.click()
        weak = [
            (text, colour, ground) for colour, ground, text in tab.evaluate(TEXTS) if contrast(colour, ground) < 4.5
        ]
        assert weak == []
        heat = "document.querySelector('#correlation .js-plotly-plot').data[0]"
        tab.locator("#correlation").scroll_into_view_if_needed()
        colour, ends = tab.evaluate(f"[{heat}.textfont.color, [{heat}.colorscale[0][1], {heat}.colorscale.at(-1)[1]]]")
        rgb = ["rgb({}, {}, {})".format(*(int(one[n : n + 2], 16) for n in (1, 3, 5))) for one in (colour, *ends)]
        assert min(contrast(rgb[0], ground) for ground in rgb[1:]) >= 4.5


def test_rows_open_and_headings_sort_by_keyboard(page: Path) -> None:
    with opened(page) as tab:
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.className") == "skip"
        tab.keyboard.press("Enter")
        assert tab.evaluate("document.activeElement.id") == "main"
        button = tab.locator("#rows td button").first
        button.focus()
        assert button.get_attribute("aria-expanded") == "false"
        tab.keyboard.press("Enter")
        assert tab.locator("#rows td button").first.get_attribute("aria-expanded") == "true"
        assert tab.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"  # the place is kept
        tab.keyboard.press("Enter")
        assert tab.locator("#rows td.whole").count() == 0
        head = tab.locator("#rows thead button").filter(has_text="random")
        head.focus()
        tab.keyboard.press("Enter")
        sorts = tab.eval_on_selector_all("#rows th", "all => all.map(one => one.getAttribute('aria-sort'))")
        assert sorts.count("descending") == 1 and set(sorts) == {"none", "descending"}
        tab.keyboard.press("Enter")
        assert tab.evaluate("document.activeElement.closest('th').getAttribute('aria-sort')") == "ascending"


def test_pictures_are_named_and_have_one_stop_each(page: Path) -> None:
    with opened(page) as tab:
        scroll(tab)
        plots = ".js-plotly-plot"
        names = tab.eval_on_selector_all(plots, "all => all.map(one => one.getAttribute('aria-label'))")
        stop = "one.querySelectorAll('.modebar-btn[tabindex=\"0\"]').length"
        stops = tab.eval_on_selector_all(plots, f"all => all.map(one => {stop})")
        hidden = tab.locator(".modebar-btn:not([tabindex])").count()
        assert names and all(name.startswith("Picture, ") for name in names) and set(stops) <= {0, 1} and hidden == 0
        tool = tab.locator("#distributions .modebar-btn").first
        tool.focus()
        tab.keyboard.press("ArrowRight")
        assert tab.evaluate("document.activeElement.dataset.title") != tool.get_attribute("data-title")
        assert tab.evaluate("getComputedStyle(document.activeElement.closest('.modebar')).opacity") == "1"


def test_a_legend_hides_and_shows_by_keyboard(page: Path) -> None:
    with opened(page) as tab:
        tab.locator("#delta").scroll_into_view_if_needed()
        tab.wait_for_function("document.querySelector('#delta .legend .traces[tabindex]')")
        entries = tab.locator("#delta .legend .traces")
        names = [entry.get_attribute("aria-label") for entry in entries.all()]
        drawn = (
            "document.querySelector('#delta .js-plotly-plot')._fullData.map(one => [`Show ${one.name}`, one.visible])"
        )
        assert len(names) > 1 and dict(tab.evaluate(drawn)) == dict.fromkeys(names, True)
        assert tab.locator("#delta .legend .traces[tabindex='0']").count() == 1
        entries.first.focus()
        for key, shown in (("Enter", "legendonly"), (" ", True)):
            tab.keyboard.press(key)
            tab.wait_for_function(f"() => ({drawn})[0][1] === {json.dumps(shown)}")
            assert dict(tab.evaluate(drawn)) == {**dict.fromkeys(names, True), names[0]: shown}
            pressed = "document.querySelector('#delta .legend .traces').getAttribute('aria-pressed')"
            tab.wait_for_function(f"{pressed} === '{json.dumps(shown is True)}'")
            assert tab.evaluate("document.activeElement.getAttribute('aria-label')") == names[0]  # the place is kept
        tab.keyboard.press("ArrowRight")
        assert tab.evaluate("document.activeElement.getAttribute('aria-label')") == names[1]
        tab.keyboard.press("ArrowLeft")
        tab.keyboard.press("ArrowLeft")
        assert tab.evaluate("document.activeElement.getAttribute('aria-label')") == names[-1]


# ── the rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_open_on_the_chosen_ones_best_first(page: Path) -> None:
    record = json.loads((page.parent / "selection.json").read_text())
    with opened(page) as tab:
        assert [int(row[0]) for row in cells(tab)] == record["rows"][:25]
        assert {row[1] for row in cells(tab)} == {"chosen"}
        tab.select_option("#show", "")
        tab.click("#after")
        first = [row[1] for row in cells(tab)]
        assert first[:15] == ["chosen"] * 15 and first[15:] == ["not chosen"] * 10  # then those just missed


def test_a_view_and_a_row_have_an_address(page: Path) -> None:
    with opened(page) as tab:
        tab.select_option("#group", "code")
        tab.locator("#rows thead button").filter(has_text="longest").click()
        tab.locator("#rows td button").first.click()
        at, shown = tab.evaluate("location.hash"), cells(tab)
        assert tab.get_attribute("#rows td.whole a", "href") == f"#examples?row={shown[0][0]}"
    with opened(page, at=at) as tab:
        assert cells(tab) == shown and tab.locator("#rows tr.open").count() == 1
        assert tab.input_value("#show") == "chosen" and tab.input_value("#group") == "code"
    with opened(page, at="#examples?row=117") as tab:
        assert tab.text_content("#rows tr.open button") == "117"


def test_filtered_rows_are_downloaded(page: Path, tmp_path: Path) -> None:
    with opened(page) as tab:
        tab.select_option("#group", "math")
        shown: list[int] = [int(row[0]) for row in cells(tab)]
        files: dict[str, Any] = {}
        for button in ("save", "numbers"):
            with tab.expect_download() as asked:
                tab.click(f"#{button}")
            files[button] = tmp_path / button
            asked.value.save_as(files[button])
    rows = [json.loads(one) for one in files["save"].read_text().splitlines()]
    assert [row["row"] for row in rows] == shown == [int(one) for one in files["numbers"].read_text().split()]
    assert {row["source"] for row in rows} == {"math"} and all(row["response"] for row in rows)
    assert all(row["scores"]["longest"] == row["n_tokens"] for row in rows)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (16580.0, "16,580"), (0.9123, "0.912"), (-2.0, "-2"), (0.42, "0.42"), (36.0, "36"), (0.0, "0"),
        (1234.5, "1,234"), (0.00001234, "1.23e-05"),
        (99.96, "100"), (None, "–"), (float("nan"), "–"), (12345, "12,345"), (True, "yes"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits_each(value: Any, text: str) -> None:
    assert cell(value) == text
