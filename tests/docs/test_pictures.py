"""Pictures of method pages: light, without a network, named, and true to the method."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from instdiff.methods import METHODS

from .pages import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from pictures import COUNT, PICTURES, TENTH

IMAGES = ROOT / "docs" / "images" / "methods"
POINT = re.compile(r'<circle class="(\w)" cx="(\d+)" cy="(\d+)"|<path class="(x)" d="M(\d+) (\d+)l6 6')


def points(name: str) -> list[tuple[str, int, int]]:
    """Rows of a picture by kind: ``c`` chosen, ``x`` left out, ``o`` others."""
    found = [[part for part in one if part] for one in POINT.findall((IMAGES / f"{name}.svg").read_text())]
    return [(kind, int(x), int(y)) for kind, x, y in found]


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_light_and_has_every_row(name: str) -> None:
    text = (IMAGES / f"{name}.svg").read_text(encoding="utf-8")
    assert name in METHODS and len(text) < 8000 and "prefers-color-scheme:dark" in text
    assert re.findall(r"https?://[^\"]*", text) == ["http://www.w3.org/2000/svg"] and "<script" not in text
    kinds = [kind for kind, _, _ in points(name)]
    assert len(kinds) == COUNT and kinds.count("c") >= TENTH
    alt, where = re.findall(r"!\[(.+)\]\((.+\.svg)\)", (ROOT / f"docs/methods/{name}.md").read_text(encoding="utf-8"))[
        0
    ]
    assert alt and Path(where).name == f"{name}.svg"


def test_pictures_are_of_methods_that_have_them() -> None:
    assert len(PICTURES) >= 10 and {path.stem for path in IMAGES.glob("*.svg")} == PICTURES.keys()


def test_chosen_rows_lie_where_the_formula_says() -> None:
    for name in ("perplexity", "entropy"):  # upwards is less in a picture
        lowest = sorted((-y, kind) for kind, _, y in points(name))[:TENTH]
        assert {kind for _, kind in lowest} == {"c"}
    rows = points("instructdiff")
    out = sorted(x + 3 for kind, x, _ in rows if kind == "x")  # a cross begins at its corner
    inside = [x for kind, x, _ in rows if kind != "x"]
    assert len(out) == 2 * TENTH and out[TENTH - 1] <= min(inside) and max(inside) <= out[TENTH]
    others = [y for kind, _, y in rows if kind == "o"]
    assert min(y for kind, _, y in rows if kind == "c") >= max(others)
    assert [kind for kind, _, _ in points("ifd")].count("c") == TENTH
