"""What the site changes of the documents and of its theme; mkdocs calls these functions.

Links that lead out of the documents' folder, such as ``../configs/demo.yaml``, are files of the repository. The site
has no such pages, so that it names them instead. The theme gives its search no name for screen readers.
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


def on_post_page(output: str, **_: Any) -> str:
    """The page with a name for the theme's search."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"')


def on_post_template(output_content: str, **_: Any) -> str:
    """The same for the page that a server gives where there is none."""
    return on_post_page(output_content)
