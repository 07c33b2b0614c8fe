"""Whether a written solution comes to the right answer.

This module is read by processes that do nothing else, so it imports little; ``math_verify`` comes when it is needed.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

from instdiff.grading.quantities import NUMBER, is_row_of_numbers, quantity

THOUGHTS = "</think>"
MEMORY = 4 << 30
"""Bytes that a grading process may have; a tower of powers would take all there are."""
ORPHANED = 600
"""Seconds after which a verdict has no reader any more: who waited for it is gone, or it would have been killed."""
LONGEST_ANSWER = 2000
"""Characters; what is longer is no final answer."""

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*(\{| (?=\S))")
_MARKED = re.compile(r"####[ \t]*([^\n]+)")
_SAID = re.compile(
    r"(?:final answer|the answer|answer)\s*(?:is|:|=)\s*:?\s*(?:\\\(|\$)?\s*(.+?)(?:\\\)|\$)?\s*"
    r"(?:\.(?:\s|$)|\n|$|I hope)",
    re.IGNORECASE,
)
_REMARK = re.compile(r"\([^()]*\)")
_REASON = re.compile(r"\b(?:since|because|as|for|where|from)\b|[,;]\s", re.IGNORECASE)
_LESS = r"\s*(<=?|\u2264|\\leq?(?![a-z])|\\lt(?![a-z]))\s*"
_CHAIN = re.compile(rf"\s*([^<>=\u2264,]+?){_LESS}[A-Za-z]{_LESS}([^<>=\u2264,]+?)\s*")
_ROOT = re.compile(r"(?<![\\a-z])sqrt\(([^()]*)\)")
_NAMED = re.compile(r"(?<![\\a-zA-Z{])(pi)(?![a-zA-Z])")
_POWER = re.compile(r"(\d)[eE]([-+]?\d+)")


class Verdict(NamedTuple):
    """``reason`` is one word where an answer is wrong for another reason than being another answer."""

    right: bool
    reason: str | None = None


def final_answer(text: str, *, number: bool) -> str | None:
    """The answer that a solution comes to: its last box, what follows ``####``, what it calls its answer.

    With ``number`` also the last number in the text, as is the custom for GSM8K.
    """
    text = text.rpartition(THOUGHTS)[2]
    found = last_boxed(text)
    if found is None:
        marked = _MARKED.findall(text) or _SAID.findall(text)
        found = marked[-1].strip() if marked else None
    if number and (found is None or (quantity(found) is None and "\\" not in found)):
        found = _number_in(found or "") or next(iter(NUMBER.findall(text)[-1:]), found)
    return found if found and len(found) <= LONGEST_ANSWER else None


def _number_in(said: str) -> str | None:
    """The number that an answer in words begins with; what a sum comes to, without its terms."""
    bare = _REASON.split(_REMARK.sub(" ", said))[0].rpartition("=")[2]
    found = NUMBER.search(bare) or NUMBER.search(said)
    return found[0] if found else None


def last_boxed(text: str) -> str | None:
    r"""What the last ``\boxed{...}`` holds, braces balanced."""
    last = None
    for match in _BOXED.finditer(text):
        if match[1] != "{":
            last = text[match.end() :].split(maxsplit=1)[0].rstrip("$.")
            continue
        depth = 1
        for at in range(match.end(), min(len(text), match.end() + LONGEST_ANSWER)):
            depth += {"{": 1, "}": -1}.get(text[at], 0) if text[at - 1] != "\\" else 0
            if depth == 0:
                last = text[match.end() : at].strip()
                break
    return last or None


def same(answer: str, gold: str, tolerance: float = 0.0) -> bool:
    """Whether an answer equals the right one: as numbers, as texts, or as what they mean.

    ``tolerance`` is the share of the right number by which the answer may differ from it.
    """
    found = _compare_plainly(answer, gold, tolerance)
    return _compare_meaning(answer, gold) if found is None else found


def _compare_plainly(answer: str, gold: str, tolerance: float) -> bool | None:
    """The same, where it takes no algebra."""
    mine, right = quantity(answer), quantity(gold)
    if mine is not None and right is not None:
        near = abs(mine.value - right.value) <= Decimal(tolerance) * abs(right.value)
        return near and mine.agrees(right)
    if _strip_meaningless(answer) == _strip_meaningless(gold):
        return True
    return False if is_row_of_numbers(answer) or is_row_of_numbers(gold) else None


def _strip_meaningless(text: str) -> str:
    """Without what changes no meaning."""
    text = re.sub(r"\\(?:text|mathrm|textbf|mbox|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    text = text.replace("dfrac", "frac").replace("tfrac", "frac")
    text = re.sub(r"(?<=\d)\s+(?=\d)", "_", text)  # between digits it has a meaning
    return re.sub(r"\\left|\\right|\\[!,; ]|[\s$]|\^\{?\\circ\}?|\.$", "", text).lower()


def _compare_meaning(answer: str, gold: str) -> bool:
    from math_verify import verify

    chains = _CHAIN.fullmatch(answer), _CHAIN.fullmatch(gold)
    if bool(chains[0]) != bool(chains[1]):
        answer, gold = _as_interval(answer), _as_interval(gold)
        if _strip_meaningless(answer) == _strip_meaningless(gold):
            return True
    meant = _read_gold(gold)
    return bool(meant and verify(list(meant), _read(answer), timeout_seconds=None))


def _as_interval(text: str) -> str:
    """A chain such as ``1 <= x < 2`` as the interval that it bounds."""
    match = _CHAIN.fullmatch(text)
    if match is None:
        return text
    low, first, second, high = match.groups()
    strict = ("<", "\\lt")
    return f"{'(' if first in strict else '['}{low},{high}{')' if second in strict else ']'}"


def _read(text: str) -> Any:
    from math_verify import parse

    inside = _POWER.sub(r"\1 \\times 10^{\2}", text.strip().strip("$"))
    inside = _NAMED.sub(r"\\\1", _ROOT.sub(r"\\sqrt{\1}", inside))
    # Time is kept by the process that waits for this one: the library's own alarm works in main threads alone.
    return parse(f"${inside}$", parsing_timeout=None)


@lru_cache(maxsize=4096)
def _read_gold(text: str) -> tuple[Any, ...]:
    return tuple(_read(text))


def grade(text: str, gold: Sequence[str], *, number: bool, tolerance: float = 0.0) -> Verdict:
    """The verdict on a solution; ``gold`` are answers, any of which is right."""
    verdict = grade_at_once(text, gold, number=number, tolerance=tolerance)
    if verdict is not None:
        return verdict
    found = final_answer(text, number=number) or ""
    return Verdict(any(same(found, one, tolerance) for one in gold))


def grade_at_once(text: str, gold: Sequence[str], *, number: bool, tolerance: float = 0.0) -> Verdict | None:
    """The same, where it takes no algebra, and so no more time than reading; None where it does."""
    found = final_answer(text, number=number)
    if found is None:
        return Verdict(False, "no_answer")
    plainly = [_compare_plainly(found, one, tolerance) for one in gold]
    if True in plainly:
        return Verdict(True)
    return None if None in plainly else Verdict(False)


def serve() -> None:
    """Grade what comes on standard input, a line of JSON each, until it ends."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    _compare_meaning("\\frac{1}{2}", "0.5")  # imports and builds what takes seconds, before a clock runs

    out = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is no verdict
    out.write("ready\n")
    out.flush()
    for line in sys.stdin:
        task = json.loads(line)
        with suppress(AttributeError):
            signal.alarm(ORPHANED)  # nothing handles it, so that it ends the process wherever that is
        try:
            verdict = grade(**task)
        except MemoryError:
            verdict = Verdict(False, "out_of_memory")
        except Exception:  # noqa: BLE001 - whatever algebra makes of an answer, it is not the right one
            verdict = Verdict(False, "unreadable")
        out.write(json.dumps(verdict) + "\n")
        out.flush()


if __name__ == "__main__":
    serve()
