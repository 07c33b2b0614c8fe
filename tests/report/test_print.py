"""The page on paper: light, without controls, and nothing beyond its edge."""

from __future__ import annotations

from pathlib import Path

from instdiff.reporting import report

from .kit import make_scores, opened

A4 = {"width": 703, "height": 1032}
"""Points of the screen on A4 within the margins that the page asks for."""


BROKEN = """
[...document.querySelectorAll("#verdict, #attention")].flatMap((box) => {
  const words = [], texts = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) for (const found of texts.currentNode.data.matchAll(/\\S+/g)) {
    const range = document.createRange();
    range.setStart(texts.currentNode, found.index);
    range.setEnd(texts.currentNode, found.index + found[0].length);
    if (new Set([...range.getClientRects()].map((one) => one.top)).size > 1) words.push(found[0]);
  }
  return words;
})
"""
"""Words that stand in two lines."""


def test_the_page_on_paper(tmp_path: Path) -> None:
    make_scores(tmp_path, 120)
    with opened(report(tmp_path), "dark") as tab:
        tab.locator("#rows tr.row").first.click()
        tab.set_viewport_size(A4)
        tab.emulate_media(media="print")
        tab.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        tab.wait_for_timeout(300)
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert tab.evaluate("document.documentElement.scrollWidth") <= A4["width"]
        controls = "nav, .controls, .pager, .peek, .hint, details"
        assert not any(box.is_visible() for box in tab.locator(controls).all())
        boxes = tab.evaluate(
            "[...document.querySelectorAll('.card')].map(c => [c.getBoundingClientRect().right, "
            "c.querySelector('.main-svg')?.getBoundingClientRect().right ?? 0, c.querySelectorAll('.main-svg').length])"
        )
        assert boxes and all(0 < inner <= outer + 1 for outer, inner, _ in boxes)
        numbers = tab.locator("#funnel .bars span").all()
        assert all(one.bounding_box()["x"] + one.bounding_box()["width"] <= A4["width"] for one in numbers)
        assert tab.evaluate(BROKEN) == []
        said = tab.evaluate("getComputedStyle(document.querySelector('#rows .said')).maxHeight")
        assert said == "none"  # a text is printed whole
        tab.evaluate("window.dispatchEvent(new Event('afterprint'))")
        tab.emulate_media(media="screen")
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 21, 27)"
        assert len(tab.pdf(format="A4")) > 20_000
