"""Text of data as people may look at it: nothing in it can move, hide or colour what stands around it."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

HIDDEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
"""Categories of characters that have no picture of their own: control, direction, private, line separators."""


def visible(text: str) -> str:
    """Control and direction marks as their code points, so that data cannot rearrange a page or a terminal."""
    return "".join(f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in HIDDEN and c not in "\n\t" else c for c in text)


def visible_json(value: Any, indent: int | None = None) -> str:
    """JSON text that a terminal may be given: characters without a picture are escaped, so that the value is the same.

    Line breaks between the parts stay.
    """

    def escaped(c: str) -> str:
        return "\\u007f" if c == "\x7f" else json.dumps(c)[1:-1]

    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return "".join(escaped(c) if unicodedata.category(c) in HIDDEN and c != "\n" else c for c in text)


def in_one_line(text: str, most: int = 160) -> str:
    """The beginning of a text for a line of a table: visible, without line breaks."""
    flat = " ".join(text[: 4 * most].split())
    return visible(flat[:most]) + (" …" if len(flat) > most or len(text) > 4 * most else "")
