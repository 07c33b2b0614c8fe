"""Every relative link of the documents leads to a file, and to a heading that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .pages import FENCE, PAGES, prose, title

LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(path: Path) -> list[str]:
    """The headings as links name them; a second one of the same words gets a number."""
    seen: dict[str, int] = {}
    out = []
    for head in re.findall(r"^#+ +(.+?) *#*$", FENCE.sub("", path.read_text(encoding="utf-8")), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head)
        slug = re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
        seen[slug] = seen.get(slug, -1) + 1
        out.append(f"{slug}_{seen[slug]}" if seen[slug] else slug)
    return out


def broken(path: Path) -> list[str]:
    bad = []
    for target in LINK.findall(prose(path)):
        where, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        place = (path.parent / where).resolve() if where else path
        if not place.exists():
            bad.append(f"{target}: there is no such file")
        elif anchor and place.suffix == ".md" and anchor not in anchors(place):
            bad.append(f"{target}: there is no such heading")
    return bad


@pytest.mark.parametrize("path", PAGES, ids=title)
def test_links_lead_somewhere(path: Path) -> None:
    assert not broken(path)


@pytest.mark.parametrize("path", [p for p in PAGES if p.parent.name != "methods"], ids=title)
def test_no_heading_stands_twice(path: Path) -> None:
    found = anchors(path)
    assert len(found) == len(set(found)) and not any(re.search(r"_\d+$", name) for name in found)


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One `name`, two\n[a](page.md#one-name-two) [b](page.md#three) [c](gone.md) [d](https://a.org) `[e](f)`\n"
    )
    assert broken(page) == ["page.md#three: there is no such heading", "gone.md: there is no such file"]
