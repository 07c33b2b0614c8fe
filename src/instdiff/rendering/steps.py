"""A trace in steps: where its text is cut, and rows of one step each after a window of those before it.

Steps are cut in the text of the tokens that a model sees, so they are the same under every template.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from instdiff.core import Windowed
from instdiff.core.arrays.ragged import Ragged, offsets_of
from instdiff.data import Pool
from instdiff.rendering.rows import Indices, Marks, Rows, RowsBuilder
from instdiff.rendering.tokenise import thoughts_and_answers

MOST_STEPS = 4096
"""Steps of a row; one with more is ``too_long``."""
LEAST = 4
"""Characters that are not blank, of a step; a piece with fewer joins the next."""
UNITS = {
    "sentence": re.compile(r"[.!?](?=\s)|\n\s*"),
    "paragraph": re.compile(r"\n[^\S\n]*\n\s*"),
}
"""What ends a step: a sentence, or a run of line breaks; or an empty line."""
_MARK = re.compile(r"</?think>")

Locate = Callable[[Sequence[int]], tuple[str, Indices]]
"""The text of some tokens, and the character at which each of them starts in it."""


def cut_steps(text: str, unit: str = "sentence") -> list[int]:
    """Where the steps of a text start, in characters; the first at 0, and none in a text without a word.

    A piece with fewer than ``LEAST`` characters, blanks and the marks of a thought not counted, joins the next one; at
    the end it joins the one before it.
    """
    starts, at = list[int](), 0
    ends = [found.end() for found in UNITS[unit].finditer(text)]
    for end in (*(end for end in ends if end < len(text)), len(text)):
        if len("".join(_MARK.sub("", text[at:end]).split())) >= LEAST:
            starts.append(at)
            at = end
    return starts or ([0] if text.strip() else [])


def windowed(rows: Rows, view: Windowed, locate: Locate) -> tuple[Rows, Indices]:
    """Rows of single steps of the prompted view, and where those of each sample start; the end of the last, too.

    A step comes after all that stands before its turn's response, and after a window of the steps before it in that
    response. The steps of a row with a reason are one row with that reason; where there are more than ``MOST_STEPS``
    it is ``too_long``.
    """
    out, counts = RowsBuilder(), list[int]()
    target = Ragged(rows.target, rows.ids.offsets)
    for row, reason in enumerate(rows.reason.tolist()):
        ids, marks = rows.ids[row], target[row]
        stretches = [] if reason else [step for a, b in runs(marks) for step in _steps(ids, a, b, view, locate)]
        if not stretches or len(stretches) > MOST_STEPS:
            out.add_row(reason=reason or ("too_long" if stretches else "empty_response"))
            counts.append(1)
            continue
        counts.append(len(stretches))
        for prompt, window, start, end in stretches:
            shown = np.concatenate([ids[:prompt], ids[window:end]])
            out.add_row(shown, np.arange(len(shown)) >= len(shown) - (end - start), bool(rows.truncated[row]))
    return out.rows(), offsets_of(counts)


def runs(marks: Marks) -> list[tuple[int, int]]:
    """Where the tokens that are marked stand together: the first, and the one after the last."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marks, [False]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _steps(ids: Indices, a: int, b: int, view: Windowed, locate: Locate) -> list[tuple[int, int, int, int]]:
    """Per step of one run of targets: where the run, the step's window, and the step start, and where it ends."""
    text, starts = locate(ids[a:b].tolist())
    cuts = np.array(cut_steps(text, view.unit), np.int64)
    # A token belongs to the step of its first character; a step within one token has none.
    firsts = np.unique(np.searchsorted(starts, cuts, "left"))
    firsts = firsts[firsts < b - a]
    firsts[:1] = 0
    edges = [*(a + firsts).tolist(), b]
    out = []
    for number in range(len(edges) - 1):
        window = number - (view.k if view.share is None else int(np.ceil(view.share * number - 1e-9)))
        out.append((a, edges[max(0, window)], edges[number], edges[number + 1]))
    return out


PROBE = 40
"""Characters by which the beginning of a thought or answer is found in what a template made of it."""


def thought_tokens(rows: Rows, pool: Pool, thinking: Sequence[int], locate: Locate) -> Indices:
    """Per row of the prompted view how many of its targets belong to a thought, with the marks around it.

    ``thinking`` are the rows that have one. A thought that the template changes counts as answer.
    """
    out = np.zeros(len(rows), np.int64)
    if pool.turns.reasoning != "learn":
        return out
    target = Ragged(rows.target, rows.ids.offsets)
    for row in thinking:
        turns = iter(thoughts_and_answers(pool.sample(row), pool.turns))
        for a, b in runs(target[row]):
            text, starts = locate(rows.ids[row][a:b].tolist())
            cut = bool(rows.truncated[row]) and b == len(rows.ids[row])
            out[row] += int(np.searchsorted(starts, _answer_at(text, turns, cut=cut), "left"))
    return out


def _answer_at(text: str, turns: Iterator[tuple[str, str]], *, cut: bool) -> int:
    """Where the answer of the next turn that this text shows starts in it."""
    for thought, answer in turns:
        at = text.find(thought[:PROBE]) if thought else -1
        if at >= 0:
            end = at + len(thought)
            found = text.find(answer[:PROBE], end) if answer else -1
            return found if found >= 0 else len(text) if cut or not answer else min(end, len(text))
        if answer and answer[:PROBE] in text:
            return 0
        if thought and cut:  # it ends within the beginning of the thought
            return len(text)
    return 0
