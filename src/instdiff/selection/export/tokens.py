"""The tokens that were scored, and what TRL makes of a row, to hold one against the other."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from instdiff.data import Pool
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.rendering.renderer import training_rows
from instdiff.rendering.templates import Template
from instdiff.selection.export.layouts import Laid, Layout, Record
from instdiff.selection.export.models import RENDER_ERRORS
from instdiff.selection.export.tabular import with_texts

IGNORED = -100
"""The label of a token that is not learnt."""
LOOKED_AT = 64
"""Rows of which export looks what a trainer learns."""
_AT_ONCE = 1024


def token_rows(
    pool: Pool, tokenizer: HFTokenizer, layout: Template, limit: int, laid: Laid, left: Counter[str]
) -> Iterator[Record]:
    """``input_ids`` and ``labels`` of every row, and what it says as ``laid``, lists as JSON text.

    Reasons of rows without a token to learn are counted in ``left``.
    """
    for start in range(0, len(pool), _AT_ONCE):
        part = pool.part(start, start + _AT_ONCE)
        rows = training_rows(part, tokenizer, layout, limit)
        for at, sample in enumerate(part.samples()):
            if rows.reason[at] is not None:
                left[str(rows.reason[at])] += 1
                continue
            ids = rows.ids[at]
            target = rows.target[rows.ids.offsets[at] : rows.ids.offsets[at + 1]]
            tokens = {"input_ids": ids.tolist(), "labels": np.where(target, ids, IGNORED).tolist()}
            said = with_texts(laid.layout.make(sample) or {})
            yield tokens | {name: _text(said.get(name, laid.layout.blank.get(name))) for name in laid.columns}


def _text(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


Learnt = tuple[list[int], list[int]]
"""The ids of a row as a trainer makes them, and its labels."""


def count_differing(
    pool: Pool, tokenizer: HFTokenizer, template: Template, limit: int, theirs: Sequence[Learnt], *, blank: bool = False
) -> int:
    """Of how many rows a trainer learns other tokens than were scored; with ``blank`` it may learn white space too.

    Tokens that are not learnt may follow the last target.
    """
    ours = training_rows(pool, tokenizer, template, limit)
    differing = 0
    for at, (ids, labels) in enumerate(theirs):
        target = ours.target[ours.ids.offsets[at] : ours.ids.offsets[at + 1]].tolist()
        wanted = [token if mark else IGNORED for token, mark in zip(ours.ids[at].tolist(), target, strict=True)]
        wanted += [IGNORED] * (min(len(ids), limit) - len(wanted))
        same = ids[: len(target)] == ours.ids[at].tolist() and len(wanted) == len(labels[:limit])
        same &= all(
            label == want or (blank and want == IGNORED and _is_blank(tokenizer, label))
            for label, want in zip(labels[:limit], wanted, strict=False)
        )
        differing += ours.reason[at] is not None or not same
    return differing


def _is_blank(tokenizer: HFTokenizer, token: int) -> bool:
    return not str(tokenizer.hf.decode([token])).strip()


@dataclass(frozen=True)
class TRL:
    """What TRL makes of rows: it renders with the tokenizer, or with its own template for ``assistant_only_loss``."""

    tokenizer: HFTokenizer
    jinja: str | None
    limit: int

    def differing(self, pool: Pool, layout: Layout, template: Template) -> int | None:
        """How many of the first rows it would learn otherwise; None where it cannot learn them in this layout."""
        few = pool.take(_first_of_each(pool, layout))
        try:
            theirs = self._tokenise(layout, [layout.make(sample) for sample in few.samples()])
        except (ImportError, *RENDER_ERRORS):
            return None
        return count_differing(few, self.tokenizer, template, self.limit, theirs)

    def _tokenise(self, layout: Layout, rows: Sequence[Record | None]) -> list[Learnt]:
        # A table gives every message the keys of all; templates then see nulls.
        told = pa.Table.from_pylist(rows).to_pylist()
        if layout.name == "messages":
            marked = self._marked()
            return [self._messages(row, marked) for row in told]
        chat = layout.name == "prompt_completion"
        return [self._prompt_completion(row) if chat else self._text(row) for row in told]

    def _marked(self) -> str | None:
        from trl.chat_template_utils import get_training_chat_template, has_generation_markers

        hf = copy.copy(self.tokenizer.hf)
        hf.chat_template = self.jinja or hf.chat_template
        own: str = hf.get_chat_template()
        hf.chat_template = own
        return own if has_generation_markers(own) else get_training_chat_template(hf)

    def _messages(self, row: Record, marked: str | None) -> Learnt:
        found = self._render(row["messages"], row, marked, return_assistant_tokens_mask=True)
        ids, mask = found["input_ids"], found["assistant_masks"]
        return ids, [token if mark else IGNORED for token, mark in zip(ids, mask, strict=True)]

    def _prompt_completion(self, row: Record) -> Learnt:
        before = self._render(row["prompt"], row, self.jinja, add_generation_prompt=True)["input_ids"]
        return _after(before, self._render(row["prompt"] + row["completion"], row, self.jinja)["input_ids"])

    def _text(self, row: Record) -> Learnt:
        hf = self.tokenizer.hf
        end = hf.eos_token or ""
        said = row["completion"] if row["completion"].endswith(end) else row["completion"] + end
        return _after(hf(row["prompt"])["input_ids"], hf(row["prompt"] + said)["input_ids"])

    def _render(self, turns: Sequence[Record], row: Record, jinja: str | None, **options: Any) -> Mapping[str, Any]:
        tools = json.loads(row["tools"]) if row.get("tools") else None
        self.tokenizer.render(turns, tools, jinja=jinja)  # says so where the template comes to no end
        found: Mapping[str, Any] = self.tokenizer.hf.apply_chat_template(
            list(turns), chat_template=jinja, tools=tools, tokenize=True, return_dict=True, **options
        )
        return found


def _after(before: Sequence[int], ids: list[int]) -> Learnt:
    """The completion starts where the prompt and the whole depart."""
    same = [a == b for a, b in zip(before, ids, strict=False)]
    start = same.index(False) if False in same else len(same)
    return ids, [IGNORED] * start + ids[start:]


def _first_of_each(pool: Pool, layout: Layout) -> list[int]:
    """The first rows, and the first that has a turn of other keys: together they have the types of the whole file."""
    known: set[frozenset[str]] = set()
    found = []
    for at, sample in enumerate(pool.samples()):
        row = layout.make(sample) or {}
        kinds = {frozenset(turn) for turns in row.values() if isinstance(turns, list) for turn in turns}
        if at < LOOKED_AT or not kinds <= known:
            found.append(at)
        known |= kinds
    return found
