"""The target ids of a sample are the same in every view and in training, whatever tokenizer, template and turns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from instdiff.core import Prompted, ResponseOnly, WholeText
from instdiff.core.arrays.ragged import Ragged
from instdiff.data import load
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.rendering.renderer import Rows, render, training_rows
from instdiff.rendering.templates import TextTemplate, is_target, template

TEXT = st.text(alphabet="ab 1{}é\n漢", max_size=8)
SAID = st.text(alphabet="ab 1{}é漢", min_size=1, max_size=8).filter(lambda text: text == text.strip())
AROUND = st.tuples(st.just("user"), TEXT)
CALL = st.sampled_from([[], [("call", "f(1)"), ("tool", "2")]])


@st.composite
def talks(draw: st.DrawFn) -> list[dict[str, str]]:
    """One to three exchanges, perhaps with a system turn, a call and its answer, or a question left open."""
    turns = [("system", draw(TEXT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [("user", "Q" + draw(TEXT)), *draw(CALL), ("assistant", draw(SAID))]
    if draw(st.booleans()):
        turns.append(("user", draw(TEXT)))
    speaker = {"system": "system", "user": "human", "assistant": "gpt", "call": "function_call", "tool": "observation"}
    return [{"from": speaker[role], "value": content} for role, content in turns]


def targets_of(rows: Rows) -> list[list[int]]:
    hit = Ragged(rows.target, rows.ids.offsets)
    return [rows.ids[row][hit[row]].tolist() for row in range(len(rows))]


def contains(text: list[int], part: list[int]) -> bool:
    """Whether ``part`` is a subsequence of ``text``."""
    rest = iter(text)
    return all(token in rest for token in part)


@pytest.mark.parametrize("targets", ["all", "last", "all+calls"])
@pytest.mark.parametrize("layout", ["alpaca", "plain", "direct", "chat"])
@pytest.mark.parametrize("name", ["bos", "no_bos"])
@given(talks_=st.lists(talks(), min_size=1, max_size=4), cut=st.one_of(st.none(), st.integers(4, 90)))
def test_the_same_target_ids_everywhere(
    tokenizers: dict[str, HFTokenizer],
    hf: dict[str, Any],
    name: str,
    layout: str,
    targets: str,
    talks_: list[list[dict[str, str]]],
    cut: int | None,
) -> None:
    tokenizer = tokenizers[name]
    pool = load([{"conversations": turns} for turns in talks_], targets=targets)
    limit = cut or 5000
    views = [Prompted(), ResponseOnly(), ResponseOnly(context=False), WholeText(), Prompted(score_eos=True)]
    prompted, alone, bare, whole, ended = (render(view, pool, tokenizer, template(layout), limit) for view in views)
    trained = training_rows(pool, tokenizer, template(layout), limit)
    assert len(prompted) == len(alone) == len(whole) == len(trained) == len(pool)

    said = targets_of(prompted)
    assert targets_of(alone) == said
    # Without a start token before it the first token of a response has no prediction.
    assert targets_of(bare) == (said if tokenizer.bos is not None else [ids[1:] for ids in said])
    ends = {tokenizer.eos, hf[name].convert_tokens_to_ids("<|im_end|>")}
    for row, sample in enumerate(pool.samples()):
        full = [
            token
            for at, message in enumerate(sample.messages)
            if is_target(sample.messages, at, targets)
            for token in hf[name](message.content, add_special_tokens=False).input_ids
        ]
        assert said[row] == full[: len(said[row])]
        assert (said[row] == full) == (not prompted.truncated[row] and prompted.reason[row] is None)
        assert contains(targets_of(whole)[row], said[row])
        # Training sees the same ids, with the ends as targets too.
        a, b = prompted.ids[row].tolist(), trained.ids[row].tolist()
        assert b == ended.ids[row].tolist() and b[: len(a)] == a and len(b) - len(a) in (0, 1)
        if cut is None:
            assert b[len(a) :] == [tokenizer.eos if isinstance(template(layout), TextTemplate) else max(ends)]
        learnt = targets_of(trained)[row]
        assert [token for token in learnt if token not in ends] == said[row]
        assert len(a) <= limit and len(b) <= limit


@given(talks_=st.lists(talks(), min_size=1, max_size=3), cut=st.integers(2, 60))
@pytest.mark.parametrize("layout", ["plain", "chat"])
def test_a_cut_row_is_the_head_of_the_whole_one(
    tokenizers: dict[str, HFTokenizer], layout: str, talks_: list[list[dict[str, str]]], cut: int
) -> None:
    pool = load([{"conversations": turns} for turns in talks_])
    whole = render(Prompted(), pool, tokenizers["bos"], template(layout), 5000)
    short = render(Prompted(), pool, tokenizers["bos"], template(layout), cut)
    for row in range(len(pool)):
        size = len(whole.ids[row])
        a, b = whole.ids.offsets[row : row + 2]
        if not whole.target[a : a + cut].any():
            assert (short.reason[row], len(short.ids[row])) == ("too_long", 0)
            continue
        assert short.reason[row] is None and short.truncated[row] == (size > cut)
        assert short.ids[row].tolist() == whole.ids[row][:cut].tolist()
        c = short.ids.offsets[row]
        assert short.target[c : c + min(size, cut)].tolist() == whole.target[a:b][:cut].tolist()


# ── keys ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

ROW = st.lists(st.tuples(st.integers(0, 1), st.booleans()), max_size=3)


def built(rows: list[list[tuple[int, bool]]]) -> Rows:
    ids = Ragged.of([[token for token, _ in row] for row in rows], np.int32)
    hit = Ragged.of([[target for _, target in row] for row in rows], np.bool_)
    return Rows(ids, hit.values, np.zeros(len(rows), bool), np.full(len(rows), None, object))


@given(st.lists(ROW, min_size=2, max_size=8))
@example([[], [(1, True)], [(1, False)], [(0, True)], [(1, True), (0, False)], [(0, False), (1, True)], [(1, True)]])
@example([[(1, True)] * 8, [(1, True)] * 9, [(1, True)] * 7 + [(1, False)], [(1, False), *[(1, True)] * 7]])
def test_keys_differ_exactly_where_ids_or_targets_do(rows: list[list[tuple[int, bool]]]) -> None:
    keys = built(rows).keys()
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            assert (keys[i] == keys[j]) == (one == other)
    assert built(rows[::-1]).keys().tolist() == keys[::-1].tolist()
    assert built(rows[:1]).keys()[0] == keys[0]
    assert len(keys.tobytes()) == 16 * len(rows)


def test_keys_follow_what_the_model_sees(tokenizers: dict[str, HFTokenizer]) -> None:
    pool = load([{"instruction": "a", "input": "", "output": "b"}, {"instruction": "long " * 9, "output": "c" * 40}])

    def keys(layout: str = "plain", limit: int = 500, name: str = "bos", **view: bool) -> list[bytes]:
        return render(Prompted(**view), pool, tokenizers[name], template(layout), limit).keys().tolist()

    plain = keys()
    assert keys() == plain and len(set(plain)) == 2
    assert not set(keys("alpaca")) & set(plain)
    assert not set(keys(name="no_bos")) & set(plain)
    assert not set(keys(score_eos=True)) & set(plain)
    assert keys(limit=60)[0] == plain[0] and keys(limit=60)[1] != plain[1]  # only the row that is cut
    assert keys("{instruction}\n") == plain  # another name for the same tokens
