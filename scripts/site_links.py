"""Links that lead out of the documents' folder: the site has no such pages, so that it names them instead.

In the repository they are links to files, such as ``../configs/demo.yaml``. mkdocs calls ``on_page_markdown``.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with the names of what lies outside in place of links."""
    folder = posixpath.dirname(page.file.src_uri)

    def named(link: re.Match[str]) -> str:
        text, target = link[1], link[2]
        where = posixpath.normpath(posixpath.join("docs", folder, target))
        if "://" in target or where.startswith("docs/"):
            return link[0]
        return text if text.strip("`") in where else f"{text} (`{where}`)"

    return LINK.sub(named, markdown)
