"""The description on an index page, where a link into the repository leads nowhere: its text stands alone.

Where ``[project.urls]`` of ``pyproject.toml`` names a ``Source``, such links lead there.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://)([^)\s]+)\)")


def describe(text: str, source: str | None = None) -> str:
    """A page of the repository with absolute links alone."""

    def lead(link: re.Match[str]) -> str:
        return f"{link[1]}[{link[2]}]({source}/{link[3]})" if source else "" if link[1] else link[2]

    return LINK.sub(lead, re.sub(r"<!--.*?-->\n?", "", text))


if __name__ == "__main__":
    here = Path(__file__).parent
    urls = tomllib.loads((here / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    readme = (here / "README.md").read_text(encoding="utf-8")
    setup(long_description=describe(readme, urls.get("Source")), long_description_content_type="text/markdown")
