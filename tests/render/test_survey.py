"""What is counted of rows without a model: copies, empty ones, scripts."""

from __future__ import annotations

import numpy as np
import pytest

from instdiff.data import load
from instdiff.rendering.survey import script_of, survey

RNG = np.random.default_rng(3)
WORDS = ["".join(RNG.choice(list("abcdefghijklmnopqrstuvwxyz"), 6)) for _ in range(2000)]


def text(words: int) -> str:
    return " ".join(RNG.choice(WORDS, words))


def row(asked: str, answer: str) -> dict[str, str]:
    return {"instruction": asked, "output": answer}


def test_what_was_planted_is_counted() -> None:
    plain = [row(text(12), text(50)) for _ in range(40)]
    copies = [plain[3], plain[9], plain[9]]
    near = [row(plain[5]["instruction"], plain[5]["output"] + " indeed"), row(text(12), plain[6]["output"])]
    silent = [row(text(12), ""), row(text(12), "  "), row(text(12), "\n")]
    short = [row(text(12), "Yes"), row(text(12), "No.")]
    russian = [row("Назови столицу Франции сейчас", "Столица Франции это Париж"), row("Сколько будет два", "Пять")]
    found = survey(load([*plain, *copies, *near, *silent, *short, *russian, row(" ", text(20))]))
    assert found.rows == 53 and found.silent == {"empty_response": 3} and found.no_prompt == 1
    assert (found.row_copies, found.near_row_copies) == (3, 1), "another prompt makes another row"
    assert (found.prompt_copies, found.near_prompt_copies) == (4, 0)
    assert found.one_word == 3 and found.scripts == {"Latin": 51, "Cyrillic": 2}


def test_case_and_punctuation_make_no_difference() -> None:
    asked = text(12)
    found = survey(load([row(asked, "One answer here."), row(f"{asked.upper()}?!", "Quite another answer.")]))
    assert (found.prompt_copies, found.near_prompt_copies, found.near_row_copies) == (0, 1, 0)


def test_turns_that_are_not_learnt_are_no_target() -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes", "weight": 0}]
    assert survey(load([{"messages": talk}])).silent == {"no_target": 1}


@pytest.mark.parametrize(
    ("said", "script"),
    [
        ("Hello, 3 words", "Latin"),
        ("été à Paris", "Latin"),
        ("Привет, world", "Cyrillic"),
        ("你好世界", "Han"),
        ("こんにちは世界", "Kana"),
        ("안녕하세요", "Hangul"),
        ("مرحبا", "Arabic"),
        ("12 + 30 = 42", "no letters"),
        ("π≈3", "Greek"),
        ("", "no letters"),
    ],
)
def test_scripts(said: str, script: str) -> None:
    assert script_of(said) == script
