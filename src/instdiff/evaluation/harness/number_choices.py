"""GSM8K as a choice of four numbers: the right answer, and three wrong ones that the item itself gives."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from itertools import islice
from typing import Any

from instdiff.evaluation.task_data import Record

_RESULT = re.compile(r"<<[^<>]*=([^<>=]*)>>")
"""What a calculation of a solution comes to."""
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?|\.\d+")
WRONG = 3


def number_choices(question: str, solution: str) -> tuple[list[str], int]:
    """Four different numbers in an order that the item's content alone decides, and the place of the right one.

    Wrong ones are the other results of the solution's own calculations, then the numbers of the question, then near
    misses. A ValueError where the solution ends with no number.
    """
    right = _number(solution.rpartition("####")[2])
    if right is None:
        raise ValueError(f"no number behind '####' in '...{solution[-40:]}'")
    wrong = islice(dict.fromkeys(one for one in _wrong(question, solution, right) if one != right), WRONG)
    choices = sorted(map(_text, (right, *wrong)), key=lambda one: _place(question, one))
    return choices, choices.index(_text(right))


def _wrong(question: str, solution: str, right: Decimal) -> Iterator[Decimal]:
    for text in (*_RESULT.findall(solution), *_NUMBER.findall(question)):
        number = _number(text)
        if number is not None:
            yield number
    yield right * 10
    if right % 10 == 0 or right % 1:  # a fraction beside whole numbers would be told at sight
        yield right / 10
    yield from (right + 1, right - 1, right * 2, right + 10)


def _number(text: str) -> Decimal | None:
    try:
        return Decimal(text.strip().strip("$%").replace(",", ""))
    except InvalidOperation:
        return None


def _text(number: Decimal) -> str:
    return f"{(number + 0).normalize():f}"


def _place(question: str, choice: str) -> bytes:
    return hashlib.blake2b(f"{question}|{choice}".encode(), digest_size=8).digest()


def _with_choices(row: Record) -> Record:
    choices, label = number_choices(row["question"], row["answer"])
    return {"choices": choices, "label": label}


def process(rows: Any) -> Any:
    """A data set of lm-eval's task ``gsm8k`` with the columns ``choices`` and ``label``."""
    return rows.map(_with_choices)


GSM8K_CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "process_docs": process,
    "doc_to_choice": "choices",
    "doc_to_target": "label",
    "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")],
    "generation_kwargs": None,
    "filter_list": None,
}
"""What is different from lm-eval's description of ``gsm8k``."""
