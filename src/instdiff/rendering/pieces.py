"""The text of single tokens."""

from __future__ import annotations

from typing import Any

PARTIAL = 8
"""Tokens that may make one character."""


def pieces(hf: Any, ids: list[int]) -> list[str]:
    """The text that each token adds; joined they are the text."""
    out: list[str] = []
    before: list[int] = []
    pending: list[int] = []

    def text(tokens: list[int]) -> str:
        return str(hf.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    for at, token in enumerate(ids):
        pending.append(token)
        # After another token, because the first of a text may lose its space; a half character waits for the rest.
        head, whole = text(before) if before else "", text(before + pending)
        said = whole[len(head) :] if whole.startswith(head) else text(pending)
        if said.endswith("\ufffd") and len(pending) < PARTIAL and at + 1 < len(ids):
            out.append("")
            continue
        out.append(said)
        before, pending = [token], []
    return out
