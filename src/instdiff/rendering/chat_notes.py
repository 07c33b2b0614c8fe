"""What the log says of a rendering under a chat template."""

from __future__ import annotations

from collections.abc import Mapping

LISTED = 5

_LINES = {
    "only_calls": "{n:,} rows have calls and no answer to learn; --targets all+calls learns the calls",
    "folded": "{n:,} rows: the template refuses a system turn, so its text stands before the first user turn",
    "thoughts": (
        "{n:,} rows have thoughts that the template does not show; where it shows those of the last turn alone, "
        "--targets last learns no turn without its thought"
    ),
    "dropped": "{n:,} thoughts are left out, as --reasoning drop asks",
    "calls": "{n:,} turns have calls that the template does not show",
    "answers": "{n:,} turns have a text beside a call that the template does not show",
    "system": "{n:,} system texts are not shown by the template",
    "empty_thought": (
        "{n:,} answers begin with <think>, and the template writes an empty thought before it; this template wants the "
        "thought as 'reasoning_content'"
    ),
    "second_end": "{n:,} responses end with the text that closes a turn; the template writes it once more",
    "no_end_token": "{n:,} turns: the tokenizer has no token for the template's end of a turn; its text is learnt",
}


def said_of(notes: Mapping[tuple[str, str], int]) -> list[str]:
    """The lines for counts of ``ChatRenderer.notes``."""
    lines = [_LINES[what].format(n=n) for (what, _), n in notes.items() if what in _LINES]
    refused = {detail: n for (what, detail), n in notes.items() if what == "unrenderable"}
    lines += [
        f"{n:,} rows are unrenderable; the template says: {detail}" for detail, n in list(refused.items())[:LISTED]
    ]
    if len(refused) > LISTED:
        rest = sum(list(refused.values())[LISTED:])
        lines.append(f"{rest:,} more rows are unrenderable, with {len(refused) - LISTED} other messages")
    tools = {detail: n for (what, detail), n in notes.items() if what == "bad_tools"}
    if tools:
        lines.append(
            f"{sum(tools.values()):,} rows: 'tools' is no list of objects; the first: {next(iter(tools))[:200]!r}"
        )
    return lines
