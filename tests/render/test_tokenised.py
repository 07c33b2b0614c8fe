"""Each text is tokenised once, and what is made of it is the same as if each view were made alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.core import Joint, Prompted, ResponseOnly, View, WholeText
from instdiff.core.arrays import ragged
from instdiff.core.arrays import spill as spool
from instdiff.data import load
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.rendering import tokenise as tokenised
from instdiff.rendering.renderer import Renderer, Rows, render, text_lengths
from instdiff.rendering.templates import template

from .test_views import talks

VIEWS: list[View] = [
    ResponseOnly(),
    WholeText(),
    Prompted(),
    Prompted(score_eos=True),
    ResponseOnly(context=False),
    Joint("plain"),
    Joint("plain", alone="", slack=1),
    Joint("alpaca_no_input", join="\n", limit=60),
]
LAYOUTS = ["alpaca", "plain", "chat"]


def same(a: Rows, b: Rows) -> None:
    assert a.ids.values.tolist() == b.ids.values.tolist() and a.ids.offsets.tolist() == b.ids.offsets.tolist()
    assert a.target.tolist() == b.target.tolist() and a.truncated.tolist() == b.truncated.tolist()
    assert a.reason.tolist() == b.reason.tolist()
    assert a.keys().tolist() == b.keys().tolist() and a.n_targets().tolist() == b.n_targets().tolist()


@given(talks_=st.lists(talks(), min_size=1, max_size=6), limit=st.integers(1, 90), small=st.booleans())
@pytest.mark.parametrize("name", ["bos", "no_bos"])
def test_views_together_are_views_alone(
    tokenizers: dict[str, HFTokenizer], name: str, talks_: list[list[dict[str, str]]], limit: int, small: bool
) -> None:
    tokenizer = tokenizers[name]
    pool = load([{"conversations": turns} for turns in talks_])
    with pytest.MonkeyPatch.context() as patch:
        if small:  # everything is spooled and worked on in small pieces
            patch.setattr(spool, "IN_MEMORY_BYTES", 40)
            patch.setattr(ragged, "AT_ONCE", 13)
            patch.setattr(tokenised, "CHUNK", 2)
        together = Renderer(pool, tokenizer)
        made = {(layout, view): together.rows(view, template(layout), limit) for layout in LAYOUTS for view in VIEWS}
        lengths = {part: together.lengths(part).tolist() for part in ("response", "instruction")}
    for (layout, view), rows in made.items():
        same(rows, render(view, pool, tokenizer, template(layout), limit))
        order = np.arange(len(rows))[::-1]
        same(rows.take(order).take(order), rows)
    for part, found in lengths.items():
        assert found == text_lengths(pool, part, "tokens", tokenizer).tolist()


class Counted(HFTokenizer):
    """Counts how often each text is tokenised."""

    def __init__(self, hf: Any) -> None:
        super().__init__(hf, None)
        self.seen: Counter[str] = Counter()

    def encode(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        self.seen.update(texts)
        return super().encode(texts, special=special)


def test_each_text_is_tokenised_once(hf: dict[str, Any]) -> None:
    tokenizer = Counted(hf["bos"])
    together = Renderer(load([{"instruction": f"ask {i}", "output": f"said {i}"} for i in range(5)]), tokenizer)
    for layout in ("alpaca", "plain"):
        for view in VIEWS[:5]:
            together.rows(view, template(layout), 500)
    together.lengths("response")
    assert set(tokenizer.seen.values()) == {1}
    assert sum(text.startswith("said") for text in tokenizer.seen) == 5 and len(tokenizer.seen) == 15
    assert together.rows(WholeText(), template("plain"), 500) is together.rows(WholeText(), template("plain"), 500)
    whole, prompted = (together.rows(view, template("plain"), 500) for view in (WholeText(), Prompted()))
    assert whole.ids is prompted.ids

    tokenizer.seen.clear()
    for view in (Joint("plain"), Joint("plain", alone="", slack=1), Joint("plain", alone="Answer: ")):
        together.rows(view, template("plain"), 500)
    assert {text: n for text, n in tokenizer.seen.items() if n > 1} == {}


def test_the_quick_way_into_a_tokenizer_is_the_same(hf: dict[str, Any]) -> None:
    texts = ["", " a  b", "é漢\n", "<s> </s> and 1984", "x" * 5000]
    for raw in hf.values():
        for special in (False, True):
            expected = raw(texts, add_special_tokens=special)["input_ids"]
            tokenizer = HFTokenizer(raw, None)
            assert tokenizer.encode(texts, special=special) == tokenizer.encode(texts, special=special) == expected


def test_a_library_that_does_more_than_its_backend_is_asked_itself(hf: dict[str, Any]) -> None:
    class More:
        """Puts a token of its own before every text."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def __call__(self, texts: Any, **how: Any) -> Any:
            found = self.inner(texts, **how)
            return {"input_ids": [[7, *ids] for ids in found["input_ids"]]}

    tokenizer = HFTokenizer(hf["bos"], None)
    tokenizer._own = More(hf["bos"])
    assert tokenizer.encode(["a"])[0][0] == 7
