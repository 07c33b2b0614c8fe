"""axe-core finds nothing serious on any page, in both schemes, wide and narrow.

``INSTDIFF_AXE`` names its file ``axe.min.js``: ``npm pack axe-core`` brings it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from docs.pages import ROOT
from instdiff.reporting import report

from .kit import make_scores, opened
from .test_browser import scroll
from .test_comparison import run as compared  # noqa: F401 - a fixture
from .test_top import searched

AXE = os.environ.get("INSTDIFF_AXE", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not AXE, reason="INSTDIFF_AXE names no file axe.min.js of axe-core"),
]
LOOKS = [("light", 1280), ("dark", 400)]
GRAVE = ("serious", "critical")
AUDIT = """async () => {
  const { violations, passes } = await axe.run(document);
  const told = violations.flatMap((one) => one.nodes.map((node) => [one.impact, one.id, node.html.slice(0, 120)]));
  return [told, passes.length];
}"""


def grave(tab: Any) -> list[list[str]]:
    """Violations of the two gravest levels on the page as it stands."""
    tab.evaluate(Path(AXE).read_text(encoding="utf-8"))
    told, passed = tab.evaluate(AUDIT)
    assert passed > 10  # it has looked
    return [one for one in told if one[0] in GRAVE]


@pytest.fixture
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A report of scores, a comparison or a search."""
    if request.param == "comparison":
        made: Path = request.getfixturevalue("compared")
        return made
    make: dict[str, Callable[[Path], Any]] = {"scores": make_scores, "search": searched}
    make[request.param](tmp_path)
    return report(tmp_path)


@pytest.mark.parametrize(("scheme", "width"), LOOKS)
@pytest.mark.parametrize("page", ["scores", "comparison", "search"], indirect=True)
def test_reports(page: Path, scheme: str, width: int) -> None:
    with opened(page, scheme, width=width) as tab:
        scroll(tab)
        if tab.locator("#rows td button").count():
            tab.locator("#rows td button").first.click()
        assert grave(tab) == []


def test_the_site(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason='mkdocs is missing; it comes with pip install -e ".[docs]"')
    pytest.importorskip("material", reason='mkdocs-material is missing; it comes with pip install -e ".[docs]"')
    asked = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(asked, cwd=ROOT, check=True)
    for name in ("index", "quickstart", "methods", "methods/ifd", "results", "configuration", "commands"):
        for scheme, width in LOOKS:
            with opened(tmp_path / f"{name}.html", scheme, width=width, ready="body") as tab:
                tab.wait_for_timeout(300)  # the theme's script lays tables into boxes
                assert grave(tab) == [], name
