"""Demonstrations under a chat template: earlier turns of one conversation."""

from __future__ import annotations

from typing import Any

import numpy as np

from instdiff.core import Prompted
from instdiff.data import load
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.rendering.conversations import converse, converse_with_anchors
from instdiff.rendering.renderer import Renderer
from instdiff.rendering.rows import Rows
from instdiff.rendering.templates import ChatTemplate
from render.families import tokenizer_with

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LAYOUT = ChatTemplate("own", CHATML)
HF = tokenizer_with("byte_bpe", ("<s>", "</s>", "<|im_start|>", "<|im_end|>"), bos_token="<s>", eos_token="</s>")


def row(system: str, *texts: str) -> dict[str, Any]:
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    return {"messages": [{"role": "system", "content": system}, *turns] if system else turns}


POOL = load(
    [row("Be A.", "One?", "Two."), row("Be B.", "Three?", "Four."), row("", "Five?", "Six.", "Seven?", "Eight.")]
)


def made(near: list[list[int]], limit: int = 500) -> tuple[Rows, Rows]:
    renderer = Renderer(POOL, HFTokenizer(HF, None))
    rows = renderer.rows(Prompted(), LAYOUT, limit)
    return rows, converse(renderer.tokenised, LAYOUT, rows, np.array(near), limit)


def text(rows: Rows, at: int) -> str:
    return str(HF.decode(rows.ids[at].tolist()))


def targets(rows: Rows, at: int) -> list[int]:
    found: list[int] = rows.ids[at][rows.target[rows.ids.offsets[at] : rows.ids.offsets[at + 1]]].tolist()
    return found


def test_one_conversation_with_one_system_turn() -> None:
    rows, shown = made([[1, 2], [0, -1], [1, 0]])
    turns = [("user", "Five?"), ("assistant", "Six."), ("user", "Seven?"), ("assistant", "Eight.")]
    turns += [("user", "Three?"), ("assistant", "Four."), ("user", "One?"), ("assistant", "Two.")]
    said = [{"role": "system", "content": "Be A."}, *({"role": role, "content": words} for role, words in turns)]
    whole = HF.apply_chat_template(said, chat_template=CHATML, tokenize=False)
    ids = HF(whole, add_special_tokens=False).input_ids
    assert shown.ids[0].tolist() == ids[: len(shown.ids[0])]
    assert text(shown, 0).endswith("assistant\nTwo.")
    assert "Be A." not in text(shown, 1) and text(shown, 1).startswith("<|im_start|>system\nBe B.")
    for at in range(3):  # what is asked for is what is scored without demonstrations
        assert targets(shown, at) == targets(rows, at)


def test_a_row_without_neighbours() -> None:
    _, shown = made([[-1, -1], [0, -1], [0, -1]])
    assert shown.reason.tolist() == ["no_neighbour", None, None]


def test_the_farthest_demonstration_goes_first() -> None:
    rows, whole = made([[1, 2], [2, 0], [1, 0]])
    limit = len(whole.ids[0]) - 1
    _, shown = made([[1, 2], [2, 0], [1, 0]], limit)
    assert "Five?" not in text(shown, 0) and text(shown, 0).startswith("<|im_start|>system\nBe A.")
    assert shown.truncated.tolist()[0] and targets(shown, 0) == targets(rows, 0)
    tight = len(rows.ids[0]) + 3
    _, cut = made([[1, 2], [2, 0], [1, 0]], tight)
    assert len(cut.ids[0]) == tight and targets(cut, 0) == targets(rows, 0)


def test_anchors_after_each_row() -> None:
    renderer = Renderer(POOL, HFTokenizer(HF, None))
    rows = renderer.rows(Prompted(), LAYOUT, 500)
    shown = converse_with_anchors(renderer.tokenised, LAYOUT, rows, np.array([2, 0]), 200, most=500)
    assert len(shown) == 6
    for at in range(3):
        assert targets(shown, 2 * at) == targets(rows, 2) and targets(shown, 2 * at + 1) == targets(rows, 0)
    assert text(shown, 2).startswith("<|im_start|>user\nThree?") and text(shown, 3).startswith(
        "<|im_start|>system\nBe A."
    )
